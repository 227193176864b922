"""Rotated MNIST: handwritten digits, each turned once by a random angle.

`variant: 60k` is the data of Augerino's experiment (Benton et al. 2020, arXiv 2010.11882, section 4.1): all 60,000
training and 10,000 test digits, angle ~ U(-max_rotation, max_rotation), bilinear, black outside, no aligned corners,
then (pixel - 0.5) / 0.25. `variant: 12k` has the sizes of the older mnist-rot benchmark (Larochelle et al. 2007),
12,000 training and 50,000 test digits out of all 70,000; the choice of digits is fixed, but it is not that file's.
`variant: domainbed` has environments (Gulrajani & Lopez-Paz 2021, arXiv 2007.01434): all 70,000 digits, shuffled and
dealt to six angles, 0, 15, ..., 75 degrees, of which one is the test; pixels in [0, 1]. A fifth of each is held out as
`validation` and, in the test environment, as `test_out`. Theirs rounds rotated pixels to bytes.

Deviations from Augerino's code:
- Angles come from the run's seed; theirs were drawn from an unseeded generator.
- Pixels are scaled to [0, 1] before (pixel - 0.5) / 0.25, so the background is -2 and the ink at most 2. Theirs kept
  the range 0 to 255, with ink up to 1018.
- Training batches are shuffled; theirs were not.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.components.images import rotate
from invbench.core.data import Problem, Split, Variant, subset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._coloring import alternating
from invbench.datasets._domainbed import domainbed_splits
from invbench.datasets._mnist import Digits, load_mnist
from invbench.datasets._rotation import PIXELS, RotatedDigits
from invbench.errors import UserError

SMALL_TRAIN, SMALL_TEST = 12_000, 50_000
DOMAINBED_DEGREES = (0, 15, 30, 45, 60, 75)


@register_dataset("rotmnist")
class RotMNIST(RotatedDigits):
    """28x28 digits at random angles; ten classes."""

    display_name: ClassVar[str] = "Rotated MNIST"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "nuisance", "environments")
    release: ClassVar[str] = "mnist"
    citation: ClassVar[str] = "Benton et al., Learning invariances in neural networks, arXiv 2010.11882"
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 2, "dataset.rotation_bins": 2, "trainer.batch_size": 10}

    variant: Literal["60k", "12k", "domainbed"] = setting(
        "60k", "60,000/10,000 digits as in Augerino, or 12,000/50,000, or DomainBed's six angles"
    )
    train_size: int | None = setting(None, "use only the first so many training digits; null takes all", ge=1)
    validation_size: int = setting(0, "training digits held out as validation split, from the end", ge=0)
    test_size: int | None = setting(None, "use only the first so many test digits; null takes all", ge=1)
    test_environment: int = setting(5, "domainbed: which of the six angles is the test", ge=0, le=5)
    size: int | None = setting(None, "domainbed: use so many digits, at random; null takes all", ge=60)

    def capabilities(self) -> tuple[str, ...]:
        return type(self).provides if self.variant == "domainbed" else super().capabilities()

    def load(self, seed: np.random.SeedSequence) -> Problem:
        digits = load_mnist()
        if self.variant == "domainbed":
            return self._domainbed(digits, np.random.default_rng(seed))
        if self.size is not None or self.test_environment != 5:
            raise UserError("dataset.size and dataset.test_environment are for variant domainbed")
        order: NDArray[np.int64] = np.arange(len(digits.labels))
        train = digits.train
        test = len(order) - train
        if self.variant == "12k":
            order = np.random.default_rng(np.random.SeedSequence(12_000)).permutation(order)
            train, test = SMALL_TRAIN, SMALL_TEST
            subset(train + test, len(order), "the size of variant 12k")
        available = train - self.validation_size
        used = subset(self.train_size, available, "dataset.train_size plus dataset.validation_size")
        tested = subset(self.test_size, test, "dataset.test_size")
        rows = {
            "train": order[:used],
            "validation": order[available:train],
            "test": order[train : train + tested],
        }
        # Every digit's angle is drawn whether it is used or not: a smaller training set is a part of the larger.
        angles = torch.empty(len(order))
        angles[torch.from_numpy(order)] = self.angles(len(order), seed, slice(train, None))
        splits = {
            name: self.turned(
                torch.from_numpy(digits.images[index])[:, None],
                digits.labels[index],
                angles[torch.from_numpy(index)],
            )
            for name, index in rows.items()
            if len(index)
        }
        full = digits.official and self.train_size is None and self.test_size is None
        variant: Variant = "full" if full else "partial"
        return Problem(splits, Classification(10), "image", variant, pixels=PIXELS, symmetry=self.symmetry)

    def _domainbed(self, digits: Digits, rng: np.random.Generator) -> Problem:
        used = subset(self.size, len(digits.labels), "dataset.size")
        order = rng.permutation(len(digits.labels))[:used]
        env = alternating(used, len(DOMAINBED_DEGREES))
        angles = torch.deg2rad(torch.tensor(DOMAINBED_DEGREES)[torch.from_numpy(env)].float())
        images = rotate(torch.from_numpy(digits.images[order])[:, None], angles)
        whole = Split(images, torch.from_numpy(digits.labels[order]).long(), nuisance=angles)
        splits = domainbed_splits(whole, env, self.test_environment)
        full = digits.official and self.size is None
        return Problem(splits, Classification(10), "image", "full" if full else "partial")
