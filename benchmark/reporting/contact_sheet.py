"""Draw contact sheets of problems: images by class, molecules in space, vectors as scatter plots, by environment."""

import textwrap
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.point_clouds import points
from invbench.core.data import Problem, Split
from invbench.core.task import Regression
from invbench.reporting.drawing import save
from invbench.system.workarounds import torchvision

MOST_NUMBERS = 1 << 24
"""Most numbers of the images of which the range is taken."""
GROUPS, COLUMNS, TILES, DOTS = 6, 10, 4, 1500
"""Largest numbers of rows of a sheet, of its columns, of images in a cell, and of dots in a panel."""
TITLE_LETTERS = 11
"""Letters of the title that fit into an inch."""
LABEL_COLOURS = ("#0072b2", "#d55e00")
ELEMENTS = {1: ("#c8c8c8", 30), 6: ("#303030", 80), 7: ("#3050f8", 80), 8: ("#e02020", 80), 9: ("#40b040", 80)}
"""Colour and size of a dot by nuclear charge."""
BOND, BOND_WITH_HYDROGEN = 1.75, 1.25
"""Largest distance in Å of atoms that are joined by a line."""


def contact_sheet(problem: Problem, title: str, path: Path) -> None:
    """Draw examples of every environment, or of every split where there are none, to a picture file."""
    draw = {"image": _images, "point_cloud": _molecules, "vector": _scatter}[problem.kind]
    figure = draw(problem)
    sizes = ", ".join(f"{name} {len(split):,}" for name, split in problem.splits.items())
    width = int(TITLE_LETTERS * figure.get_figwidth())
    figure.suptitle(textwrap.fill(f"{title} ({problem.variant}; {sizes})", width), fontsize=11)
    save(figure, path, dpi=110)


def _groups(problem: Problem) -> Iterator[tuple[str, Split]]:
    """Yield the training environments, as many as fit, then the other splits."""
    train = problem.splits["train"]
    others = {name: split for name, split in problem.splits.items() if name != "train"}
    if train.env is None:
        yield "train", train
    else:
        for e in range(min(problem.environments, max(GROUPS - len(others), 2))):
            yield f"train\nenvironment {e}", train.rows(train.env == e)
    yield from others.items()


def _images(problem: Problem) -> Figure:
    """Draw images: rows are groups, columns are classes or intervals of the target."""
    groups = list(_groups(problem))
    columns = _columns(problem)
    figure = Figure(figsize=(1.2 + 1.25 * len(columns), 1.0 + 1.25 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), len(columns), squeeze=False)
    train = problem.splits["train"].x
    low, high = _range(train[: max(1, min(DOTS, MOST_NUMBERS // train[0].numel()))])
    for (label, _, _), ax in zip(columns, axes[0], strict=True):
        ax.set_title(label, fontsize=8)
    for (name, split), row in zip(groups, axes, strict=True):
        row[0].set_ylabel(name, fontsize=8)
        for (_, first, last), ax in zip(columns, row, strict=True):
            inside = split.rows((split.y >= first) & (split.y < last))
            ax.set(xticks=[], yticks=[])
            if len(inside):
                ax.imshow(_tiled((_some(inside, TILES).inputs() - low) / (high - low)))
    return figure


def _some(split: Split, count: int) -> Split:
    """Return `count` examples of a split at random, always the same ones."""
    return split.rows(torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:count])


def _columns(problem: Problem) -> list[tuple[str, float, float]]:
    """Return the name, and the range of the target, of each column."""
    if isinstance(problem.task, Regression):
        y = problem.splits["train"].y.double()
        edges = torch.quantile(y, torch.linspace(0, 1, COLUMNS + 1, dtype=torch.float64)).tolist()
        edges[-1] += 1e-6
        return [(f"{a:.0f} to {b:.0f}", a, b) for a, b in pairwise(edges)]
    count = min(COLUMNS, max(problem.task.outputs, 2))
    names = problem.classes or [f"class {label}" for label in range(count)]
    return [(names[label], label, label + 1) for label in range(count)]


def _range(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least and the largest pixel of each channel (C, 1, 1)."""
    pixels = x.transpose(0, 1).flatten(1)
    low, high = pixels.amin(1), pixels.amax(1)
    return low[:, None, None], torch.where(high > low, high, low + 1)[:, None, None]


def _tiled(images: Tensor) -> NDArray[np.float32]:
    """Put images (N, C, H, W) in [0, 1] side by side, as colours (H', W', 3); two channels are red and green."""
    if images.shape[1] == 2:
        images = torch.cat([images, torch.zeros_like(images[:, :1])], dim=1)
    grid = torchvision().utils.make_grid(images.clamp(0, 1), nrow=2, padding=1, pad_value=1.0)
    return np.asarray(grid.permute(1, 2, 0))


def _molecules(problem: Problem) -> Figure:
    """Draw molecules: rows are groups, columns are a few molecules of each."""
    groups = list(_groups(problem))
    figure = Figure(figsize=(2.4 * TILES, 0.6 + 2.4 * len(groups)), layout="constrained")
    axes = figure.subplots(len(groups), TILES, squeeze=False, subplot_kw={"projection": "3d"})
    for (name, split), row in zip(groups, axes, strict=True):
        for ax, x, y in zip(row, split.inputs(), split.y.tolist(), strict=False):
            cloud = points(x)
            _molecule(ax, cloud.positions[cloud.mask].numpy(), cloud.charges[cloud.mask].long().tolist())
            ax.set_title(f"{name.replace(chr(10), ' ')}\ny = {y:.3f}", fontsize=8)
        for ax in row[len(split) :]:
            ax.set_axis_off()
    return figure


def _molecule(ax: Axes3D, positions: NDArray[np.float32], charges: list[int]) -> None:
    """Draw a molecule of atoms at positions (N, 3) in Å, with lines for bonds."""
    for i, first in enumerate(positions):
        for j in range(i):
            reach = BOND_WITH_HYDROGEN if 1 in (charges[i], charges[j]) else BOND
            if np.linalg.norm(first - positions[j]) < reach:
                ax.plot(*np.stack([first, positions[j]], axis=1), color="#909090", linewidth=1.5)
    colours, sizes = zip(*(ELEMENTS.get(charge, ("#c000c0", 80)) for charge in charges), strict=True)
    ax.scatter(*positions.T, c=colours, s=sizes, depthshade=False, edgecolors="black", linewidths=0.4)
    ax.set_axis_off()
    ax.set_aspect("equal")


def _scatter(problem: Problem) -> Figure:
    """Draw vectors: columns are groups, rows are the first two inputs, the first and the last, and the nuisance."""
    groups = list(_groups(problem))
    width = problem.input_shape[0]
    pairs = [(0, 1)] if width <= 2 else [(0, 1), (0, width - 1)]
    rows = len(pairs) + (problem.splits["train"].nuisance is not None)
    figure = Figure(figsize=(0.6 + 2.6 * len(groups), 0.8 + 2.4 * rows), layout="constrained")
    axes = figure.subplots(rows, len(groups), squeeze=False, sharex="row", sharey="row")
    for (name, split), column in zip(groups, axes.T, strict=True):
        column[0].set_title(name.replace("\n", " "), fontsize=9)
        for (first, second), ax in zip(pairs, column, strict=False):
            _dots(ax, _some(split, DOTS), first, second, problem)
        if split.nuisance is not None:
            _histogram(column[-1], split.nuisance.reshape(len(split), -1)[:, 0], split.y)
    return figure


def _dots(ax: Axes, split: Split, first: int, second: int, problem: Problem) -> None:
    """Draw one input against another, coloured by the target."""
    x, y = split.inputs()[:, first], split.inputs()[:, second]
    regression = isinstance(problem.task, Regression)
    colours = split.y.numpy() if regression else [LABEL_COLOURS[int(label) % 2] for label in split.y.tolist()]
    scale = _scale(problem) if regression else None
    size = 4 if len(split) > TILES else 40
    colormap = "viridis" if regression else None
    dots = ax.scatter(x.numpy(), y.numpy(), c=colours, s=size, linewidths=0, cmap=colormap, norm=scale)
    ax.set_xlabel(f"input {first}", fontsize=8)
    ax.set_ylabel(f"input {second}", fontsize=8)
    ax.tick_params(labelsize=7)
    if regression:
        ax.figure.colorbar(dots, ax=ax).ax.tick_params(labelsize=7)


def _scale(problem: Problem) -> Normalize:
    """Return one scale of colours for all panels, from the 1 % to the 99 % quantile of the targets."""
    low, high = np.quantile(problem.splits["train"].y.numpy(), (0.01, 0.99))
    return Normalize(low, high)


def _histogram(ax: Axes, nuisance: Tensor, y: Tensor) -> None:
    """Draw histograms of a nuisance (N,) by class."""
    for label, colour in enumerate(LABEL_COLOURS):
        values = nuisance[y == label].numpy()
        if not len(values):
            continue
        ax.hist(values, bins=40, histtype="step", color=colour, density=True, label=f"class {label}")
    ax.set_xlabel("nuisance", fontsize=8)
    ax.tick_params(labelsize=7)
    ax.legend(fontsize=7)
