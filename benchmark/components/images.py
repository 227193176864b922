"""Geometry of images that several datasets share."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024
"""Number of images that are rotated together: what they need fits into a processor's caches."""


def rotate(images: Tensor, angles: Tensor, window: int | None = None) -> Tensor:
    """Rotate about the centre, bilinear, black outside, corners not aligned.

    Args:
        images: (N, C, H, W), numbers, or bytes that are scaled to [0, 1].
        angles: radians (N,); positive is counter-clockwise as the image is seen.
        window: side of the central square that is kept, of square images; None keeps all.

    Returns:
        (N, C, H, W), or (N, C, window, window).
    """
    size = images.shape[-2:] if window is None else (window, window)
    dtype = images.dtype if images.is_floating_point() else torch.get_default_dtype()
    outputs = torch.empty(*images.shape[:2], *size, dtype=dtype, device=images.device)
    for chunk, angle, output in zip(images.split(CHUNK), angles.split(CHUNK), outputs.split(CHUNK), strict=True):
        output.copy_(_rotate(chunk if chunk.is_floating_point() else chunk / 255, angle, size))
    return outputs


def _rotate(images: Tensor, angles: Tensor, size: Sequence[int]) -> Tensor:
    scale = size[-1] / images.shape[-1]
    cos, sin, zero = scale * angles.cos(), scale * angles.sin(), torch.zeros_like(angles)
    # affine_grid maps output to input coordinates, y pointing down.
    theta = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), [*images.shape[:2], *size], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def wrapped(angles: Tensor) -> Tensor:
    """Map angles to the same rotations in [-π, π)."""
    return torch.remainder(angles + torch.pi, 2 * torch.pi) - torch.pi


def angle_bins(angles: Tensor, count: int, largest: float) -> Tensor:
    """Return the index of the equal interval of [-largest, largest] that each angle (N,) is in."""
    position = (angles + largest) / (2 * largest) if largest else torch.zeros_like(angles)
    return (position * count).long().clamp(0, count - 1)


def random_crop(images: Tensor, padding: int, fill: Tensor) -> Tensor:
    """Shift each image (N, C, H, W) by up to `padding` pixels each way; `fill` (C, 1, 1) comes in at the border."""
    count, channels, height, width = images.shape
    padded = F.pad(images - fill, [padding] * 4) + fill
    top, left = (torch.randint(2 * padding + 1, (count, 1), device=images.device) for _ in range(2))
    rows = (top + torch.arange(height, device=images.device))[:, None, :, None]
    columns = (left + torch.arange(width, device=images.device))[:, None, None, :]
    index = torch.arange(count, device=images.device)[:, None, None, None]
    return padded[index, torch.arange(channels, device=images.device)[:, None, None], rows, columns]


def random_flip(images: Tensor) -> Tensor:
    """Mirror each image (N, C, H, W) left to right with probability one half."""
    flip = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(flip, images.flip(-1), images)
