"""Rotated 8x8 digits: real handwriting that is always at hand, since scikit-learn ships it.

1,797 digits of the UCI optical recognition test set (Alpaydin & Kaynak 1998), rotated and normalised like `rotmnist`.
The split into 1,197 training, 200 validation and 400 test digits is fixed; the angles come from the run's seed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from invbench.core.data import Problem
from invbench.core.registry import register_dataset
from invbench.core.task import Classification
from invbench.datasets._rotation import PIXELS, RotatedDigits
from invbench.datasets._small_digits import BOUNDS, CITATION, LICENCE, shuffled_small_digits


@register_dataset("digits")
class SmallDigits(RotatedDigits):
    """8x8 digits at random angles; ten classes, offline."""

    display_name: ClassVar[str] = "Rotated digits"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "nuisance", "environments")
    citation: ClassVar[str] = CITATION
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 2, "trainer.batch_size": 20}

    def load(self, seed: np.random.SeedSequence) -> Problem:
        images, labels = shuffled_small_digits()
        turned = self.turned(images, labels, self.angles(len(labels), seed, slice(*BOUNDS["test"])))
        splits = {name: turned.rows(slice(first, last)) for name, (first, last) in BOUNDS.items()}
        return Problem(splits, Classification(10), "image", "full", pixels=PIXELS, symmetry=self.symmetry)
