"""8x8 digits anywhere on a larger black canvas: is a translation left out of the answer?

The 1,797 digits that scikit-learn ships, on `side` x `side` pixels. With m = (side - 8) / 2 the corner of digit i is in
row m + v_i and column m + u_i, whole pixels, so that no digit is interpolated or cut:

    training, validation:  (u, v) uniform on {-max_shift, ..., max_shift}²
    test:                  the same; with test_shift uniform where max_shift < max(|u|, |v|) ≤ test_shift

Pixels are (pixel - 0.5) / 0.25. The split into 1,197 training, 200 validation and 400 test digits is that of `digits`;
the shifts come from the run's seed.

The symmetry is in the units of the generators of translation, a twentieth of the side as `components.affine` has it:
there corners are aligned, so that a pixel is 2 / (side - 1) of the square [-1, 1]² and a unit 0.1 of it, and a pixel is
20 / (side - 1) units. It reaches as far as any digit is shifted, those of the test included.

Deviations: none, since these are no paper's data.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from invbench.core.data import Dataset, Problem, Split, Symmetry
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._rotation import PIXELS
from invbench.datasets._small_digits import BOUNDS, CITATION, LICENCE, shuffled_small_digits
from invbench.seeding import children

DIGIT = 8


@register_dataset("shifted_digits")
class ShiftedDigits(Dataset):
    """8x8 digits at random places of a larger black image; ten classes, offline."""

    display_name: ClassVar[str] = "Shifted digits"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification")
    backbone: ClassVar[str] = "cnn_small"
    citation: ClassVar[str] = CITATION
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 2, "trainer.batch_size": 20}

    side: int = setting(16, "side of the images in pixels, even", ge=8, le=256, multiple_of=2)
    max_shift: int = setting(4, "digits are shifted by up to so many pixels either way, from the centre", ge=0)
    test_shift: int | None = setting(
        None, "test digits are shifted by more than max_shift and up to this; null: as in training", ge=1
    )

    @model_validator(mode="after")
    def _shifts_fit(self) -> Self:
        if self.test_shift is not None and self.test_shift <= self.max_shift:
            raise ValueError("test_shift must be larger than max_shift")
        if self.largest > self.margin:
            raise ValueError(f"a digit can be shifted by {self.margin} pixels at most where side is {self.side}")
        return self

    @property
    def margin(self) -> int:
        """Width of the border around a digit in the centre."""
        return (self.side - DIGIT) // 2

    @property
    def largest(self) -> int:
        """Most pixels that any digit is shifted by."""
        return self.max_shift if self.test_shift is None else self.test_shift

    def load(self, seed: np.random.SeedSequence) -> Problem:
        images, labels = shuffled_small_digits()
        splits = {}
        for (name, (first, last)), child in zip(BOUNDS.items(), children(seed, len(BOUNDS)), strict=True):
            shifts = self._shifts(name, last - first, np.random.default_rng(child))
            x = PIXELS.standardised(self._placed(images[first:last], torch.from_numpy(shifts)))
            splits[name] = Split(x, torch.from_numpy(labels[first:last]))
        reach = self.largest * units_per_pixel(self.side)
        symmetry = Symmetry({"translation_x": reach, "translation_y": reach})
        return Problem(splits, Classification(10), "image", "full", pixels=PIXELS, symmetry=symmetry)

    def _shifts(self, split: str, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw shifts to the right and down (count, 2)."""
        reach = self.largest if split == "test" else self.max_shift
        line = np.arange(-reach, reach + 1)
        all_shifts = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
        if split == "test" and self.test_shift is not None:
            all_shifts = all_shifts[np.abs(all_shifts).max(1) > self.max_shift]
        return all_shifts[rng.integers(len(all_shifts), size=count)]

    def _placed(self, images: Tensor, shifts: Tensor) -> Tensor:
        """Copy each digit (N, 1, 8, 8) to its place on black (N, 1, side, side)."""
        canvas = images.new_zeros(len(images), 1, self.side, self.side)
        columns, rows = (self.margin + shifts[:, axis, None] + torch.arange(DIGIT) for axis in (0, 1))
        canvas[torch.arange(len(images))[:, None, None], 0, rows[:, :, None], columns[:, None, :]] = images[:, 0]
        return canvas


def units_per_pixel(side: int) -> float:
    """Return how many units of the generators of translation move an image of this side by one pixel."""
    return 20 / (side - 1)
