"""A sweep whose workers and whose own process are killed at random moments ends as if nothing had happened.

Carries out a sweep undisturbed, then again in another folder with SIGKILL for a worker or for the sweep itself, which
is started anew each time, and compares what is left: the same runs, each with the same metrics and curves to the last
bit, and no finished record ever written again.

    python scripts/chaos_sweep.py                       the sweep `smoke`, 20 kills: minutes on two cores
    python scripts/chaos_sweep.py --kills 100 --seed 7
"""

import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import pandas as pd
import psutil
import typer

from invbench.runs.folder import RunFolder, run_folders
from invbench.training.curve_columns import SECONDS

COMMAND = "from invbench.cli import main; main()"
LEAST_PAUSE, MOST_PAUSE = 0.5, 8.0
"""Shortest and longest time between two kills, in seconds."""


def main(
    name: Annotated[str, typer.Argument(help="A sweep, or a file of one.")] = "smoke",
    kills: Annotated[int, typer.Option(min=1)] = 20,
    workers: Annotated[int, typer.Option(min=1)] = 2,
    seed: Annotated[int, typer.Option(help="Of the moments and the victims.")] = 0,
    tier: Annotated[str, typer.Option()] = "full",
) -> None:
    """Disturb a sweep, compare its results, and report."""
    with tempfile.TemporaryDirectory() as folder:
        quiet, disturbed = Path(folder) / "quiet", Path(folder) / "disturbed"
        arguments = [name, "--tier", tier, "--workers", str(workers)]
        began = time.monotonic()
        if start(arguments, quiet).wait():
            raise SystemExit("the undisturbed sweep failed; nothing to compare with")
        took = time.monotonic() - began
        print(f"undisturbed: {len(run_folders(quiet))} runs in {took:.0f} s")
        began = time.monotonic()
        pause = min(MOST_PAUSE, max(2 * LEAST_PAUSE, took / kills))  # so that it is not over before all kills
        victims, rewritten = disturb(arguments, disturbed, kills, pause, random.Random(seed))  # noqa: S311
        print(f"disturbed: killed {victims['worker']} workers and the sweep {victims['sweep']} times, ", end="")
        print(f"in {time.monotonic() - began:.0f} s; {continued(disturbed)} runs continued from a checkpoint")
        differences = [*rewritten, *compare(quiet, disturbed)]
        if differences:
            print("\n".join(log_of(disturbed).read_text().splitlines()[-20:]))
        print("\n".join(differences) or f"identical: {len(run_folders(disturbed))} runs, metrics and curves")
        raise SystemExit(bool(differences))


def start(arguments: list[str], out: Path) -> subprocess.Popen[bytes]:
    """Start the sweep as a process, which writes its lines beside the folder."""
    command = [sys.executable, "-c", COMMAND, "sweep", *arguments, "--out", str(out)]
    with log_of(out).open("a") as log:
        return subprocess.Popen(command, stderr=log)


def log_of(out: Path) -> Path:
    """Read what all the sweeps on a folder have printed."""
    return out.with_suffix(".log")


def disturb(
    arguments: list[str], out: Path, kills: int, pause: float, rng: random.Random
) -> tuple[Counter[str], list[str]]:
    """Kill and start again; then let it end. Returns who was killed, and finished records that changed afterwards.

    Args:
        pause: longest time between two kills, once there is somebody to kill.
    """
    victims: Counter[str] = Counter()
    finished: dict[Path, bytes] = {}
    changed: list[str] = []
    process = start(arguments, out)
    while victims.total() < kills:
        time.sleep(rng.uniform(LEAST_PAUSE, pause))
        if process.poll() is not None:
            print(f"the sweep was over after {victims.total()} kills; more seeds or fewer kills")
            break
        who = kill_one(process, rng)
        victims[who] += 1
        for folder in run_folders(out):
            record = folder.read_record()
            if record is not None:
                now = folder.record.read_bytes()
                if finished.setdefault(folder.record, now) != now:
                    changed.append(f"{folder.path.name}: its record was written again")
        if who == "sweep":
            process.wait()
            process = start(arguments, out)
    if process.wait():
        changed.append("the sweep did not end well")
    return victims, changed


def kill_one(process: subprocess.Popen[bytes], rng: random.Random) -> str:
    """Send SIGKILL to the sweep, or twice as often to one of its workers, once it has any."""
    while rng.random() < 2 / 3 and process.poll() is None:
        with suppress(psutil.Error):
            children = psutil.Process(process.pid).children(recursive=True)
            workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
            if workers:
                rng.choice(workers).kill()
                return "worker"
        time.sleep(1)
    process.kill()
    return "sweep"


def continued(out: Path) -> int:
    """Count the runs that resumed from a checkpoint."""
    return sum(folder.log.exists() and "continuing at step" in folder.log.read_text() for folder in run_folders(out))


def compare(quiet: Path, disturbed: Path) -> list[str]:
    """List the differences between the two folders."""
    first, second = ({folder.path.name: folder for folder in run_folders(out)} for out in (quiet, disturbed))
    differences = [f"{name}: only in one of the folders" for name in first.keys() ^ second.keys()]
    return differences + [
        f"{name}: {what}" for name in first.keys() & second.keys() for what in differ(first[name], second[name])
    ]


def differ(first: RunFolder, second: RunFolder) -> list[str]:
    """List the differences between two runs."""
    a, b = first.read_record(), second.read_record()
    if a is None or b is None or b.status != "done":
        return [f"{b.kind}: {b.message}" if b else "no record"]
    differences = [] if a.metrics == b.metrics and a.invariance == b.invariance else ["other metrics"]
    curves = [pd.read_parquet(folder.curves).drop(columns=SECONDS) for folder in (first, second)]
    same = curves[0].equals(curves[1])
    return differences if same else [*differences, "other curves"]


if __name__ == "__main__":
    typer.run(main)
