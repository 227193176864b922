"""Geometry of images that several datasets share."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.core.data import Problem
from invbench.errors import UserError

CHUNK = 1024
"""Number of images that are rotated together: what they need fits into a processor's caches."""


def require_square(problem: Problem) -> None:
    """Raise UserError where a problem's images cannot be turned by quarters onto themselves."""
    _, height, width = problem.input_shape
    if height != width:
        raise UserError(f"only square images can be turned by quarters, these are {height}x{width}")


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


def random_resized_crop(images: Tensor, scale: tuple[float, float]) -> Tensor:
    """Cut a random part out of each image (N, C, H, W) and enlarge it to the same size, bilinear.

    The part of the area is uniform within `scale`, the ratio of the sides log-uniform from 3/4 to 4/3, as torchvision's
    `RandomResizedCrop` has them; a side that would be longer than the image's is as long.
    """
    count, device = len(images), images.device
    area = scale[0] + (scale[1] - scale[0]) * torch.rand(count, device=device)
    sides = (math.log(4 / 3) * (2 * torch.rand(count, device=device) - 1)).exp().sqrt()
    width, height = ((area.sqrt() * side).clamp(max=1) for side in (sides, 1 / sides))
    left, top = ((1 - side) * (2 * torch.rand(count, device=device) - 1) for side in (width, height))
    zero = torch.zeros_like(width)
    theta = torch.stack([torch.stack([width, zero, left], 1), torch.stack([zero, height, top], 1)], 1)
    grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def colour_jitter(pixels: Tensor, strength: float, hue: float) -> Tensor:
    """Change brightness, contrast, saturation and hue of each image at random, as torchvision's `ColorJitter` does.

    Args:
        pixels: in [0, 1] (N, 3, H, W), or (N, 1, H, W), of which only brightness and contrast change.
        strength: factors of the first three are uniform in [1 - strength, 1 + strength].
        hue: the shift is uniform in [-hue, hue], in parts of the circle. The order is random, one for all images.
    """
    changes: list[Callable[[Tensor, Tensor], Tensor]] = [_brightened, _contrasted]
    changes += [_saturated, _hue_shifted] if pixels.shape[1] == 3 else []
    for number in torch.randperm(len(changes)).tolist():
        drawn = 2 * torch.rand(len(pixels), 1, 1, 1, device=pixels.device, dtype=pixels.dtype) - 1
        change = changes[number]
        pixels = change(pixels, drawn * hue if change is _hue_shifted else 1 + strength * drawn)
    return pixels


def random_grey(pixels: Tensor, probability: float) -> Tensor:
    """Take the colour out of each image (N, C, H, W) with a probability."""
    drawn = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) < probability
    return torch.where(drawn, grey(pixels).expand_as(pixels), pixels)


def grey(pixels: Tensor) -> Tensor:
    """Return the luminance (N, 1, H, W) of images (N, 3, H, W), by the weights of ITU-R 601; of one channel itself."""
    if pixels.shape[1] != 3:
        return pixels
    red, green, blue = pixels.unbind(1)
    return (0.2989 * red + 0.587 * green + 0.114 * blue)[:, None]


def _brightened(pixels: Tensor, factor: Tensor) -> Tensor:
    return (factor * pixels).clamp(0, 1)


def _contrasted(pixels: Tensor, factor: Tensor) -> Tensor:
    return (factor * pixels + (1 - factor) * grey(pixels).mean((1, 2, 3), keepdim=True)).clamp(0, 1)


def _saturated(pixels: Tensor, factor: Tensor) -> Tensor:
    return (factor * pixels + (1 - factor) * grey(pixels)).clamp(0, 1)


def _hue_shifted(pixels: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of colours (N, 3, H, W) by a part of the circle (N, 1, 1, 1); lightness and saturation stay."""
    red, green, blue = pixels.unbind(1)
    value, lowest = pixels.amax(1), pixels.amin(1)
    chroma = value - lowest
    divisor = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(
        value == red,
        (green - blue) / divisor,
        torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    sector = (hue + 6 * shift[:, 0]) % 6
    # Of each channel (red 5, green 3, blue 1) the share of the chroma is the height of a trapezoid over the circle.
    parts = [(sector + start) % 6 for start in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(part, 4 - part).clamp(0, 1) for part in parts], 1)
