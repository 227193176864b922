"""What the rotated digits share: settings, and the angle as nuisance and, on request, as environment."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.images import angle_bins, rotate, wrapped
from invbench.core.data import Dataset, Pixels, Split, floats
from invbench.core.settings import setting

PIXELS = Pixels((0.5,), (0.25,))


class RotatedDigits(Dataset):
    """Digits that are each turned once by a random angle."""

    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"environments": "rotation_bins"}}
    backbone: ClassVar[str] = "cnn_small"

    max_rotation: float = setting(2 * np.pi, "angles are uniform between minus and plus this, in radians", ge=0)
    environments: Literal["none", "rotation_bins"] = setting("none", "whether intervals of the angle are environments")
    rotation_bins: int = setting(4, "number of those intervals, of equal width", ge=2)

    def angles(self, count: int, seed: np.random.SeedSequence) -> Tensor:
        """Draw random angles (count,) in radians."""
        drawn = np.random.default_rng(seed).uniform(-self.max_rotation, self.max_rotation, count)
        return floats(drawn)

    def turned(self, images: Tensor, labels: NDArray[Any], angles: Tensor) -> Split:
        """Rotate images (N, 1, H, W), bytes or numbers in [0, 1], and scale them as (pixel - 0.5) / 0.25.

        The nuisance is the angle in [-π, π).
        """
        angle = wrapped(angles) if self.max_rotation > torch.pi else angles
        largest = min(self.max_rotation, torch.pi)
        env = angle_bins(angle, self.rotation_bins, largest) if self.environments == "rotation_bins" else None
        return Split(PIXELS.standardised(rotate(images, angles)), torch.from_numpy(labels).long(), env, angle)
