"""Linear maps of vectors that are made of blocks, for datasets that know their symmetry."""

import torch
from torch import Tensor

PLANE_ROTATION = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
"""Generator of rotations of the plane, counter-clockwise."""


def on_every_block(generators: Tensor, count: int) -> Tensor:
    """Let generators (k, d, d) act on each of `count` vectors alike (k, count d, count d)."""
    return torch.stack([torch.block_diag(*[generator] * count) for generator in generators])
