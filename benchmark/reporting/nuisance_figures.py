"""Draw what predictions tell about a nuisance: performance against dependence, and the score at fixed nuisances."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invbench.core.task import BinaryClassification
from invbench.errors import UserError, did_you_mean
from invbench.evaluation.metrics import outputs_of
from invbench.reporting.run_figures import revived
from invbench.reporting.style import PANEL, finish, groups_of, styles_of, within_range
from invbench.results.columns import SECTIONS
from invbench.results.display_names import display_dataset, display_method, display_metric
from invbench.results.load import finished
from invbench.runs.spec import RunSpec
from invbench.training.restored import RestoredRun

BINS = 25
"""Number of bins in which a density of the score is drawn."""
FEWEST = 200
"""Least number of examples of a density."""
NEAR = 0.1
"""Largest distance of a nuisance from a value that it counts as having, in standard deviations."""


def tradeoff(paths: Sequence[Path], performance: str, dependence: str) -> Figure:
    """Draw one metric against another, a point for each setting and a line for each method through its weights.

    Points are means over seeds with their standard deviations, which end where the metric does.

    Args:
        paths: folders with runs.
        performance: the metric upwards, such as `test_roc_auc`.
        dependence: the metric to the right, such as `test_mutual_information`.

    Raises:
        UserError: no finished run, or none has both metrics.
    """
    records = [record for _, record in finished(paths)]
    for name in (performance, dependence):
        if not any(name in record.metrics for record in records):
            known = sorted({metric for record in records for metric in record.metrics if "." not in metric})
            raise UserError(f"no run has the metric '{name}'{did_you_mean(name, known)}")
    both = [record for record in records if {performance, dependence} <= record.metrics.keys()]
    if not both:
        raise UserError(f"no run has both metrics, {performance} and {dependence}")
    runs = pd.DataFrame([_row(record.spec, record.metrics) for record in both])
    datasets = sorted(runs["dataset"].unique())
    figure = Figure(figsize=(0.4 + 2.2 * PANEL * len(datasets), 2 * PANEL), layout="constrained")
    axes = figure.subplots(1, len(datasets), squeeze=False)[0]
    lines = [(dataset, *line) for dataset in datasets for line in _lines(runs[runs["dataset"] == dataset])]
    styles = styles_of(label for _, label, *_ in lines)
    for dataset, label, weight, rows in lines:
        ax = axes[datasets.index(dataset)]
        ax.set_title(display_dataset(dataset), fontsize=10)
        ax.set_xlabel(display_metric(dependence), fontsize=9)
        ax.set_ylabel(display_metric(performance), fontsize=9)
        _line(ax, rows, weight, (dependence, performance), styles[label], label)
    return finish(figure, list(axes))


def _row(spec: RunSpec, metrics: dict[str, float]) -> dict[str, Any]:
    """Return the settings and the metrics of a run."""
    return {"method": spec.method, "dataset": spec.dataset, "backbone": spec.backbone, **spec.flat(), **metrics}


def _lines(runs: pd.DataFrame) -> Iterable[tuple[str, str | None, pd.DataFrame]]:
    """Yield each line, of one method and its other settings: label, the setting that varies along it, and its runs."""
    for method, group in runs.groupby("method"):
        settings = [str(name) for name in group.columns if str(name).startswith(SECTIONS) or name == "backbone"]
        text = group[settings].map(str)
        differing = [name for name in settings if text[name].nunique() > 1]
        weights = [name for name in differing if name.rpartition(".")[2] == "weight" and _numeric(group[name])]
        along = next(iter(weights), None)
        rest = [name for name in differing if name != along]
        if not rest:
            yield display_method(str(method)), along, group
            continue
        for values, index in text.groupby(rest).groups.items():
            named = zip(rest, values if isinstance(values, tuple) else (values,), strict=True)
            label = ", ".join(f"{name}={value}" for name, value in named)
            yield f"{display_method(str(method))}, {label}", along, group.loc[index]


def _numeric(values: pd.Series) -> bool:
    """Tell whether all values are numbers."""
    return bool(pd.to_numeric(values, errors="coerce").notna().all())


def _line(
    ax: Axes, runs: pd.DataFrame, along: str | None, metrics: tuple[str, str], style: dict[str, Any], label: str
) -> None:
    """Draw one line: means and standard deviations over seeds, by the setting `along` where there is one."""
    names = list(metrics)
    weights = sorted(runs[along].astype(float).unique()) if along else [math.nan]
    groups = [runs.loc[runs[along] == weight, names] if along else runs[names] for weight in weights]
    means = np.stack([group.mean().to_numpy() for group in groups])
    deviations = np.stack([group.std(ddof=1).fillna(0).to_numpy() for group in groups])
    x, y = means.T
    across, up = (within_range(name, means[:, i], deviations[:, i]) for i, name in enumerate(metrics))
    ax.errorbar(x, y, up, across, **style, marker="o", markersize=4, elinewidth=0.6)
    ax.plot(x, y, **style, linewidth=1.2, label=f"{label} (n = {min(map(len, groups))})")
    for weight, point in zip(weights, means, strict=True):
        if along:
            ax.annotate(
                f"{weight:g}", point, xytext=(4, 4), textcoords="offset points", fontsize=7, color=style["color"]
            )


def densities(paths: Sequence[Path], at: Sequence[float]) -> Figure:
    """Draw densities of the score p(y = 1 | x) of test examples whose nuisance is near each value, a panel per method.

    Args:
        paths: folders with runs.
        at: values of the nuisance; one within a tenth of its standard deviation is near.

    Raises:
        UserError: no finished run, no two classes, no real nuisance, or too few examples near a value.
    """
    runs = revived(paths)
    problem = runs[0].problem
    nuisance = problem.splits["test"].nuisance
    if not isinstance(problem.task, BinaryClassification) or nuisance is None or not nuisance.is_floating_point():
        raise UserError("densities of the score need runs on a dataset with two classes and a real nuisance")
    groups = groups_of([run.config.spec for run in runs])
    figure = Figure(figsize=(0.4 + 1.7 * PANEL * len(groups), 1.6 * PANEL), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    styles = styles_of(f"nuisance {value:g}" for value in at)
    for ((label, dataset), members), ax in zip(groups.items(), axes, strict=True):
        ax.set_title(f"{label} on {display_dataset(dataset)}", fontsize=9, wrap=True)
        ax.set_xlabel("score", fontsize=9)
        for value, (name, style) in zip(at, styles.items(), strict=True):
            for number, member in enumerate(members):
                grid, density = _density(runs[member], value)
                ax.plot(grid, density, **style, linewidth=1.2, label=name if number == 0 else None)
    axes[0].set_ylabel("density", fontsize=9)
    return finish(figure, [axes[0]])


def _density(run: RestoredRun, value: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return bin centres and density of the score of examples whose first nuisance is near the value."""
    split = run.problem.splits["test"]
    if split.nuisance is None:
        raise UserError(f"the test split of {run.config.spec.dataset} has no nuisance")
    nuisance = split.nuisance.reshape(len(split), -1)[:, 0]
    near = (nuisance - value).abs() < NEAR * nuisance.std()
    if int(near.sum()) < FEWEST:
        raise UserError(f"--at {value:g}: only {int(near.sum())} test examples have such a nuisance")
    with torch.no_grad():
        score = outputs_of(run.model, split.x[near]).prediction[:, 0].sigmoid()
    density, edges = np.histogram(score.double().numpy(), bins=BINS, range=(0, 1), density=True)
    return (edges[1:] + edges[:-1]) / 2, density
