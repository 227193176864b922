"""Whole runs trained together against the same runs one after another, and against a process for each.

All sides do the whole of it, from making the data to writing the records, in one thread. `alone` is one after another
in this warm process; of it, and of `processes`, only the first few runs are timed, and the time is multiplied.
`processes` is one `bench run` for each job over all rows, the way of the linear unit tests' own code. Each way runs
once untimed first.
With --compile the runs together are trained once more with `trainer.compile`, the time of compiling included: that of
torch's cache, if it has the programs of an earlier call.

    python scripts/benchmark_fusing.py [spirals_8 spirals_64 irm_regression linear_unit_tests] [--compile]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.runs.spec import Fuse
from invbench.sweeps.engines.worker import carry_out
from invbench.sweeps.jobs import MOST

COMMAND = "from invbench.cli import main; main()"


@dataclass(frozen=True)
class Case:
    """Runs of one dataset with some methods, each with all seeds."""

    dataset: str
    methods: tuple[str, ...]
    seeds: int
    settings: dict[str, Any]
    timed: int = 4
    processes: bool = False
    rows: dict[str, Any] = field(default_factory=dict)
    """What a process of its own sets besides."""


CASES = {
    "spirals_8": Case("spirals", ("and_mask",), 32, {"backbone.width": 8}),
    "spirals_64": Case("spirals", ("and_mask",), 32, {"backbone.width": 64}, timed=3),
    "irm_regression": Case(
        "irm_regression",
        ("erm", "oracle", "irmv1", "irmv1+simple_adareg", "irmv1+adareg"),
        32,
        {"trainer.steps": 2000, "trainer.evaluate_every": 3000},
    ),
    "linear_unit_tests": Case(
        "linear_unit_tests",
        ("erm", "irmv1", "and_mask"),
        100,
        {"dataset.example": "example1", "trainer.evaluate_every": 10000},
        timed=2,
        processes=True,
        rows={"trainer.condense": False},
    ),
}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Of the cases; all where none is given.")] = None,
    device: str = "cpu",
    compiled: Annotated[bool, typer.Option("--compile", help="Also with trainer.compile.")] = False,
) -> None:
    """Time all ways, and print the ratios."""
    torch.set_num_threads(1)
    ways = ["alone", "processes", "together", "compiled"]
    print(f"{'seconds':<20} {'runs':>5}", *(f"{way:>11}" for way in ways), f"{'ratio':>6}")
    for name in names or CASES:
        case, totals = CASES[name], defaultdict[str, float](float)
        for method in case.methods:
            configs = [resolve(method, case.dataset, seed, case.settings) for seed in range(case.seeds)]
            for way, seconds in measured(case, configs, device).items():
                totals[way] += seconds
            if compiled:
                settings = case.settings | {"trainer.compile": True}
                configs = [resolve(method, case.dataset, seed, settings) for seed in range(case.seeds)]
                totals["compiled"] += in_process(configs, device, MOST * 2)
        against = totals.get("processes", totals["alone"])
        columns = [f"{totals[way]:11.1f}" if way in totals else f"{'':>11}" for way in ways]
        ratios = [f"{against / totals[way]:6.1f}" for way in ("together", "compiled") if way in totals]
        print(f"{name:<20} {case.seeds * len(case.methods):>5}", *columns, *ratios)


def measured(case: Case, configs: Sequence[RunConfig], device: str) -> dict[str, float]:
    """Measure the seconds of every way for all runs of a method."""
    few, scale = configs[: case.timed], len(configs) / case.timed
    short = [
        resolve(
            config.spec.method,
            case.dataset,
            config.spec.seed,
            case.settings | {"trainer.steps": 2, "trainer.epochs": None},
        )
        for config in few[:2]
    ]
    for fuse in ("off", 2):
        in_process(short, device, fuse)
    seconds = {
        "alone": scale * in_process(few, device, "off"),
        "together": in_process(configs, device, MOST * 2),
    }
    if case.processes:
        seconds["processes"] = scale * timed(lambda folder: [process(case, config, device, folder) for config in few])
    return seconds


def in_process(configs: Sequence[RunConfig], device: str, fuse: Fuse) -> float:
    """Time the runs in this process, together or one after another, in seconds."""
    specs = [config.spec.model_dump() for config in configs]
    groups = [[spec] for spec in specs] if fuse == "off" else [specs]

    def go(folder: Path) -> None:
        options = Options(device, folder, fuse=fuse)
        ended = {outcome.status for group in groups for outcome in carry_out(group, options)}
        if ended != {"done"}:
            raise SystemExit(f"not all runs were done: {ended}")

    return timed(go)


def process(case: Case, config: RunConfig, device: str, folder: Path) -> None:
    """Carry out one run in a separate process."""
    settings = case.settings | case.rows
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    verb = ["run", "-m", config.spec.method, "-d", case.dataset, "--seed", str(config.spec.seed), "--device", device]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", COMMAND, *verb, *sets, "--out", str(folder)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def timed(work: Callable[[Path], object]) -> float:
    """Time some work in a fresh folder, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        work(Path(folder))
        return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
