"""Corrupted 8x8 digits: the corruptions of CIFAR-10-C as environments, on real handwriting that is always at hand.

The 1,797 digits of scikit-learn, dealt at random to environments, one corruption each, of the same severity from 1
to 5. Formulas and constants are those of CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261, released code) for
pixels in [0, 1]; results are clipped to [0, 1]:

    clean           x
    gaussian_noise  x + c N(0, 1)
    shot_noise      Poisson(c x) / c
    impulse_noise   a share c of the pixels becomes 0 or 1, each as often
    speckle_noise   x + c x N(0, 1)
    gaussian_blur   Gaussian filter of standard deviation c pixels
    brightness      x + c
    contrast        mean + c (x - mean), with the mean of the image

A corruption that is in `test_environments` is not trained on. The other corruptions of the benchmark need photographs.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import Tensor

from invbench.core.arrays import numbered
from invbench.core.data import Dataset, Pixels, Problem, Split, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._small_digits import CITATION, LICENCE, load_small_digits
from invbench.errors import UserError, did_you_mean
from invbench.seeding import children

PIXELS = Pixels((0.5,), (0.25,))
Images = NDArray[np.float64]
Corrupt = Callable[[Images, float, np.random.Generator], Images]


def _impulse(x: Images, c: float, rng: np.random.Generator) -> Images:
    return np.where(rng.random(x.shape) < c, rng.integers(0, 2, x.shape), x)


def _contrast(x: Images, c: float, rng: np.random.Generator) -> Images:
    mean: Images = x.mean(axis=(2, 3), keepdims=True)
    return mean + c * (x - mean)


CORRUPTIONS: dict[str, tuple[Corrupt, tuple[float, ...]]] = {
    "clean": (lambda x, c, rng: x, (0.0,) * 5),
    "gaussian_noise": (lambda x, c, rng: x + c * rng.normal(size=x.shape), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (lambda x, c, rng: rng.poisson(x * c) / c, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (lambda x, c, rng: x + c * x * rng.normal(size=x.shape), (0.06, 0.1, 0.12, 0.16, 0.2)),
    "gaussian_blur": (
        lambda x, c, rng: gaussian_filter(x, (0, 0, c, c), mode="nearest"),
        (0.4, 0.6, 0.7, 0.8, 1.0),
    ),
    "brightness": (lambda x, c, rng: x + c, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
}
"""Corruptions of images (N, 1, H, W), and their constant c by severity."""


@register_dataset("corrupted_digits")
class CorruptedDigits(Dataset):
    """8x8 digits, noisy, blurred or pale; each corruption is an environment, offline."""

    display_name: ClassVar[str] = "Corrupted digits"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments")
    backbone: ClassVar[str] = "cnn_small"
    citation: ClassVar[str] = f"{CITATION}; corruptions as in Hendrycks & Dietterich, arXiv 1903.12261"
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 2, "trainer.batch_size": 10}

    test_environments: tuple[str, ...] = setting(("gaussian_blur", "contrast"), "corruptions that are tested only")
    severity: int = setting(5, "of all corruptions", ge=1, le=5)

    def environment_choices(self) -> tuple[str, ...]:
        return tuple(CORRUPTIONS)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        for name in self.test_environments:
            if name not in CORRUPTIONS:
                hint = did_you_mean(name, CORRUPTIONS)
                raise UserError(f"dataset.test_environments: no corruption is named '{name}'{hint}")
        if not 0 < len(set(self.test_environments)) < len(CORRUPTIONS):
            raise UserError("dataset.test_environments must name some of the corruptions, and not all")
        deal, noise = (np.random.default_rng(stream) for stream in children(seed, 2))
        images, labels = load_small_digits()
        names = np.array(list(CORRUPTIONS))[deal.permutation(len(labels)) % len(CORRUPTIONS)]
        x = self.corrupted(images, names, noise)
        tested = np.isin(names, self.test_environments)
        env, order = numbered(names, np.flatnonzero(~tested))
        whole = Split(PIXELS.standardised(x), torch.from_numpy(labels).long(), env)
        rows = {"train": ~tested, "test": tested}
        splits = {name: whole.rows(torch.from_numpy(mask)) for name, mask in rows.items()}
        return Problem(splits, Classification(10), "image", "full", pixels=PIXELS, environment_names=order)

    def corrupted(self, images: Tensor, names: NDArray[np.str_], rng: np.random.Generator) -> Tensor:
        """Corrupt images (N, 1, H, W) with pixels in [0, 1], each as its name (N,) says."""
        pixels = images.double().numpy()
        changed = np.empty_like(pixels)
        for name, (corrupt, constants) in CORRUPTIONS.items():
            rows = names == name
            changed[rows] = corrupt(pixels[rows], constants[self.severity - 1], rng).clip(0, 1)
        return floats(changed)
