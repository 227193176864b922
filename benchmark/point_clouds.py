"""How a point cloud lies in a tensor: positions, then the nuclear charge, zero-padded."""

from typing import NamedTuple

from torch import Tensor


class PointCloud(NamedTuple):
    """Points with charges. Shapes: positions (..., n, 3), charges (..., n), mask (..., n), false where padded."""

    positions: Tensor
    charges: Tensor
    mask: Tensor


def points(x: Tensor) -> PointCloud:
    """The parts of inputs (..., n, 4)."""
    return PointCloud(x[..., :3], x[..., 3], x[..., 3] > 0)
