"""Draw analyses: curvature, width studies, risks on a plane through minima, generators that change no output."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from invbench.analysis.consistency import Environments, Plane, plane
from invbench.analysis.spectrum import Spectrum, held_still
from invbench.analysis.symmetry import FoundSymmetry
from invbench.errors import UserError
from invbench.reporting.style import COLOURS, PANEL, band, finish, styles_of
from invbench.training.build import model_on
from invbench.training.flat_module import FlatModule
from invbench.training.restored import RestoredRun

PANELS = 3
"""Largest number of environments with a panel of their own."""
LEVELS = 20
CORNERS = 3
"""Number of points that span a plane."""
GENERATORS, LEAST = 6, 1e-6
"""Most generators with a panel of their own, and the least change that is drawn."""
MARKERS = "os^D"
READABLE, FAINT = 6, 0.005
"""Largest size of matrices whose entries are written, and below which these are 0."""


def spectra(labelled: Sequence[tuple[str, Spectrum]], alphas: Sequence[float]) -> Figure:
    """Draw the largest eigenvalues by rank, N_eff over α, and N_eff against the length of the learned widths.

    Args:
        labelled: labels and spectra.
        alphas: values of α; N_eff is drawn over their range, and against widths at the middle one.
    """
    styles = styles_of(label for label, _ in labelled)
    wide = any(_width(spectrum) for _, spectrum in labelled)
    figure = Figure(figsize=((5 if wide else 3.4) * PANEL, 1.6 * PANEL), layout="constrained")
    ranks, dimensions, *against = figure.subplots(1, 3 if wide else 2)
    grid = np.geomspace(min(alphas), max(alphas), 60)
    middle = float(np.sort(alphas)[len(alphas) // 2])
    for label, spectrum in labelled:
        top = np.array(spectrum.eigenvalues)
        ranks.plot(np.arange(1, len(top) + 1), top.clip(min=top[0] * 1e-6), **styles[label], label=label)
        value, error = np.array([spectrum.effective_dimension(alpha) for alpha in grid]).T
        dimensions.plot(grid, value, **styles[label], label=label)
        dimensions.fill_between(grid, value - error, value + error, color=styles[label]["color"], alpha=0.14)
        for ax in against:
            value, error = spectrum.effective_dimension(middle)
            ax.errorbar(_width(spectrum), value, error, marker="o", color=styles[label]["color"], label=label)
    ranks.set(yscale="log", xlabel="rank", ylabel="eigenvalue of the Hessian")
    dimensions.set(xscale="log", xlabel="α", ylabel="effective dimension N_eff(α)")
    for ax in against:
        ax.set(xlabel="length of the learned widths ‖w‖", ylabel=f"N_eff({middle:g})")
    return finish(figure, [dimensions])


def _width(spectrum: Spectrum) -> float:
    """Return the length of the vector of learned widths."""
    return float(np.linalg.norm([value for name, value in spectrum.widths.items() if name.startswith("width.")]))


def width_curves(studies: Sequence[tuple[str, pd.DataFrame, float]]) -> Figure:
    """Draw risk and objective, and their slopes, over one width: means over batches and their range; a row per run.

    Args:
        studies: label, table of `width_study`, and learned width of each run.
    """
    figure = Figure(figsize=(3.6 * PANEL, 0.6 + 1.4 * PANEL * len(studies)), layout="constrained")
    axes = figure.subplots(len(studies), 2, squeeze=False)
    for (label, study, learned), row in zip(studies, axes, strict=True):
        for ax, suffix in zip(row, ("", "_slope"), strict=True):
            for name, colour in zip(("risk", "objective"), COLOURS, strict=False):
                by_batch = study.pivot_table(index="batch", columns="width", values=name + suffix)
                band(ax, by_batch.columns.to_numpy(), list(by_batch.to_numpy()), {"color": colour}, name)
            ax.axvline(learned, color="#606060", linestyle="--", linewidth=0.8)
        row[1].axhline(0, color="#606060", linewidth=0.8)
        row[0].set_title(label, fontsize=9, loc="left")
        row[0].set_ylabel("over batches: mean and range", fontsize=9)
        row[1].set_ylabel("slope by the raw number ρ", fontsize=9)
    for ax in axes[-1]:
        ax.set_xlabel("width (dashed: learned)", fontsize=9)
    return finish(figure, [axes[0, 0]])


def landscape(ends: Sequence[tuple[str, RestoredRun]], examples: int) -> Figure:
    """Draw risks on the plane through the beginning and the end of one or two runs: their mean, and by environment.

    Args:
        ends: labels and runs. Of one run the third point of the plane is random.
        examples: number of examples of each environment.

    Raises:
        UserError: the networks differ, or there are no environments.
    """
    run, environments = ends[0][1], [Environments.of(end, examples) for _, end in ends]
    thetas = [environment.theta for environment in environments]
    if any(len(theta) != len(thetas[0]) for theta in thetas):
        raise UserError("a plane through two runs needs networks of one shape")
    points = {label: theta for (label, _), theta in zip(ends, thetas, strict=True)} | {"beginning": _beginning(run)}
    if len(points) < CORNERS:
        draw = torch.Generator().manual_seed(run.config.spec.seed)
        away = torch.randn(len(thetas[0]), generator=draw).to(thetas[0])
        points["somewhere"] = thetas[0] + away / away.norm() * (points["beginning"] - thetas[0]).norm()
    first, second, third = points.values()
    return planes(plane(environments[0].risks, first, second, third), list(points))


def _beginning(run: RestoredRun) -> Tensor:
    """Return the weights with which the run began."""
    split = run.problem.splits["train"].rows(slice(1))
    return FlatModule(held_still(model_on(split.x.device, run.config, run.problem), split, 0)[0]).weights()


def planes(surface: Plane, names: Sequence[str]) -> Figure:
    """Draw the mean risk and those of the first environments, with the three points, in one scale of colours.

    Args:
        surface: as `plane` returns it.
        names: of its three points.
    """
    panels = {"mean of all environments": surface.risks.mean(0)}
    panels |= {f"environment {e}": risks for e, risks in enumerate(surface.risks[:PANELS])}
    figure = Figure(figsize=(PANEL * 1.25 * len(panels), PANEL * 1.7), layout="constrained")
    axes = figure.subplots(1, len(panels), sharex=True, sharey=True)
    low, high = max(surface.risks.min(), surface.risks.max() * 1e-4), surface.risks.max()
    if not 0 < low < high < np.inf:
        raise UserError(
            f"risks from {surface.risks.min():.3g} to {surface.risks.max():.3g} on the plane cannot be drawn"
        )
    levels = np.geomspace(low, high, LEVELS)
    for ax, (title, risks) in zip(axes, panels.items(), strict=True):
        scale = LogNorm(low, high)
        contours = ax.contourf(surface.x, surface.y, risks.clip(low), levels=levels, norm=scale, cmap="viridis")
        for (x, y), name, marker in zip(surface.points, names, "osD", strict=True):
            ax.plot(x, y, marker, color="white", markeredgecolor="black", markersize=6, label=name, linestyle="")
        ax.set_title(title, fontsize=9)
        ax.set_aspect("equal")
    figure.colorbar(contours, ax=axes, label="risk", format="%.2g")
    return finish(figure, [axes[0]])


def symmetries(labelled: Sequence[tuple[str, FoundSymmetry]]) -> Figure:
    """Draw how far generators change the outputs, and those that do least; a row per run.

    Generators of vectors are matrices of colours, those of images and point clouds bars by named generator.

    Args:
        labelled: labels and results of `invbench.analysis.symmetry`.
    """
    most = min(GENERATORS, max(len(found.generators) for _, found in labelled))
    figure = Figure(figsize=(PANEL * (1.7 + 1.1 * most), 0.3 + 1.35 * PANEL * len(labelled)), layout="constrained")
    ratios = [1.7, *[1.1] * most]
    rows = figure.subplots(len(labelled), 1 + most, squeeze=False, width_ratios=ratios)
    for (label, found), (ranks, *panels) in zip(labelled, rows, strict=True):
        _changes(ranks, found)
        ranks.set_title(f"{label}: {found.dimension} of {len(found.changes)} found", fontsize=9, loc="left")
        for number, ax in enumerate(panels):
            if number >= len(found.generators):
                ax.set_axis_off()
            elif found.names:
                _bars(ax, found.names, found.coefficients[number], labelled=number == 0)
            else:
                _matrix(ax, np.array(found.generators[number]))
            if number < len(found.generators):
                among, change = "found" if number < found.dimension else "not found", found.generator_changes[number]
                ax.set_xlabel(f"{among}, change {f'{change:.2g}' if change > LEAST else f'< {LEAST:g}'}", fontsize=9)
    return finish(figure, [row[0] for row in rows])


def _changes(ax: Axes, found: FoundSymmetry) -> None:
    """Draw changes by rank, those that were found in colour, and lines for the true generators and the tolerance."""
    changes = np.array(found.changes).clip(min=LEAST)
    ranks, count = np.arange(1, len(changes) + 1), found.dimension
    size = 6 if len(changes) < GENERATORS**2 else 3
    if count:
        ax.plot(ranks[:count], changes[:count], "o", color=COLOURS[0], markersize=size, label="found")
    if count < len(changes):
        ax.plot(ranks[count:], changes[count:], "o", color="#909090", markersize=size, label="others")
    for change in found.true_changes.values():
        ax.axhline(max(change, LEAST), color=COLOURS[1], linewidth=0.8, label="true generators")
    ax.axhline(found.tolerance, color="#606060", linestyle="--", linewidth=0.8, label="tolerance")
    ax.set(yscale="log", ylim=(min(0.03, changes[0] / 1.5), 2 * max(1.0, changes[-1])))
    ax.set_xlabel("generator, by its change", fontsize=9)
    ax.set_ylabel("change of the outputs", fontsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def _matrix(ax: Axes, generator: NDArray[np.float64]) -> None:
    """Draw a matrix by signed colours, with its entries where they are few."""
    ax.imshow(generator, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    if len(generator) <= READABLE:
        for (row, column), value in np.ndenumerate(generator):
            text = "0" if abs(value) < FAINT else f"{value:.2f}"
            ax.text(
                column, row, text, ha="center", va="center", fontsize=7, color="white" if abs(value) > 0.6 else "black"
            )


def _bars(ax: Axes, names: Sequence[str], coefficients: Sequence[float], labelled: bool) -> None:
    """Draw the coefficients by named generator."""
    colours = [COLOURS[0] if value >= 0 else COLOURS[1] for value in coefficients]
    places = np.arange(len(names))[::-1]
    ax.barh(places, coefficients, color=colours)
    ax.axvline(0, color="#606060", linewidth=0.8)
    ax.set_yticks(places, names if labelled else [])
    ax.set_xlim(-1.1, 1.1)


def shifts(table: pd.DataFrame) -> Figure:
    """Draw datasets in the plane of diversity and correlation shift, with intervals; see `invbench.analysis.shift`."""
    figure = Figure(figsize=(2.2 * PANEL, 1.9 * PANEL), layout="constrained")
    ax = figure.subplots()
    for number, row in enumerate(table.to_dict("records")):
        x_error, y_error = (float(np.nan_to_num(row[f"{what}_half_width"])) for what in ("diversity", "correlation"))
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number // len(COLOURS) % len(MARKERS)]
        point = row["diversity"], row["correlation"], y_error, x_error
        ax.errorbar(*point, color=colour, fmt=marker, label=row["dataset"], capsize=2)
    ax.set(xlim=(-0.03, 1.03), xlabel="diversity shift: unseen inputs", ylabel="correlation shift: other labels")
    ax.set_ylim(bottom=-0.02)
    return finish(figure, [ax])
