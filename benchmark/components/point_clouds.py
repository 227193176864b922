"""Point clouds as tensors: positions, then the nuclear charge, zero-padded."""

from typing import NamedTuple

import torch
from torch import Tensor

SPECIES = (1, 6, 7, 8, 9)
LARGEST_CHARGE = 9
CHARGE_FEATURES = 3 * len(SPECIES)
"""Number of features that describe a charge to a network."""


class PointCloud(NamedTuple):
    """Points with charges. Shapes: positions (..., n, 3), charges (..., n), mask (..., n), false where padded."""

    positions: Tensor
    charges: Tensor
    mask: Tensor


def points(x: Tensor) -> PointCloud:
    """Split inputs (..., n, 4) into positions, charges and mask."""
    return PointCloud(x[..., :3], x[..., 3], x[..., 3] > 0)


def charge_features(charges: Tensor) -> Tensor:
    """Encode charges (..., n) as (..., n, 15): one-hot(species) ⊗ (1, q/9, (q/9)²); zero where there is no atom."""
    species = torch.stack([charges == charge for charge in SPECIES], -1).to(charges)
    powers = (charges / LARGEST_CHARGE)[..., None] ** torch.arange(3, device=charges.device)
    return (species[..., :, None] * powers[..., None, :]).flatten(-2)
