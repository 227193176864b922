"""What a run takes beside others on one machine, by how its threads wait and how many there are.

OpenMP's threads wait for each other after every operation. They can spin, which is quick on an idle machine, or sleep,
which leaves the cores to others. Each row is `bench run -m and_mask -d spirals`, in a process of its own; seconds are
those of its training, the median of a few rounds in which every row takes its turn.

    python scripts/benchmark_contention.py                  a quarter of an hour on two cores
    python scripts/benchmark_contention.py --rounds 1
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

COMMAND = "from invbench.cli import main; main()"
WAITING: dict[str, dict[str, str]] = {
    "spinning (libgomp's default)": {"GOMP_SPINCOUNT": "300000"},
    "spinning for a moment": {"GOMP_SPINCOUNT": "10000"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
BUSY = "while True: pass"
TRAINING = """
import torch
net = torch.nn.Sequential(*(torch.nn.Linear(256, 256) for _ in range(4)))
x = torch.randn(1024, 256)
while True:
    net(x).square().mean().backward()
"""
"""A neighbour that trains on all cores, with threads that wait as libgomp lets them."""
SITUATIONS = ("idle", "beside a busy loop", "beside a training", "two at once")


def main(
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    epochs: Annotated[int, typer.Option(min=1, help="Of each run.")] = 20,
) -> None:
    """Measure and print the table."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = [(waiting, threads) for waiting in WAITING for threads in sorted({1, cores}, reverse=True)]
    rows = [row for row in rows if row[1] > 1 or row[0] == "passive"]  # a single thread waits for nobody
    seconds: dict[tuple[str, int, str], list[float]] = {}
    for number in range(rounds):
        for situation in SITUATIONS:
            for waiting, threads in rows:
                print(f"round {number + 1}: {situation}, {waiting}, {threads} threads", file=sys.stderr)
                took = measured(situation, WAITING[waiting], threads, epochs)
                seconds.setdefault((waiting, threads, situation), []).extend(took)
    table = Table("threads wait", "threads", *SITUATIONS)
    for waiting, threads in rows:
        medians = [statistics.median(seconds[waiting, threads, situation]) for situation in SITUATIONS]
        table.add_row(waiting, str(threads), *(f"{median:.1f} s" for median in medians))
    Console(width=120).print(table)


def measured(situation: str, waiting: dict[str, str], threads: int, epochs: int) -> list[float]:
    """Measure the seconds of training of a situation's runs."""
    neighbours = {"beside a busy loop": [BUSY], "beside a training": [TRAINING]}.get(situation, [])
    with beside(neighbours), tempfile.TemporaryDirectory() as folder:
        count = 2 if situation == "two at once" else 1
        processes = [start(Path(folder), seed, waiting, threads, epochs) for seed in range(count)]
        return [json.loads(process.communicate()[0])[0]["cost"]["training_seconds"] for process in processes]


def start(out: Path, seed: int, waiting: dict[str, str], threads: int, epochs: int) -> subprocess.Popen[str]:
    """Start the command with this way of waiting of its threads."""
    run = ["run", "-m", "and_mask", "-d", "spirals", "--seed", str(seed), "--set", f"trainer.epochs={epochs}"]
    options = ["--device", "cpu", "--threads", str(threads), "--out", str(out), "--json"]
    plain = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *run, *options],
        env=plain | waiting, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


@contextmanager
def beside(codes: Sequence[str]) -> Iterator[None]:
    """Run other processes within the block."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    neighbours = [subprocess.Popen([sys.executable, "-c", code], env=plain) for code in codes]
    try:
        if neighbours:
            time.sleep(5)  # until they work
        yield
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()


if __name__ == "__main__":
    typer.run(main)
