"""What the rotated digits share: settings, and the angle as nuisance and, on request, as environment."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from invbench.components.images import angle_bins, rotate, wrapped
from invbench.core.data import Dataset, Pixels, Split, Symmetry, floats
from invbench.core.settings import setting

PIXELS = Pixels((0.5,), (0.25,))
ROUNDING = 1e-6
"""Of angles, which are in single precision."""


class RotatedDigits(Dataset):
    """Digits that are each turned once by a random angle."""

    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"environments": "rotation_bins"}}
    backbone: ClassVar[str] = "cnn_small"

    max_rotation: float = setting(2 * np.pi, "angles are uniform between minus and plus this, in radians", ge=0)
    test_rotation: float | None = setting(
        None, "test angles lie between max_rotation and this, on both sides; null: as in training", gt=0, le=np.pi
    )
    environments: Literal["none", "rotation_bins"] = setting("none", "whether intervals of the angle are environments")
    rotation_bins: int = setting(4, "number of those intervals, of equal width", ge=2)

    @model_validator(mode="after")
    def _test_rotation_is_larger(self) -> Self:
        if self.test_rotation is not None and not 0 < self.max_rotation < self.test_rotation:
            raise ValueError("test_rotation must be larger than max_rotation, and that larger than 0")
        return self

    @property
    def symmetry(self) -> Symmetry | None:
        """By which angles digits are turned, where these are all there are."""
        return None if self.test_rotation else Symmetry({"rotation": min(self.max_rotation, np.pi)})

    def angles(self, count: int, seed: np.random.SeedSequence, test: slice) -> Tensor:
        """Draw random angles (count,) in radians; those of the rows `test` lie outside, where the settings say so."""
        drawn = np.random.default_rng(seed).uniform(-self.max_rotation, self.max_rotation, count)
        if self.test_rotation is not None:
            width = self.test_rotation - self.max_rotation
            drawn[test] = np.sign(drawn[test]) * (self.max_rotation + np.abs(drawn[test]) / self.max_rotation * width)
        return floats(drawn)

    def turned(self, images: Tensor, labels: NDArray[Any], angles: Tensor) -> Split:
        """Rotate images (N, 1, H, W), bytes or numbers in [0, 1], and scale them as (pixel - 0.5) / 0.25.

        The nuisance is the angle in [-π, π). Angles outside the interval of training make two further environments.
        """
        angle = wrapped(angles) if self.max_rotation > torch.pi else angles
        largest = min(self.max_rotation, torch.pi)
        env = angle_bins(angle, self.rotation_bins, largest) if self.environments == "rotation_bins" else None
        if env is not None and self.test_rotation is not None:
            is_outside = angle.abs() > largest * (1 + ROUNDING)
            env = torch.where(is_outside, self.rotation_bins + (angle > 0).long(), env)
        return Split(PIXELS.standardised(rotate(images, angles)), torch.from_numpy(labels).long(), env, angle)
