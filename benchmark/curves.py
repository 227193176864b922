"""What a run's curves hold beside the metrics: the last step's parts, what is learned, the method's state."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from invbench.evaluation import ENVIRONMENTS
from invbench.files import replacing
from invbench.gradients import Step
from invbench.learned import Learned
from invbench.method import State, scalars
from invbench.trees import sole

Row = dict[str, float]


def learned_columns(learned: Mapping[str, Learned], step: Step | None) -> Row:
    """What the model has learned besides the weights, and the step's gradients of it."""
    row: Row = {}
    for name, part in learned.items():
        row |= part.columns(None if step is None else step.gradients[name])
    return row


def step_columns(step: Step, env: Tensor) -> Row:
    """risk.<environment>, penalty (with its weight) and gradient_norm of one step."""
    norm = torch.stack([gradient.norm() for gradient in step.gradients.values()]).norm()
    row = {"penalty": step.penalty.item(), "gradient_norm": norm.item()}
    if len(env) <= ENVIRONMENTS:
        risks = dict(zip(env.tolist(), step.risks.tolist(), strict=False))
        row |= {f"risk.{e}": risks[e] for e in sorted(risks)}
    return row


def state_columns(state: State) -> Row:
    """The numbers in a method's state."""
    return {f"state.{name}": value.item() for name, value in scalars(sole(state)).items()}


def write_rows(rows: list[Row], path: Path) -> None:
    """Every measurement so far, one row each, atomically."""
    with replacing(path) as temporary:
        pd.DataFrame(rows).to_parquet(temporary, index=False)


def read_curves(path: Path) -> pd.DataFrame | None:
    """The table in a file; None where it cannot be read."""
    try:
        return pd.read_parquet(path)
    except (OSError, pa.ArrowException):
        return None


def read_rows(path: Path, step: int) -> list[Row] | None:
    """The rows up to a step; None where the file cannot be read."""
    found = read_curves(path)
    if found is None:
        return None
    rows = found.to_dict("records")
    # What a row does not have is NaN in the file.
    return [{str(k): v for k, v in row.items() if not math.isnan(v)} for row in rows if row["step"] <= step]
