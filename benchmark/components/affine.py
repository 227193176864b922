"""Affine transformations of images and point clouds: generators, their exponential, and how it acts.

A transformation is exp(Σ_k ε_k G_k). Images have the six generators of the plane in homogeneous coordinates (3x3), on
the square [-1, 1]² whatever the image's aspect ratio; point clouds the twelve of space (4x4). Both as in the released
code of Augerino (Benton et al. 2020, arXiv 2010.11882).
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.components.point_clouds import points
from invbench.core.data import Problem

Entries = tuple[tuple[int, int, float], ...]
"""Row, column and value of the entries of a matrix that are not zero."""

PLANE: Mapping[str, Entries] = {
    "translation_x": ((0, 2, 0.1),),
    "translation_y": ((1, 2, 0.1),),
    "rotation": ((0, 1, -1.0), (1, 0, 1.0)),
    "scale": ((0, 0, 1.0), (1, 1, 1.0)),
    "stretch": ((0, 0, 1.0), (1, 1, -1.0)),
    "shear": ((0, 1, 1.0), (1, 0, 1.0)),
}
"""Generators of images. A unit of rotation is a radian, of translation a twentieth of the image's side."""
SPACE: Mapping[str, Entries] = {
    "rotation_x": ((1, 2, -1.0), (2, 1, 1.0)),
    "rotation_y": ((0, 2, 1.0), (2, 0, -1.0)),
    "rotation_z": ((0, 1, -1.0), (1, 0, 1.0)),
    "shear_yz": ((1, 2, 1.0), (2, 1, 1.0)),
    "shear_xz": ((0, 2, 1.0), (2, 0, 1.0)),
    "shear_xy": ((0, 1, 1.0), (1, 0, 1.0)),
    "stretch_xy": ((0, 0, 1.0), (1, 1, -1.0)),
    "stretch_yz": ((1, 1, 1.0), (2, 2, -1.0)),
    "scale": ((0, 0, 1.0), (1, 1, 1.0), (2, 2, 1.0)),
    "translation_x": ((0, 3, 0.5),),
    "translation_y": ((1, 3, 0.5),),
    "translation_z": ((2, 3, 0.5),),
}
"""Generators of point clouds. A unit of rotation is a radian, of translation half an Å."""

SHIFT = 0.5
"""Standard deviation of a random motion's shift, Å."""

SQUARINGS = {torch.float32: 5, torch.float64: 9}

Action = Callable[[Tensor, Tensor], Tensor]
"""Function from inputs (N, ...) and matrices (N, d, d) to transformed inputs (N, ...)."""


def generators(problem: Problem) -> Mapping[str, Entries]:
    """Return the generators that act on the problem's inputs, by name."""
    return PLANE if problem.kind == "image" else SPACE


def basis(problem: Problem, names: Iterable[str]) -> Tensor:
    """Return the named generators as matrices (k, d, d)."""
    size = 3 if problem.kind == "image" else 4
    return torch.stack([_matrix(generators(problem)[name], size) for name in names])


def _matrix(entries: Entries, size: int) -> Tensor:
    matrix = torch.zeros(size, size)
    for row, column, value in entries:
        matrix[row, column] = value
    return matrix


def exponential(coefficients: Tensor, matrices: Tensor) -> Tensor:
    """Compute exp(Σ_k ε_k G_k) for coefficients (..., k) and generators (k, d, d): (..., d, d).

    exp(A) = exp(A / 2^s)^(2^s), the inner one by its series to the sixth power: exact to rounding for norms up to 10.
    `torch.linalg.matrix_exp` picks its orders from the values, for which it waits for the device and sorts the
    batch; that takes more than half of a layer's time.
    """
    squarings = SQUARINGS[coefficients.dtype]
    scaled = matrices.flatten(1) / 2**squarings
    a = (coefficients @ scaled).unflatten(-1, matrices.shape[1:])
    identity = torch.eye(matrices.shape[-1], dtype=a.dtype, device=a.device)
    square = a @ a
    cube = square @ a
    low, high = identity + a + square / 2, identity / 6 + a / 24 + square / 120 + cube / 720
    result: Tensor = low + cube @ high
    for _ in range(squarings):
        result = result @ result
    return result


def action(problem: Problem) -> Action:
    """Return the function by which matrices act on the problem's inputs."""
    if problem.kind == "point_cloud":
        return transform_points
    pixels = problem.pixels
    if not any(pixels.mean):
        return transform_images
    return lambda x, matrices: transform_images(x - pixels.black(x), matrices) + pixels.black(x)


def transform_images(x: Tensor, matrices: Tensor) -> Tensor:
    """Sample images (N, C, H, W) where the matrices (N, 3, 3) send each pixel; bilinear, corners aligned, 0 outside.

    The grid is that of `affine_grid` by one matrix product, in half the time.
    """
    height, width = x.shape[-2:]
    grid = (_pixels(height, width, x.dtype, x.device) @ matrices[:, :2].mT).unflatten(1, (height, width))
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)


@cache
def _pixels(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the homogeneous coordinates of all pixels (height · width, 3), corners at -1 and 1."""
    vertical, horizontal = (torch.linspace(-1, 1, length, dtype=dtype, device=device) for length in (height, width))
    y, x = torch.meshgrid(vertical, horizontal, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1).flatten(0, 1)


def transform_points(x: Tensor, matrices: Tensor) -> Tensor:
    """Map each position p of point clouds (N, n, 4) to p M[:3, :3] + M[:3, 3], with matrices M (N, 4, 4)."""
    return _moved(x, lambda positions: positions @ matrices[:, :3, :3] + matrices[:, None, :3, 3])


def random_motion(x: Tensor) -> Tensor:
    """Shift each point cloud (N, n, 4) by 0.5 N(0, 1)³ Å, then rotate it by a uniform element of SO(3)."""
    shift = SHIFT * torch.randn(len(x), 1, 3, dtype=x.dtype, device=x.device)
    return _moved(x, lambda positions: (positions + shift) @ random_rotations(x))


def _moved(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Change the positions where there is a point, and leave the padding."""
    positions, charges, mask = points(x)
    return torch.cat([torch.where(mask[..., None], change(positions), positions), charges[..., None]], dim=-1)


def random_rotations(x: Tensor) -> Tensor:
    """Draw a rotation matrix for each of N inputs (N, 3, 3), from a normalised quaternion of Gaussians."""
    w, i, j, k = F.normalize(torch.randn(len(x), 4, dtype=x.dtype, device=x.device), dim=-1).unbind(-1)
    rows = [
        (1 - 2 * (j * j + k * k), 2 * (i * j - k * w), 2 * (i * k + j * w)),
        (2 * (i * j + k * w), 1 - 2 * (i * i + k * k), 2 * (j * k - i * w)),
        (2 * (i * k - j * w), 2 * (j * k + i * w), 1 - 2 * (i * i + j * j)),
    ]
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
