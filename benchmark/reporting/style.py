"""Give all figures one style: colours, lines, labels, legends."""

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.results.columns import differing
from invbench.results.display_names import display_method
from invbench.results.statistics import is_share
from invbench.runs.spec import RunSpec

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#f0e442")
"""Palette of Okabe and Ito, which people with colour blindness can tell apart."""


LINES = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))


PANEL = 2.6
"""Size of a panel in inches."""


Curves = list[NDArray[np.float64]]


Style = dict[str, Any]


def band(ax: Axes, x: NDArray[Any], runs: Curves, style: Style, label: str, shared: bool = False) -> None:
    """Draw the mean of runs and their range.

    Args:
        ax: axes to draw on.
        x: steps or the like (N,).
        runs: values (N,) of each run.
        style, label, shared: as in `Look`.
    """
    values = np.stack(runs)
    ax.plot(x, values.mean(0), **style, linewidth=0.8 if shared else 1.5, label=f"{label} (n = {len(runs)})")
    if len(runs) > 1 and not shared:
        ax.fill_between(x, values.min(0), values.max(0), color=style["color"], alpha=0.14, linewidth=0)


def within_range(metric: str, mean: NDArray[np.float64], half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how far intervals reach below and above their means (2, N); those of shares end at 0 and 1."""
    low, high = (0.0, 1.0) if is_share(metric) else (-math.inf, math.inf)
    return np.stack([np.minimum(half, mean - low), np.minimum(half, high - mean)]).clip(min=0)


def groups_of(specs: Sequence[RunSpec]) -> dict[tuple[str, str], list[int]]:
    """Group runs that differ in nothing but the seed; return their positions by label and dataset.

    The label is the method, with the settings in which its runs on the dataset differ.
    """
    rows = pd.DataFrame([{"method": s.method, "dataset": s.dataset, "backbone": s.backbone} | s.flat() for s in specs])
    groups: dict[tuple[str, str], list[int]] = {}
    for index, (label, spec) in enumerate(zip(labels_of(rows, exact=True), specs, strict=True)):
        groups.setdefault((label, spec.dataset), []).append(index)
    return dict(sorted(groups.items()))


def labels_of(rows: pd.DataFrame, exact: bool = False) -> list[str]:
    """Label each row by its method and the settings in which the rows of that method and dataset differ.

    Args:
        rows: method, dataset, backbone and settings of runs.
        exact: with all digits of numbers; otherwise with four, where these tell the settings apart.
    """
    each = differing(rows)
    leaves = Counter(name.rpartition(".")[2] for name in {name for settings in each for name in settings})
    labels = []
    for method, settings in zip(rows["method"], each, strict=True):
        values = [f"{x:.4g}" if isinstance(x, float) and not exact else str(x) for x in settings.values()]
        leaf_or_all = [name.rpartition(".")[2] if leaves[name.rpartition(".")[2]] == 1 else name for name in settings]
        parts = [f"{name}={value}" for name, value in zip(leaf_or_all, values, strict=True)]
        labels.append(", ".join([display_method(str(method)), *parts]))
    if exact or len(set(labels)) == len(set(exact_labels := labels_of(rows, exact=True))):
        return labels
    return exact_labels


class Look(NamedTuple):
    """Style and label of the curve of some runs."""

    style: Style
    label: str
    """Text in the legend."""
    shared: bool = False
    """Whether other settings of the method have the same style; then no ranges are drawn, since they would overlap."""


def looks_of(pairs: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """Choose a look for each label; a method has the same colour in all figures of the same runs.

    The settings of one method differ in their lines; too many settings share one entry of the legend.

    Args:
        pairs: methods and labels, as `labels_of` makes them.
    """
    labels: dict[str, list[str]] = {}
    for method, label in sorted(set(pairs)):
        labels.setdefault(method, []).append(label)
    if len(labels) == 1 and sum(map(len, labels.values())) <= len(COLOURS) * len(LINES):
        return {label: Look(style, label) for label, style in styles_of(*labels.values()).items()}
    looks: dict[str, Look] = {}
    lines_free = len(labels) <= len(COLOURS)
    for (method, of_method), style in zip(labels.items(), styles_of(labels).values(), strict=True):
        if len(of_method) == 1:
            looks[of_method[0]] = Look(style, of_method[0])
        elif lines_free and len(of_method) <= len(LINES):
            looks |= {
                label: Look(style | {"linestyle": line}, label) for label, line in zip(of_method, LINES, strict=False)
            }
        else:
            looks |= dict.fromkeys(of_method, Look(style, f"{display_method(method)}, each setting", shared=True))
    return looks


def styles_of(names: Iterable[str]) -> dict[str, Style]:
    """Choose a colour and a line for each name. Raises UserError for more names than there are styles."""
    unique = list(dict.fromkeys(names))
    styles = [{"color": colour, "linestyle": line} for line in LINES for colour in COLOURS]
    if len(unique) > len(styles):
        raise UserError(f"{len(unique)} curves in one figure cannot be told apart; give fewer runs")
    return dict(zip(unique, styles, strict=False))


FEW_ROWS, ROW = 4, 0.2
"""Rows of a legend for which figures have room, and the inches that each further one takes."""


def finish(figure: Figure, labelled: list[Axes]) -> Figure:
    """Add small ticks, a light grid, and one legend below for the labels of some axes."""
    for ax in figure.axes:
        ax.tick_params(labelsize=8)
        if ax.axison and not ax.images:
            ax.grid(alpha=0.25, linewidth=0.5)
    handles: dict[str, Any] = {}
    for ax in labelled:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            handles.setdefault(textwrap.shorten(label, 60), handle)
    if handles:
        fitting = int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, handles))))
        columns = max(1, min(4, len(handles), fitting))
        further = max(0, math.ceil(len(handles) / columns) - FEW_ROWS)  # would take the room of the axes
        figure.set_figheight(figure.get_figheight() + ROW * further)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=9)
    return figure
