"""Digits whose colour goes with the label more closely than their shape does: the construction of coloured MNIST."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.data import Split
from invbench.errors import UserError

IRM_FLIPS = (0.2, 0.1, 0.9)
"""How often the colour contradicts the label in the two training environments and in the test."""


def coloured(
    images: Tensor,
    digits: NDArray[np.uint8],
    env: NDArray[np.int64],
    flips: tuple[float, ...],
    rng: np.random.Generator,
    *,
    label_noise: float = 0.25,
    grayscale: bool = False,
) -> Split:
    """Label 1[digit < 5] flipped with probability `label_noise`; colour = label flipped with that of the environment.

    Args:
        images: (N, 1, H, W), pixels in [0, 1].
        digits: 0 to 9 (N,).
        env: environment of each image (N,), an index of `flips`.
        flips: how often the colour contradicts the label in each environment.
        grayscale: leave the colour out of the image, one channel: the oracle.

    Returns:
        Images with two channels of which one is zero, binary labels as integers, and the colour as nuisance.
    """
    label = (digits < 5) ^ (rng.random(len(digits)) < label_noise)
    colour = label ^ (rng.random(len(digits)) < np.asarray(flips)[env])
    color_index = torch.from_numpy(colour.astype(np.int64))
    channels = torch.nn.functional.one_hot(color_index, 2).to(images)
    x = images if grayscale else images * channels[:, :, None, None]
    return Split(x, torch.from_numpy(label.astype(np.int64)), torch.from_numpy(env), color_index)


def irm_splits(
    images: Tensor,
    digits: NDArray[np.uint8],
    train: int,
    rng: np.random.Generator,
    *,
    label_noise: float = 0.25,
    grayscale: bool = False,
) -> dict[str, Split]:
    """Divide as the IRM paper does: the first `train` images dealt to two environments, the rest are the test."""
    env = np.where(np.arange(len(digits)) < train, alternating(len(digits), 2), 2)
    whole = coloured(images, digits, env, IRM_FLIPS, rng, label_noise=label_noise, grayscale=grayscale)
    return {"train": whole.rows(slice(train)), "test": whole.rows(slice(train, None))}


def alternating(count: int, environments: int) -> NDArray[np.int64]:
    """Number examples by environments 0, 1, ... in turn."""
    return np.arange(count) % environments


def with_groups(
    images: Tensor,
    digits: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    label_noise: float,
    colour_noise: float,
    label_share: float,
    colour_share: float,
) -> Split:
    """Label 1[digit ≥ 5] flipped with probability `label_noise`; colour = label flipped with `colour_noise`.

    Args:
        images: (N, 1, H, W), pixels in [0, 1].
        digits: 0 to 9 (N,).
        label_share: of label 1 among what is returned; the other label's images, or its own, are left out at random.
        colour_share: the same of colour 1, ahead of that.

    Returns:
        Images with two channels of which one is zero, in their order, binary labels as integers, and the colour as
        attribute and as nuisance.
    """
    label = (digits >= 5) ^ (rng.random(len(digits)) < label_noise)
    colour = label ^ (rng.random(len(digits)) < colour_noise)
    rows = thinned(np.arange(len(digits)), colour, colour_share, rng)
    rows = thinned(rows, label[rows], label_share, rng)
    attribute = torch.from_numpy(colour[rows].astype(np.int64))
    channels = torch.nn.functional.one_hot(attribute, 2).to(images)
    x = images[torch.from_numpy(rows)] * channels[:, :, None, None]
    return Split(x, torch.from_numpy(label[rows].astype(np.int64)), nuisance=attribute, attribute=attribute)


def thinned(
    rows: NDArray[np.int64], one: NDArray[np.bool_], share: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Leave rows (N,) out at random so that those that are `one` (N,) have a share; return the others in order."""
    if share == 0.5:
        return rows
    thinner, others = (rows[one], rows[~one]) if share < 0.5 else (rows[~one], rows[one])
    least = min(share, 1 - share)
    size = int(len(others) * least / (1 - least))
    if size > len(thinner):
        raise UserError(f"label_share and colour_share: with {share:g}, {size} images are needed of {len(thinner)}")
    kept = rng.choice(thinner, size, replace=False)
    return np.sort(np.concatenate([others, kept]))
