"""Carry out a sweep: choose the runs that are left, give them to an engine, say how it ended."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import pandas as pd
import torch

from invbench.errors import Interrupted, RunFailed, UserError, brief, did_you_mean
from invbench.results.load import load_results
from invbench.runs.spec import Cell
from invbench.sweeps.definition import FULL, Sweep
from invbench.sweeps.engines.local import LocalEngine
from invbench.sweeps.folder import Costs, Rerun, announce_changes, chosen, metrics_of, reopen, statuses, told_apart
from invbench.sweeps.fusing import Fuse, parse_fuse
from invbench.sweeps.jobs import CPU, Rules, Slot
from invbench.sweeps.monitor import Watch, duration
from invbench.system.gpus import MOST_PROCESSES, chosen_gpus, visible_gpus
from invbench.system.signals import stop_requests
from invbench.training.progress import announce, somebody_looks
from invbench.training.runner import RESULTS, Options

UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
LONGEST = 366 * 86400
"""Seconds that a run may be given."""
GIBIBYTE = 2**30


class Engine(Protocol):
    """Where runs are carried out."""

    def run(self, cells: Sequence[Cell], options: Options, watch: Watch) -> None:
        """Carry out the runs, tell the watch, and begin none while it drains."""


@dataclass(frozen=True)
class Places:
    """Where a sweep on one machine works.

    Args:
        gpus: such as `0,2`, places in the list of visible GPUs; all where it is None.
        jobs_per_gpu: runs that share a GPU.
        workers: this many processes on the CPU, and no GPU.
        threads: of each process.
    """

    gpus: str | None = None
    jobs_per_gpu: int = 1
    workers: int | None = None
    threads: int = 1

    def slots(self) -> list[Slot]:
        """One for each run at a time. Raises UserError where there is nothing of what is asked for."""
        if self.workers is not None and self.gpus:
            raise UserError("--workers is for the CPU and --gpus for GPUs; give one of them")
        numbers = {"workers": self.workers, "jobs_per_gpu": self.jobs_per_gpu, "threads": self.threads}
        for name, number in numbers.items():
            if number is not None and not 1 <= number <= MOST_PROCESSES:
                raise UserError(f"there can be 1 to {MOST_PROCESSES} {name}, not {number}")
        devices: list[str] = []
        if self.workers is None:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            devices = chosen_gpus(self.gpus, visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), count))
        if devices:
            return [Slot(number, device) for number, device in enumerate(devices * self.jobs_per_gpu)]
        workers = max(1, _cores() // self.threads) if self.workers is None else self.workers
        return [Slot(number, CPU) for number in range(workers)]


@dataclass(frozen=True)
class Request:
    """What a call of `bench sweep` asks for.

    Args:
        sweep: what should be run.
        out: folder of the runs.
        tier: full, or a size that the sweep names.
        rerun: which of the runs that are over are done again.
        quiet: show nothing.
        fuse: as `Fuse`, or what the sweep says where it is None.
    """

    sweep: Sweep
    out: Path
    tier: str = FULL
    rerun: Rerun = Rerun.missing
    quiet: bool = False
    fuse: Fuse | None = None

    @classmethod
    def read(
        cls, name: str, out: str | Path | None, tier: str, rerun: str, fuse: str | None = None, quiet: bool = False
    ) -> Self:
        """Of a sweep of the package, or a file; its folder is results/<name> where it is None."""
        if rerun not in list(Rerun):
            raise UserError(f"no --rerun {rerun}{did_you_mean(rerun, list(Rerun))}")
        folder = Path(RESULTS) / Path(name).stem if out is None else Path(out)
        return cls(Sweep.read(name), folder, tier, Rerun(rerun), quiet, None if fuse is None else parse_fuse(fuse))

    def runs(self) -> list[Cell]:
        """Of the sweep; where results lead a search, as far as those in the folder lead."""
        return self.sweep.runs(self.tier, metrics_of(self.out))

    def say(self, text: str) -> None:
        """One line on stderr."""
        if not self.quiet:
            announce(text)


def _text(option: str | int | None) -> str | None:
    """As the command line has it, where a number may have been meant."""
    return None if option is None else str(option)


def sweep(
    name: str | Path,
    *,
    tier: str = FULL,
    out: str | Path | None = None,
    rerun: str = "missing",
    gpus: str | int | None = None,
    jobs_per_gpu: int = 1,
    workers: int | None = None,
    threads: int = 1,
    timeout: float | None = None,
    fuse: str | int | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Carry out what is left of a sweep on this machine, and return all its runs as `load_results` does.

    Called from a script, it must stand under `if __name__ == "__main__":`, since its processes import the script.

    Args:
        name: a sweep of the package, or a YAML file.
        tier: full, or a size that the sweep names.
        out: folder of the runs; results/<name> where it is None.
        rerun: missing, failed, stale or all.
        gpus, jobs_per_gpu, workers, threads: see `Places`.
        timeout: seconds for one attempt at a run.
        fuse: auto, off, or a number of runs that are trained together at most; as the sweep says where it is None.
        progress: show it on stderr, or below the cell of a notebook; None: where that is a terminal or a notebook.

    Raises:
        UserError: something in the request is wrong; nothing was run.
        Interrupted: Ctrl-C; running runs have kept their checkpoints.
    """
    engine = LocalEngine(Places(_text(gpus), jobs_per_gpu, workers, threads).slots(), Rules(timeout), threads)
    shown = somebody_looks() if progress is None else progress
    request = Request.read(str(name), out, tier, rerun, _text(fuse), quiet=not shown)
    with suppress(RunFailed):  # the failed runs are in the table, with their kinds
        carry_out_sweep(request, engine)
    return load_results(request.out)


def carry_out_sweep(request: Request, engine: Engine) -> None:
    """Carry out what is left of a sweep.

    Raises:
        UserError: something in the request is wrong; nothing was run.
        RunFailed: all runs are over, and some have failed.
        Interrupted: Ctrl-C, or a full disk; the same command continues.
    """
    cells, out = request.runs(), request.out
    for line in announce_changes(request.sweep, request.tier, cells, out):
        request.say(line)
    todo = chosen(cells, statuses(cells, out), request.rerun)
    if request.rerun is Rerun.all:
        reopen(todo, out)
    with stop_requests(signals=2) as stop, Watch({}, stop, done=len(cells) - len(todo), quiet=request.quiet) as watch:
        while todo and not watch.draining:
            watch.titles |= {cell.spec.run_id: cell.title for cell in todo}
            fuse = request.sweep.fuse if request.fuse is None else request.fuse
            engine.run(todo, Options(out=out, quiet=True, fuse=fuse), watch)
            cells = request.runs()
            left = chosen(cells, statuses(cells, out), request.rerun)
            todo = [cell for cell in left if cell.spec.run_id not in watch.titles]
    _conclude(request, cells, watch)


def _conclude(request: Request, cells: Sequence[Cell], watch: Watch) -> None:
    """Say how it ended; raise where not all is done."""
    out = request.out
    found = statuses(cells, out)
    counts = {kind: sum(status == kind for status in found.values()) for kind in ("done", "stale", "failed", "newer")}
    left = len(cells) - sum(counts.values())
    parts = [f"{counts['done']} of {len(cells)} runs done"]
    parts += [f"{counts['failed']} failed (--rerun failed)"] if counts["failed"] else []
    parts += [f"{counts['stale']} made by other code (--rerun stale)"] if counts["stale"] else []
    parts += [f"{counts['newer']} made by a newer invbench, which are left alone"] if counts["newer"] else []
    parts += [f"{left} not finished"] if left else []
    request.say(f"{', '.join(parts)}: `bench table {out}`")
    for message, count in _grouped(watch.failures).items():
        request.say(f"  {message}" + (f" (and {count - 1} more such)" if count > 1 else ""))
    if watch.full:
        raise Interrupted(f"{watch.full}; make room, and the same command continues")
    if watch.stop.is_set() and left:
        raise Interrupted(f"stopped with {left} runs not finished; the same command continues")
    if counts["failed"] or left:
        kind = next((one.kind for one in watch.outcomes.values() if one.status == "failed"), "failed")
        raise RunFailed(
            kind, f"{counts['failed'] + left} of {len(cells)} runs are not done; their folders in {out} say why"
        )


def dry_run(request: Request, workers: int) -> list[str]:
    """Every run with its status and settings that others do not share, and what the ones that are left will cost."""
    cells, out = request.runs(), request.out
    settings = told_apart(cells)
    found, costs = statuses(cells, out), Costs(out)
    todo = {cell.spec.run_id for cell in chosen(cells, found, request.rerun)}
    width = max(len(cell.title) for cell in cells)
    lines, known, unknown = [], 0.0, 0
    for cell in cells:
        status, run_id = found[cell.spec.run_id], cell.spec.run_id
        line = f"{run_id}  {'to do' if run_id in todo else '-':5}  {status:7}  {cell.title:{width}}"
        if run_id in todo:
            seconds = costs.seconds(cell)
            known, unknown = known + (seconds or 0), unknown + (seconds is None)
            line += f"  {'about ' + duration(seconds) if seconds is not None else 'no record like it'}"
        lines.append(f"{line}  {settings[run_id]}".rstrip())
    total = f"{len(todo)} of {len(cells)} runs are left"
    if known:
        total += f": about {duration(known / workers)}, {workers} at a time"
    if unknown:
        total += f"; nothing is known of what {unknown} of them take"
    if todo and any(cells.optuna for cells in request.sweep.cells):
        total += "; their results lead to further trials of the search"
    return [*lines, total]


def seconds_of(text: str | None) -> float | None:
    """`90`, `90s`, `30min`, `2h`, `1d` as seconds. Raises UserError for anything else."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*([a-z]*)\s*", text)
    seconds = float(match[1]) * UNITS.get(match[2], 0) if match else 0.0
    if not 0 < seconds <= LONGEST:
        raise UserError(f"--timeout {brief(text)}: write a time such as 90s, 30min or 2h, at most {LONGEST // 86400}d")
    return seconds


def _grouped(failures: Sequence[str]) -> dict[str, int]:
    """Messages with how often they came, whichever run they are of."""
    groups: dict[str, list[str]] = {}
    for text in failures:
        groups.setdefault(text.partition(": ")[2], []).append(text)
    return {texts[0]: len(texts) for texts in groups.values()}


def _cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
