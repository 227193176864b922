"""Draw tables of means: learning curves, ranks of methods, cost, and the effect of settings."""

import math
from collections.abc import Hashable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invbench.errors import UserError
from invbench.reporting.style import LINES, PANEL, Look, Style, band, finish, labels_of, looks_of, within_range
from invbench.results.columns import SECTIONS, as_text, settings_of
from invbench.results.display_names import display_dataset, display_method, display_metric
from invbench.results.layout import PAPER, rank_table
from invbench.results.load import curves_of
from invbench.results.statistics import critical_difference
from invbench.runs.folder import RunFolder

KINDS_OF = {
    "--metric": ("curves", "ranks", "critical", "cost", "sensitivity"),
    "--select": ("curves", "ranks", "critical", "cost", "profile"),
}
"""Figures that an option of `bench plot` is for; options that are not listed are for all."""
INK = "#202020"
"""Colour of text on light cells; black would become light on a dark page."""
MARKERS = "os^Dv"
"""A marker for each of LINES, which tell curves of one colour apart."""
WIDE = 20
"""Ratio of the largest to the least value above which an axis is logarithmic."""
GREY = "#808080"
DIGITS = 3
"""Largest number of significant digits of a value in a grid; a search draws values with more."""


def curves(table: pd.DataFrame, results: pd.DataFrame, metric: str | None = None) -> Figure:
    """Draw learning curves: mean over seeds and their range, a panel per dataset, a line per method and settings.

    Args:
        table: as `invbench.table` returns it, from `results`; so in all functions here.
        results: as `load_results` returns it.
        metric: a column of the runs' curves; the table's where it is None.

    Raises:
        UserError: no curve has the metric.
    """
    paths = dict(zip(results["run_id"], results["path"], strict=True))
    panels = _panels(table)
    figure, axes = _grid(len(panels))
    looks = _looks(table)
    run_ids = [run_id for rows in panels.values() for group in rows["run_ids"] for run_id in group]
    tables = dict(zip(run_ids, curves_of([RunFolder(Path(paths[run_id])) for run_id in run_ids]), strict=True))
    for (dataset, rows), ax in zip(panels.items(), axes, strict=False):
        name = metric or str(rows["metric"].iloc[0])
        for row, run_ids in rows["run_ids"].items():
            read = [_curve(tables[run_id], name) for run_id in run_ids]
            known = [curve for curve in read if len(curve)]
            if steps := sorted(set(known[0].index).intersection(*(curve.index for curve in known))) if known else []:
                values = [np.asarray(curve.loc[steps], float) for curve in known]
                band(ax, np.asarray(steps), values, *looks[row])
        if len(ax.lines) and name == rows["metric"].iloc[0] and not math.isnan(rows["constant"].iloc[0]):
            ax.axhline(rows["constant"].iloc[0], color=GREY, linestyle=":", linewidth=1.2, label="constant prediction")
        ax.set_title(display_dataset(dataset), fontsize=10)
        ax.set_xlabel("step", fontsize=9)
        ax.set_ylabel(display_metric(name), fontsize=9)
    if not any(ax.lines for ax in axes):
        missing = f"'{metric}'" if metric else "the metric of its task"
        raise UserError(f"no curve has {missing}; --metric names a column of curves.parquet, such as test_loss")
    return finish(figure, axes)


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` panels, up to three in a row, four as a square."""
    columns = 2 if count == 4 else min(3, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(0.6 + 1.6 * PANEL * columns, 0.6 + 1.4 * PANEL * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in axes[count:]:
        ax.set_axis_off()
    return figure, axes[:count]


def _curve(rows: pd.DataFrame | None, name: str) -> pd.Series:
    """Return the finite numbers in one column of a run's curves by step; empty where there is none."""
    if rows is None or name not in rows:
        return pd.Series(dtype=float)
    curve: pd.Series = rows.drop_duplicates("step", keep="last").set_index("step", drop=False)[name]
    return curve.where(np.isfinite(curve.to_numpy(float))).dropna()


def ranks(table: pd.DataFrame) -> Figure:
    """Draw a heat map of the ranks of methods (rows) on datasets (columns); 1 is the best, the last column the mean."""
    ranked = _ranked(table)
    order = ranked.mean().sort_values().index
    cells = ranked[order].T.assign(mean=ranked.mean())
    figure = Figure(figsize=(2.2 + 0.85 * cells.shape[1], 1.4 + 0.36 * len(cells)), layout="constrained")
    ax = figure.subplots()
    picture = ax.imshow(cells, cmap="cividis_r", vmin=1, vmax=len(cells), aspect="auto")
    ax.set_xticks(range(cells.shape[1]), [*ranked.index, "mean"], rotation=35, ha="right", fontsize=9)
    ax.set_yticks(range(len(cells)), list(map(display_method, order)), fontsize=9)
    for (row, column), value in np.ndenumerate(cells.to_numpy()):
        dark = value > (1 + len(cells)) / 2
        ax.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=9, color="w" if dark else INK)
    ax.axvline(cells.shape[1] - 1.5, color="w", linewidth=3)
    figure.colorbar(picture, label="rank (1 is the best)", shrink=0.8)
    return figure


def critical(table: pd.DataFrame) -> Figure:
    """Draw a critical-difference diagram of mean ranks over the datasets (Demšar 2006).

    A bar joins methods that the Nemenyi test cannot tell apart at 5 %.
    """
    ranked = _ranked(table)
    means = ranked.mean().sort_values()
    count = len(means)
    difference = critical_difference(count, len(ranked))
    half = math.ceil(count / 2)
    bars = list(_cliques(means.to_numpy(), difference))
    height = 1.0 + 0.28 * half + 0.16 * len(bars)
    figure = Figure(figsize=(7.5, height), layout="constrained")
    ax = figure.subplots()
    ax.set(xlim=(1 - 0.25 * count, count + 0.25 * count), ylim=(-(1.2 + 0.7 * half + 0.45 * len(bars)), 2.2))
    ax.set_axis_off()
    ax.hlines(0, 1, count, color="k", linewidth=1)
    for tick in range(1, count + 1):
        ax.vlines(tick, 0, 0.2, color="k", linewidth=1)
        ax.text(tick, 0.35, str(tick), ha="center", va="bottom", fontsize=9)
    ax.hlines(1.5, 1, min(1 + difference, count), color="k", linewidth=2)
    remark = "" if difference <= count - 1 else ", off the scale"
    ax.text(1, 1.6, f"critical difference {difference:.2f}{remark} ({len(ranked)} datasets)", va="bottom", fontsize=9)
    for level, (first, last) in enumerate(bars):
        ax.hlines(-0.4 - 0.45 * level, first - 0.04, last + 0.04, color="#0072b2", linewidth=4)
    base = -0.6 - 0.45 * len(bars)
    for position, (name, rank) in enumerate(means.items()):
        left = position < half
        depth = base - 0.7 * (position if left else count - 1 - position)
        end = 1 - 0.1 * count if left else count + 0.1 * count
        ax.plot([rank, rank, end], [0, depth, depth], color="#606060", linewidth=0.8)
        method = display_method(str(name))
        text = f"{method}  {rank:.2f}" if left else f"{rank:.2f}  {method}"
        ax.text(end, depth, text + " " if left else " " + text, ha="right" if left else "left", va="center", fontsize=9)
    return figure


def _cliques(means: NDArray[np.float64], difference: float) -> Iterator[tuple[float, float]]:
    """Yield first and last mean rank of each largest group whose members are closer than the difference.

    Args:
        means: mean ranks, sorted.
        difference: the critical difference.
    """
    reached = -1
    for first in range(len(means)):
        last = int(np.searchsorted(means, means[first] + difference, side="left")) - 1
        if last > first and last > reached:
            yield means[first], means[last]
            reached = last


def cost(table: pd.DataFrame) -> Figure:
    """Draw the metric against the time of a step and against peak memory, with 95 % t-intervals.

    There is a row per dataset and a point per method and settings. Hollow points are of runs trained together, each of
    which has an equal share of the time.
    """
    panels = _panels(table)
    figure = Figure(figsize=(3.6 * PANEL, 0.7 + 1.1 * PANEL * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 2, squeeze=False, sharey="row")
    looks = _looks(table)
    for (dataset, rows), (left, right) in zip(panels.items(), axes, strict=True):
        for index, row in rows.iterrows():
            style, label, _ = looks[index]
            milliseconds, spread = row["seconds_per_step"] * 1e3, row["seconds_per_step_half_width"] * 1e3
            look = {"color": style["color"], "marker": MARKERS[LINES.index(style["linestyle"])], "linestyle": ""}
            look |= {"markersize": 5, "markerfacecolor": "none" if row["fused"] > 1 else style["color"]}
            vertical, horizontal = _spreads(rows.loc[[index]]), [[min(spread, milliseconds)], [spread]]
            left.errorbar(milliseconds, row["mean"], vertical, horizontal, elinewidth=0.8, **look)
            right.errorbar(row["peak_memory_bytes"] / 2**20, row["mean"], vertical, elinewidth=0.8, **look)
            left.plot([], [], label=label, **look | {"markerfacecolor": style["color"]})
        if rows["seconds_per_step"].max() > WIDE * rows["seconds_per_step"].min() > 0:
            left.set_xscale("log")
        else:
            _from_zero(left)
        _from_zero(right)
        left.set_ylabel(f"{display_dataset(dataset)}\n{display_metric(rows['metric'].iloc[0])}", fontsize=9)
    shares = "\nhollow: the share of a run that was trained together with others" if (table["fused"] > 1).any() else ""
    axes[-1][0].set_xlabel(f"milliseconds per step{shares}", fontsize=9)
    axes[-1][1].set_xlabel("peak memory (MiB)", fontsize=9)
    return finish(figure, [left for left, _ in axes])


def _from_zero(ax: Axes) -> None:
    """Let the x axis begin at zero."""
    end = ax.dataLim.x1
    ax.set_xlim(0, 1.05 * end if 0 < end < math.inf else 1)


def sensitivity(table: pd.DataFrame) -> Figure:
    """Draw the metric against each numeric setting that was varied, a panel per dataset and setting.

    There is a point for each mean. Where the values are those of a grid, a line per method joins the best at each.

    Raises:
        UserError: no setting was varied.
    """
    varied = list(_varied(table))
    if not varied:
        raise UserError("no setting was run with several numbers; a sweep's grid or search does that")
    figure, axes = _grid(len(varied))
    looks = looks_of((method, method) for method in map(str, table["method"]))  # as in figures of all methods
    for (dataset, name, rows), ax in zip(varied, axes, strict=False):
        for method, points in rows.groupby("method"):
            _sensitivity_of(ax, str(method), points, name, looks[str(method)].style)
        values = rows[name].abs()
        if values.min() > 0 and values.max() > WIDE * values.min():
            ax.set_xscale("log")
        ax.set_title(display_dataset(dataset), fontsize=10)
        ax.set_xlabel(name, fontsize=9)
        ax.set_ylabel(display_metric(rows["metric"].iloc[0]), fontsize=9)
    return finish(figure, axes)


def _sensitivity_of(ax: Axes, method: str, points: pd.DataFrame, name: str, style: Style) -> None:
    """Draw the means of one method against one setting."""
    colour, marker = style["color"], MARKERS[LINES.index(style["linestyle"])]
    look = {"color": colour, "marker": marker, "markersize": 3}
    ax.errorbar(points[name], points["mean"], _spreads(points), elinewidth=0.6, linestyle="", **look)
    grid = _of_a_grid(points, name)
    if grid:
        by_value = points.groupby(name)["mean"]
        best = by_value.max() if points["higher_is_better"].iloc[0] in (True, None) else by_value.min()
        ax.plot(best.index, best, **style, linewidth=1.2)
    ax.plot([], [], linestyle=style["linestyle"] if grid else "", label=display_method(method), **look)


def _of_a_grid(points: pd.DataFrame, name: str) -> bool:
    """Tell whether one method's values of a setting are those of a grid, not of a search.

    In a grid each value comes with several values of another setting; or no other setting differs, and all values are
    short numbers. A search draws all settings of a trial anew.
    """
    others = [setting for setting in settings_of(points) if setting != name]
    alone = not any(as_text(points, others).nunique() > 1)
    if alone:
        return all(value == float(f"{value:.{DIGITS}g}") for value in points[name])
    return bool((points[name].value_counts() > 1).all())


def _spreads(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Return half the intervals of means, below and above (2, N); those of shares end at 0 and 1."""
    half = rows["half_width"].fillna(0.0).to_numpy(float)
    return within_range(str(rows["metric"].iloc[0]), rows["mean"].to_numpy(float), half)


def _varied(table: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield dataset, setting and rows for every numeric setting in which some method's rows differ."""
    for dataset, rows in _panels(table).items():
        for name in (str(column) for column in table if str(column).startswith(SECTIONS)):
            numeric = rows[pd.to_numeric(rows[name], errors="coerce").notna() & ~rows[name].map(_is_bool)]
            numeric = numeric.assign(**{name: numeric[name].astype(float)})
            if len(numeric) and numeric.groupby("method")[name].nunique().max() > 1:
                yield dataset, name, numeric


def _is_bool(value: object) -> bool:
    return isinstance(value, bool | np.bool_)


def _panels(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the rows of each dataset."""
    return {str(dataset): rows for dataset, rows in table.groupby("dataset")}


def _looks(table: pd.DataFrame) -> dict[Hashable, Look]:
    """Choose the look of each row, by its index."""
    labels = labels_of(table)
    looks = looks_of(zip(map(str, table["method"]), labels, strict=True))
    return dict(zip(table.index, map(looks.__getitem__, labels), strict=True))


def _ranked(table: pd.DataFrame) -> pd.DataFrame:
    """Rank methods (columns) on datasets (rows). Raises UserError where there are too few of either."""
    ranked = rank_table(table, PAPER)
    if ranked is None:
        raise UserError(
            "ranks need one row per method and dataset, of metrics whose direction is known; --select chooses settings "
            "where a method has several"
        )
    if ranked.shape[0] < 2 or ranked.shape[1] < 3:
        raise UserError(
            f"ranks need at least 3 methods on at least 2 datasets that all of them have; here are "
            f"{ranked.shape[1]} methods on {ranked.shape[0]} such datasets"
        )
    return ranked
