"""Rotated 8x8 digits: real handwriting that is always at hand, since scikit-learn ships it.

1,797 digits of the UCI optical recognition test set (Alpaydin & Kaynak 1998), rotated and normalised like `rotmnist`.
The split into 1,197 training, 200 validation and 400 test digits is fixed; the angles come from the run's seed.
"""

from typing import ClassVar

import numpy as np
import torch
from sklearn.datasets import load_digits

from invbench.images import centred, rotate
from invbench.problem import Classification, Dataset, Problem, Split
from invbench.registry import register_dataset
from invbench.settings import setting

BOUNDS = {"train": (0, 1197), "validation": (1197, 1397), "test": (1397, 1797)}


@register_dataset("digits")
class RotatedDigits(Dataset):
    """8x8 digits at random angles; ten classes, offline."""

    provides: ClassVar[tuple[str, ...]] = ("image", "classification")
    backbone: ClassVar[str] = "cnn_small"
    citation: ClassVar[str] = "Alpaydin & Kaynak, Optical recognition of handwritten digits, UCI (1998)"
    licence: ClassVar[str] = "CC BY 4.0, bundled with scikit-learn"

    max_rotation: float = setting(2 * np.pi, "angles are uniform between minus and plus this, in radians", ge=0)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        pixels, labels = load_digits(return_X_y=True)
        order = np.random.default_rng(np.random.SeedSequence(1797)).permutation(len(labels))
        angles = np.random.default_rng(seed).uniform(-self.max_rotation, self.max_rotation, len(labels))
        images = torch.from_numpy((pixels[order] / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
        x = centred(rotate(images, torch.from_numpy(angles.astype(np.float32))))
        y = torch.from_numpy(labels[order]).long()
        splits = {name: Split(x[first:last], y[first:last]) for name, (first, last) in BOUNDS.items()}
        return Problem(splits, Classification(10), "image", "full")
