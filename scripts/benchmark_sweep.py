"""Runs per minute of a sweep: warm processes against a new process for each run.

60 short AND-mask runs on small spirals, first as `bench sweep` carries them out, then by one `bench run` process each,
as many at a time as there are workers. Both sides in this one call, one thread each.

    python scripts/benchmark_sweep.py [--runs 60] [--workers 2]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import typer

from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig, resolve
from invbench.sweeps.engines.local import LocalEngine, LocalResources
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.signals import StopRequest

COMMAND = "from invbench.cli import main; main()"
SETTINGS = {
    "dataset.environments": 4,
    "dataset.examples": 100,
    "dataset.validation_examples": 50,
    "dataset.test_examples": 100,
    "backbone.width": 16,
    "backbone.depth": 2,
    "trainer.batch_size": 50,
    "trainer.steps": 20,
    "trainer.evaluate_every": 20,
}


def main(runs: Annotated[int, typer.Option(min=10)] = 60, workers: Annotated[int, typer.Option(min=1)] = 2) -> None:
    """Time both, and print the ratio."""
    configs = [resolve("and_mask", "spirals", seed, SETTINGS) for seed in range(runs)]
    with tempfile.TemporaryDirectory() as folder:
        first, within_first = sweep(configs[:workers], Path(folder) / "first", workers)
        warm, within = sweep(configs, Path(folder) / "warm", workers)
        cold = processes(configs, Path(folder) / "cold", workers)
    # Of all runs but as many as it takes to start every worker.
    overhead = ((warm - first) * workers - (within - within_first)) / (runs - workers)
    print(f"{runs} runs, {workers} at a time")
    print(f"sweep              {60 * runs / warm:8.1f} runs per minute  ({warm:.1f} s)")
    print(f"process per run    {60 * runs / cold:8.1f} runs per minute  ({cold:.1f} s)")
    print(f"ratio              {cold / warm:8.1f}")
    print(f"inside a run {within / runs:.3f} s; besides {overhead:.3f} s a run, once the workers have started")


def sweep(configs: list[RunConfig], out: Path, workers: int) -> tuple[float, float]:
    """Time a sweep. Returns its seconds, and the sum of the runs' seconds."""
    began = time.perf_counter()
    watch = SweepMonitor({config.spec.run_id: config.title for config in configs}, StopRequest(), quiet=True)
    LocalEngine(LocalResources(workers=workers).slots()).run(configs, Options(out=out), watch)
    seconds = time.perf_counter() - began
    if watch.counts["done"] != len(configs):
        raise SystemExit(f"only {watch.counts['done']} runs were done: {watch.failures[:1]}")
    return seconds, sum(watch.seconds)


def processes(configs: list[RunConfig], out: Path, workers: int) -> float:
    """Time one process for each run, in seconds."""
    sets = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

    def one(config: RunConfig) -> None:
        verb = ["run", "-m", "and_mask", "-d", "spirals", "--seed", str(config.spec.seed), *sets, "--out", str(out)]
        command = [sys.executable, "-c", COMMAND, *verb]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(one, configs))
    return time.perf_counter() - began


if __name__ == "__main__":
    typer.run(main)
