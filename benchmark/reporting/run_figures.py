"""Draw finished runs: one colour per method, bands for the range over seeds."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.images import rotate
from invbench.core.data import Problem
from invbench.core.task import Regression
from invbench.errors import UserError
from invbench.evaluation.metrics import outputs_of
from invbench.reporting.style import COLOURS, PANEL, band, finish, groups_of, looks_of, styles_of
from invbench.results.display_names import display_dataset
from invbench.results.load import curves_of, finished, warn_left_out
from invbench.training.restored import RestoredRun, load_run

ANGLES = 73
"""Number of angles at which an image is shown in a full turn: every 5 degrees."""


def revived(paths: Iterable[Path]) -> list[RestoredRun]:
    """Load every finished run at or below the paths with its model; warnings name those that cannot be loaded.

    Raises:
        UserError: none is finished, or none can be loaded.
    """
    runs: list[RestoredRun] = []
    reasons: list[str] = []
    for folder, _ in finished(paths):
        try:
            runs.append(load_run(folder.path))
        except UserError as error:
            reasons.append(str(error))
    if not runs:
        raise UserError(reasons[0])
    warn_left_out(reasons)
    return runs


def profile(paths: Sequence[Path]) -> Figure:
    """Draw mean changes of the prediction over the magnitude of generators: a row per dataset, a panel per generator.

    Raises:
        UserError: no finished run has an invariance profile.
    """
    records = [record for _, record in finished(paths) if record.invariance]
    if not records:
        raise UserError("none of these runs has an invariance profile; images and point clouds have one")
    specs = [record.spec for record in records]
    groups = groups_of(specs)
    datasets = sorted({dataset for _, dataset in groups})
    looks = looks_of((specs[members[0]].method, label) for (label, _), members in groups.items())
    longest = max(len(record.invariance["generators"]) for record in records)
    figure = Figure(figsize=(PANEL * longest, 0.7 + PANEL * len(datasets)), layout="constrained")
    axes = figure.subplots(len(datasets), longest, squeeze=False, sharey="row")
    for (label, dataset), members in groups.items():
        row = axes[datasets.index(dataset)]
        measured = [records[i].invariance["generators"] for i in members]
        for name, ax in zip(measured[0], row, strict=False):
            magnitudes = measured[0][name]["magnitudes"]
            alike = [profiles[name] for profiles in measured if profiles.get(name, {}).get("magnitudes") == magnitudes]
            changes = [np.asarray(profile["changes"]) for profile in alike]
            band(ax, np.asarray(magnitudes), changes, *looks[label])
            ax.set_xlabel(name.replace("_", " "), fontsize=9)
        for ax in row[len(measured[0]) :]:
            ax.set_axis_off()
        units = records[members[0]].data.get("units") or "total variation"
        row[0].set_ylabel(f"{display_dataset(dataset)}\nchange of the prediction\n({units})", fontsize=9)
    return finish(figure, axes.ravel().tolist())


def widths(paths: Sequence[Path], marks: Sequence[float]) -> Figure:
    """Draw what runs learned besides the weights over their steps: all numbers, and the interval of the rotation.

    Numbers of another kind, such as precisions beside widths, have axes of their own.

    Args:
        paths: folders with runs.
        marks: angles in radians at which lines show what the rotation's interval ought to be, both ways.

    Raises:
        UserError: no finished run has learned such numbers.
    """
    done = finished(paths)
    read = zip(done, curves_of([folder for folder, _ in done]), strict=True)
    runs = [(record.spec, curves) for (_, record), curves in read if curves is not None and _numbers(curves)]
    if not runs:
        raise UserError("none of these runs learned a distribution of augmentations; augerino does")
    styles = styles_of(name for _, curves in runs for name in _numbers(curves))
    rows = [
        (f"{label} on {display_dataset(dataset)}\n{kind}", [runs[i][1] for i in members], names)
        for (label, dataset), members in groups_of([spec for spec, _ in runs]).items()
        for kind, names in _kinds(runs[members[0]][1]).items()
    ]
    figure = Figure(figsize=(4 * PANEL, 0.6 + 1.4 * PANEL * len(rows)), layout="constrained")
    for (label, tables, names), (left, right) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        for name in names:
            for number, curves in enumerate(curves for curves in tables if name in curves):
                text = name.partition(".")[2].replace("_", " ") if number == 0 else None
                left.plot(curves["step"], curves[name], **styles[name], linewidth=1.2, label=text)
        left.set_ylabel(label, fontsize=9)
        left.legend(fontsize=8)
        _interval(right, tables if "width.rotation" in names else [], marks)
    for ax in figure.axes[-2:]:
        ax.set_xlabel("step", fontsize=9)
    return finish(figure, [])


def _interval(ax: Axes, runs: list[pd.DataFrame], marks: Sequence[float]) -> None:
    """Draw plus and minus half the rotation's width, one line per run, with marks."""
    runs = [curves for curves in runs if "width.rotation" in curves]
    if not runs:
        ax.set_axis_off()
        return
    for curves in runs:
        for sign in (-1, 1):
            ax.plot(curves["step"], sign * curves["width.rotation"] / 2, color=COLOURS[0], linewidth=1.2)
    for mark in marks:
        for sign in (-1, 1):
            ax.axhline(sign * mark, color="#606060", linestyle="--", linewidth=0.8)
            ax.annotate(
                f"{sign * mark / np.pi:+.2g}π", (1.01, sign * mark), xycoords=("axes fraction", "data"), fontsize=8
            )
    ax.set_ylabel("rotations drawn from between\n± half the width (radians)", fontsize=9)


def _numbers(curves: pd.DataFrame) -> list[str]:
    """Return the columns of learned numbers: those with a gradient beside them."""
    gradients = {str(name).replace("_gradient.", ".", 1) for name in curves.columns if "_gradient." in str(name)}
    return [str(name) for name in curves.columns if name in gradients]


def _kinds(curves: pd.DataFrame) -> dict[str, list[str]]:
    """Return the columns of learned numbers by kind, such as width or precision."""
    kinds: dict[str, list[str]] = {}
    for name in _numbers(curves):
        kinds.setdefault(name.partition(".")[0], []).append(name)
    return kinds


def angle(paths: Sequence[Path], example: int) -> Figure:
    """Draw the prediction on one test image over its rotation: the probability of the right class, or the answer.

    Args:
        paths: folders with runs on one dataset.
        example: position of the image in the first run's test set; every run is given the same image.

    Raises:
        UserError: no finished run, several datasets, no images, or no such example.
    """
    runs = revived(paths)
    problem = runs[0].problem
    if problem.kind != "image" or len({run.config.spec.dataset for run in runs}) > 1:
        raise UserError("a prediction against the angle needs runs on one dataset of images")
    split = problem.splits["test"]
    if not 0 <= example < len(split):
        raise UserError(f"--example {example}: there are test examples 0 to {len(split) - 1}")
    angles = torch.linspace(-torch.pi, torch.pi, ANGLES, dtype=split.x.dtype)
    turned = _turned(problem, split.x[example], angles)
    specs = [run.config.spec for run in runs]
    groups = groups_of(specs)
    looks = looks_of((specs[members[0]].method, label) for (label, _), members in groups.items())
    figure = Figure(figsize=(3.4 * PANEL, 1.7 * PANEL), layout="constrained")
    picture, ax = figure.subplots(1, 2, width_ratios=(1, 3))
    _show(picture, problem, split.x[example])
    for (label, _), members in groups.items():
        answers = [_answer(runs[i].problem, runs[i].model, turned, split.y[example]) for i in members]
        band(ax, np.rad2deg(angles.numpy()), answers, *looks[label])
    units = f"prediction ({problem.task.units})" if isinstance(problem.task, Regression) else ""
    ax.set_ylabel(units or "probability of the right class")
    ax.set_xlabel("turned by (degrees)")
    ax.set_xticks(range(-180, 181, 45))
    return finish(figure, [ax])


def _turned(problem: Problem, image: Tensor, angles: Tensor) -> Tensor:
    """Rotate one standardised image (C, H, W) by all angles (N,), black outside; return (N, C, H, W)."""
    black = problem.pixels.black(image)
    return rotate((image - black).expand(len(angles), -1, -1, -1), angles) + black


def _answer(problem: Problem, model: torch.nn.Module, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Return the probabilities (N,) of the right class y, or the answers in the units of the target."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        prediction = outputs_of(model, x).prediction
    task = problem.task
    if isinstance(task, Regression):
        answer = prediction[:, 0] * task.std + task.mean
    elif task.outputs == 1:
        answer = (prediction[:, 0] * (2 * y - 1)).sigmoid()
    else:
        answer = prediction.softmax(-1)[:, int(y)]
    return np.asarray(answer.double())


def _show(ax: Axes, problem: Problem, image: Tensor) -> None:
    """Draw a standardised image (C, H, W) as it was before."""
    pixels = np.asarray(problem.pixels.restored(image).clamp(0, 1).permute(1, 2, 0))
    ax.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)
    ax.set(xticks=[], yticks=[])
