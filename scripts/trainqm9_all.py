"""Augerino's QM9 experiment in one command: two properties, two groups, three ways to augment; twelve runs.

    erm                   no augmentation
    fixed_augmentation    shifts and turns at random, chosen by hand
    augerino              a learned distribution of affine transformations

The sweep `qm9_all` (`bench sweep qm9_all`) in the words of the original's script, with the table that it leads to. One
process per visible GPU, or one per core without GPUs. The same command again repeats nothing that is finished.

    python scripts/trainqm9_all.py                          a narrow network for a few epochs: minutes on a laptop
    python scripts/trainqm9_all.py --full                   the paper's settings: days on one GPU
    python scripts/trainqm9_all.py --task homo --group trivial
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer

from invbench.errors import Interrupted, RunFailed, UserError
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig
from invbench.sweeps.definition import FULL, Sweep
from invbench.sweeps.engines.local import LocalEngine, LocalResources
from invbench.sweeps.execute import SweepRequest, carry_out_sweep

SMALL = "small"


class Task(StrEnum):
    """Properties, in the original's words."""

    homo = "homo"
    lumo = "lumo"
    all = "all"


class Group(StrEnum):
    """What the network does not see."""

    trivial = "trivial"
    translation = "translation"
    all = "all"


def main(
    task: Annotated[Task, typer.Option()] = Task.all,
    group: Annotated[Group, typer.Option()] = Group.all,
    full: Annotated[bool, typer.Option("--full", help="The paper's settings.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    out: Annotated[Path, typer.Option(help="Folder that gets a folder for each run.")] = Path("results/qm9"),
) -> None:
    """Train, and print the table."""
    tier, failed = FULL if full else SMALL, False
    plan = chosen(Sweep.read("qm9_all"), task, group, seed)
    try:
        carry_out_sweep(SweepRequest(plan, out, tier), LocalEngine(LocalResources().slots()))
    except RunFailed:
        failed = True  # the table has them, too
    except (UserError, Interrupted) as error:
        raise SystemExit(f"error: {error}") from None
    table = pd.DataFrame([row_of(config, out) for config in plan.runs(tier)])
    print(table.to_string(index=False, float_format="{:.1f}".format))
    if failed:
        raise SystemExit(1)


def chosen(plan: Sweep, task: Task, group: Group, seed: int) -> Sweep:
    """Select the part of the sweep that was asked for."""
    grid = dict(plan.cells[0].grid)
    if task is not Task.all:
        grid["dataset.target"] = (task.value,)
    if group is not Group.all:
        grid["backbone.group"] = (group.value,)
    return plan.model_copy(update={"seeds": seed, "cells": (plan.cells[0].model_copy(update={"grid": grid}),)})


def row_of(config: RunConfig, out: Path) -> dict[str, Any]:
    """Make a row of the table; of a run that failed it has only the kind."""
    spec, record = config.spec, RunFolder(out / config.spec.run_id).read_record()
    row: dict[str, Any] = {
        "task": spec.dataset_settings["target"],
        "group": spec.backbone_settings["group"],
        "method": spec.method,
    }
    if record is None or record.status != "done":
        return row | {"status": record.kind if record else "not finished"}
    return row | {
        "status": record.status,
        "validation MAE": record.metrics["validation_mean_absolute_error"],
        "test MAE": record.metrics["test_mean_absolute_error"],
        "change under rigid motions": record.invariance["rigid_motions"],
        "units": record.data["units"],
        "seconds": record.cost["wall_seconds"],
        "data": record.data["variant"],
    }


if __name__ == "__main__":
    typer.run(main)
