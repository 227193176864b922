"""Columns of a run's curves beside the metrics: the last step's parts, learned numbers, the method's state."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from invbench.choices import CRITERIA
from invbench.components.learned import LearnedScalars
from invbench.core.method import State
from invbench.core.task import Task
from invbench.evaluation.groups import MOST
from invbench.pytree import flatten, sole
from invbench.runs.curves import Row
from invbench.runs.record import BestStep
from invbench.training.gradients import Step

Columns = dict[str, Tensor]
"""Numbers by the name of their column, still on the device, where one transfer takes them all."""
SECONDS = "training_seconds"
"""Name of the column of the time that the steps so far have taken, which differs between repetitions."""


def learned_columns(learned: Mapping[str, LearnedScalars], step: Step | None) -> Columns:
    """Return the numbers that the model has learned besides the weights, and the step's gradients of them."""
    columns: Columns = {}
    for name, part in learned.items():
        columns |= part.columns(None if step is None else step.gradients[name])
    return columns


def step_columns(step: Step, env: Tensor) -> Columns:
    """Return risk.<environment>, penalty (with its weight) and gradient_norm of one step."""
    norm = torch.stack([gradient.norm() for gradient in step.gradients.values()]).norm()
    columns = {"penalty": step.penalty, "gradient_norm": norm}
    if len(env) <= MOST:
        risks = dict(zip(env.tolist(), step.risks, strict=False))
        columns |= {f"risk.{e}": risks[e] for e in sorted(risks)}
    return columns


def state_columns(state: State) -> Columns:
    """Return the numbers in a method's state."""
    return {f"state.{name}": value for name, value in scalars(sole(state)).items()}


def best_validation(rows: Sequence[Row], task: Task, metrics: Collection[str]) -> BestStep | None:
    """Return the first step with the best validation score, and those of the metrics that were measured there."""
    return _best_step(rows, f"validation_{task.primary}", task.higher_is_better, metrics)


def best_by(rows: Sequence[Row], metrics: Collection[str]) -> dict[str, BestStep]:
    """Return the same by other criteria, those that were measured."""
    steps = {name: _best_step(rows, f"validation_{metric}", True, metrics) for name, metric in CRITERIA.items()}
    return {str(name): step for name, step in steps.items() if step is not None}


def _best_step(
    rows: Sequence[Row], criterion: str, higher_is_better: bool, metrics: Collection[str]
) -> BestStep | None:
    sign = 1 if higher_is_better else -1
    measured = [row for row in rows if criterion in row]
    if not measured:
        return None
    best = max(measured, key=lambda row: sign * row[criterion])
    return BestStep(step=int(best["step"]), metrics={name: best[name] for name in metrics if name in best})


SHOWN = 64
"""Maximum number of elements of a state's tensors that the curves show."""


def scalars(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Select what the curves show of a state, by dotted name.

    That is its numbers without what the engine keeps there, and its tensors element by element where they are `SHOWN`
    or fewer in all. Critics are not shown.
    """
    hidden = {"critic", "counts"}
    flat = {name: value for name, value in flatten(state).items() if not hidden & set(name.split("."))}
    leaves = {name: value for name, value in flat.items() if name.rpartition(".")[2] not in ("step", "draws")}
    tensors = {name: value for name, value in leaves.items() if value.ndim}
    columns = {name: value for name, value in leaves.items() if not value.ndim}
    if sum(value.numel() for value in tensors.values()) <= SHOWN:
        columns |= {f"{name}.{i}": x for name, value in tensors.items() for i, x in enumerate(value.flatten())}
    return columns
