"""Geometry of images that several datasets share."""

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 4096


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Rotate about the centre, bilinear, black outside, corners not aligned.

    Args:
        images: (N, C, H, W).
        angles: radians (N,); positive is counter-clockwise as the image is seen.

    Returns:
        (N, C, H, W).
    """
    return torch.cat([_rotate(i, a) for i, a in zip(images.split(CHUNK), angles.split(CHUNK), strict=True)])


def centred(pixels: Tensor) -> Tensor:
    """From [0, 1] to [-2, 2]: (pixel - 0.5) / 0.25, the scale of Augerino's digits."""
    return (pixels - 0.5) / 0.25


def _rotate(images: Tensor, angles: Tensor) -> Tensor:
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    # affine_grid maps output to input coordinates, y pointing down.
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
