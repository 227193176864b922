"""Augerino's QM9 experiment in one command: two properties, two groups, three ways to augment; twelve runs.

    erm                   no augmentation
    fixed_augmentation    shifts and turns at random, chosen by hand
    augerino              a learned distribution of affine transformations

One process per visible GPU, each taking the next run when it is done; one process on the CPU where there is no GPU. The
same command again repeats nothing that is finished.

    python scripts/trainqm9_all.py                          a narrow network for a few epochs: minutes on a laptop
    python scripts/trainqm9_all.py --full                   the paper's settings: days on one GPU
    python scripts/trainqm9_all.py --task homo --group trivial
"""

import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer

from invbench.errors import RunFailed, UserError
from invbench.runner import Options, run_cell
from invbench.spec import Cell, resolve

_device = "cpu"
METHODS = ("erm", "fixed_augmentation", "augerino")
SMALL = {"backbone.width": 64, "backbone.depth": 3, "trainer.epochs": 20}


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
    tasks = ("homo", "lumo") if task is Task.all else (task.value,)
    groups = ("trivial", "translation") if group is Group.all else (group.value,)
    settings = {} if full else SMALL
    try:
        cells = [
            resolve(method, "qm9", seed, settings | {"dataset.target": t, "backbone.group": g})
            for t, g, method in itertools.product(tasks, groups, METHODS)
        ]
        rows = spread(cells, out, [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"])
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.1f}".format))
    if not table["status"].eq("done").all():
        raise SystemExit(1)


def spread(cells: list[Cell], out: Path, devices: list[str]) -> list[dict[str, Any]]:
    """All runs, in a process for each device, or in this one where there is but one."""
    if len(devices) == 1:
        return [row_of(cell, out, devices[0]) for cell in cells]
    context = multiprocessing.get_context("spawn")
    free: Any = context.Queue()
    for device in devices:
        free.put(device)
    with ProcessPoolExecutor(len(devices), context, initializer=take_device, initargs=(free,)) as pool:
        return list(pool.map(row_on_own_device, cells, itertools.repeat(out)))


def take_device(free: Any) -> None:
    """Each process keeps one device for all its runs."""
    global _device
    _device = free.get()


def row_on_own_device(cell: Cell, out: Path) -> dict[str, Any]:
    """The row of a run on this process's device."""
    return row_of(cell, out, _device)


def row_of(cell: Cell, out: Path, device: str) -> dict[str, Any]:
    """Carry out a run; a failure is a row too, and the other runs go on."""
    spec = cell.spec
    row: dict[str, Any] = {
        "task": spec.dataset_settings["target"],
        "group": spec.backbone_settings["group"],
        "method": spec.method,
    }
    try:
        record = run_cell(cell, Options(device, out, quiet=False))
    except RunFailed as failure:
        return row | {"status": failure.kind}
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
