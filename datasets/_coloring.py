"""Digits whose colour goes with the label more closely than their shape does: the construction of coloured MNIST."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.data import Problem, Split, Variant
from invbench.core.groups import GroupsAlone
from invbench.core.settings import setting
from invbench.core.task import Classification
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


class ColouredGroups(GroupsAlone):
    """Digits whose label is 1[digit ≥ 5] and whose colour goes with the label in most groups."""

    label_noise: float = setting(0.25, "fraction of labels that are flipped", ge=0, le=0.5)
    colour_noise: float = setting(0.2, "fraction of examples whose colour contradicts the label", ge=0, le=1)
    label_share: float = setting(0.5, "of label 1; others are left out for it", gt=0, lt=1)
    colour_share: float = setting(0.5, "of colour 1; others are left out for it", gt=0, lt=1)

    def coloured(self, images: Tensor, digits: NDArray[np.uint8], rng: np.random.Generator, *, whole: bool) -> Split:
        """Flip labels, and colour the images by the labels with flips.

        Args:
            images: (N, 1, H, W), pixels in [0, 1].
            digits: 0 to 9 (N,).
            whole: return all images; else images are left out at random until colours, and then labels, have their
                shares.

        Returns:
            Images with two channels of which one is zero, in their order, binary labels as integers, and the colour
            as attribute and as nuisance.
        """
        label = (digits >= 5) ^ (rng.random(len(digits)) < self.label_noise)
        colour = label ^ (rng.random(len(digits)) < self.colour_noise)
        rows = np.arange(len(digits))
        if not whole:
            rows = thinned(rows, colour, self.colour_share, rng)
            rows = thinned(rows, label[rows], self.label_share, rng)
        attribute = torch.from_numpy(colour[rows].astype(np.int64))
        channels = torch.nn.functional.one_hot(attribute, 2).to(images)
        x = images[torch.from_numpy(rows)] * channels[:, :, None, None]
        return Split(x, torch.from_numpy(label[rows].astype(np.int64)), nuisance=attribute, attribute=attribute)

    @staticmethod
    def problem(splits: Mapping[str, Split], variant: Variant) -> Problem:
        """Return the problem of coloured splits."""
        names = ("below five", "five or more"), ("red", "green")
        return Problem(dict(splits), Classification(2), "image", variant, classes=names[0], attribute_names=names[1])


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
