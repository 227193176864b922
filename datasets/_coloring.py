"""Digits whose colour goes with the label more closely than their shape does: the construction of coloured MNIST."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.data import Split

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
