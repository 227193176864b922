"""Draw whether runs are invariant: residuals by environment, and p-values."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from invbench.components.classes import class_probabilities
from invbench.core.task import Regression
from invbench.errors import UserError
from invbench.evaluation.groups import MOST
from invbench.evaluation.metrics import outputs_of
from invbench.reporting.run_figures import revived
from invbench.reporting.style import PANEL, finish, groups_of, labels_of, styles_of
from invbench.results.display_names import display_dataset
from invbench.training.restored import RestoredRun

BINS, LEAST_P = 8, 1e-12
"""Most bins of the prediction, each with as many examples; and the least p-value that is told from 0."""
METRIC = "test_invariance_p"
Array = NDArray[np.float64]


def residuals(paths: Sequence[Path]) -> Figure:
    """Draw mean residuals of test examples over the prediction, a line per environment, a panel per method.

    Regression: target minus prediction. Classification: whether the predicted class is right, minus its probability.
    Bars are 95 % intervals. Lines of an invariant predictor agree, and those of a calibrated one are at 0. Of several
    seeds the first is drawn.

    Raises:
        UserError: no finished run, or none whose test split has 2 to 32 environments.
    """
    runs = revived(paths)
    runs = [run for run in runs if 2 <= len(run.problem.splits["test"].environment_numbers) <= MOST]
    if not runs:
        raise UserError(f"residuals by environment need runs whose test split has 2 to {MOST} environments")
    groups = groups_of([run.config.spec for run in runs])
    figure = Figure(figsize=(0.4 + 1.7 * PANEL * len(groups), 1.7 * PANEL), layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for ((label, dataset), members), ax in zip(groups.items(), axes, strict=True):
        run = min((runs[member] for member in members), key=lambda run: run.config.spec.seed)
        is_regression = isinstance(run.problem.task, Regression)
        ax.set_title(f"{label} on {display_dataset(dataset)}", fontsize=9, wrap=True)
        ax.set_xlabel("prediction" if is_regression else "probability of the predicted class", fontsize=9)
        ax.set_ylabel("mean residual" if is_regression else "share that is right, minus probability", fontsize=9)
        ax.axhline(0, color="#808080", linewidth=0.8)
        x, y = _residuals(run)
        split = run.problem.splits["test"]
        names = run.problem.environment_names
        styles = styles_of(names[n] if n < len(names) else f"environment {n}" for n in split.environment_numbers)
        for rows, (name, style) in zip(split.environment_rows, styles.items(), strict=True):
            ax.errorbar(*_binned(x[rows.numpy()], y[rows.numpy()]), **style, linewidth=1.2, capsize=2, label=name)
    return finish(figure, list(axes))


def _residuals(run: RestoredRun) -> tuple[Array, Array]:
    """Return what a run predicts of each test example (N,), and the residual (N,)."""
    split, task = run.problem.splits["test"], run.problem.task
    with torch.no_grad():
        prediction = outputs_of(run.model, split.x, False, split.environment_rows).prediction.double().cpu()
    if isinstance(task, Regression):
        predicted = prediction[:, 0] * task.std + task.mean
        return task.factor * predicted.numpy(), task.factor * (split.y.cpu().double() - predicted).numpy()
    confidence, label = class_probabilities(prediction).max(1)
    return confidence.numpy(), ((label == split.y.cpu().long()).double() - confidence).numpy()


def _binned(x: Array, y: Array) -> tuple[Array, Array, Array]:
    """Return means of x and of y, and half the 95 % intervals of the latter, in bins of x with as many examples."""
    parts = np.array_split(np.argsort(x, kind="stable"), min(BINS, max(1, len(x) // 5)))
    errors = [1.96 * y[part].std(ddof=1) / np.sqrt(len(part)) if len(part) > 1 else np.nan for part in parts]
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts]), np.array(errors)


def p_values(results: pd.DataFrame) -> Figure:
    """Draw the p-values of invariance of every run, a row per method and dataset.

    Raises:
        UserError: no finished run has one.
    """
    known = results[results["status"] == "done"] if len(results) else results
    if METRIC not in known or not known[METRIC].notna().any():
        raise UserError(f"no finished run has the metric {METRIC}: its test split must have several environments")
    known = known[known[METRIC].notna()].reset_index(drop=True)
    pairs = zip(labels_of(known), known["dataset"], strict=True)
    names = [f"{label} on {display_dataset(name)}" for label, name in pairs]
    rows = {name: number for number, name in enumerate(dict.fromkeys(sorted(names)))}
    figure = Figure(figsize=(2.4 * PANEL, 0.8 + 0.24 * len(rows)), layout="constrained")
    ax = figure.subplots()
    ax.plot(known[METRIC].clip(lower=LEAST_P), [rows[name] for name in names], "o", alpha=0.6, color="#0072b2")
    ax.axvline(0.05, color="#d55e00", linestyle="--", linewidth=1, label="0.05: to the left, not invariant")
    ax.set(xscale="log", xlim=(LEAST_P / 2, 1.5), xlabel="p-value of invariance on the test split")
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return finish(figure, [ax])
