"""Carry out a sweep: choose the runs that are left, give them to an engine, say how it ended."""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pandas as pd

from invbench.choices import EngineName, Rerun
from invbench.console import announce, somebody_looks
from invbench.errors import Interrupted, RunFailed
from invbench.results.load import load_results
from invbench.runs.folder import RunFolder, first_stages_of
from invbench.runs.options import RESULTS, Options
from invbench.runs.resolve import RunConfig
from invbench.runs.spec import Fuse, parse_fuse
from invbench.sweeps.definition import FULL, Sweep
from invbench.sweeps.engines import Engine, make_engine
from invbench.sweeps.engines.worker import mark_of_unguarded
from invbench.sweeps.folder import (
    CostEstimator,
    announce_changes,
    chosen,
    metrics_of,
    reopen,
    statuses,
    told_apart,
)
from invbench.sweeps.monitor import SweepMonitor, duration
from invbench.system.signals import stop_requests


@dataclass(frozen=True)
class SweepRequest:
    """Request of a call of `bench sweep`.

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
        cls,
        name: str | Mapping[str, Any],
        out: str | Path | None,
        tier: str,
        rerun: str,
        fuse: str | None = None,
        quiet: bool = False,
    ) -> Self:
        """Read a sweep; its folder is results/<name>, or results/sweep of one without a name, where `out` is None.

        Raises:
            UserError: there is no such sweep or choice, or something in the sweep is wrong.
        """
        again = Rerun.of(rerun)
        stem = Path(name).stem if isinstance(name, str) else "sweep"
        folder = Path(RESULTS) / stem if out is None else Path(out)
        return cls(Sweep.read(name), folder, tier, again, quiet, None if fuse is None else parse_fuse(fuse))

    def runs(self) -> list[RunConfig]:
        """Return the runs of the sweep; of a search that results lead, those that are known so far."""
        return self.sweep.runs(self.tier, metrics_of(self.out))

    def say(self, text: str) -> None:
        """Print one line to stderr."""
        if not self.quiet:
            announce(text)


def sweep(
    name: str | Path | Mapping[str, Any],
    *,
    tier: str = FULL,
    out: str | Path | None = None,
    rerun: Rerun | str = Rerun.missing,
    fuse: Fuse | str | None = None,
    progress: bool | None = None,
    engine: EngineName | str = EngineName.local,
    threads: int | None = None,
    device: str | None = None,
    gpus: str | int | None = None,
    jobs_per_gpu: int | None = None,
    workers: int | None = None,
    timeout: float | None = None,
    memory_floor: float | None = None,
    gpus_per_run: float | None = None,
    address: str | None = None,
    minutes: int | None = None,
    slurm: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Carry out what is left of a sweep, and return all its runs as `load_results` does.

    Called from a script, it must stand under `if __name__ == "__main__":`, since its processes import the script.

    >>> import invbench, pathlib
    >>> text = "{seeds: 0-1, set: {trainer.epochs: null, trainer.steps: 2}, cells: [{method: erm, dataset: spirals}]}"
    >>> size = pathlib.Path("two.yaml").write_text(text)
    >>> invbench.sweep("two.yaml", workers=1)[["seed", "status"]].sort_values("seed").values.tolist()
    [[0, 'done'], [1, 'done']]

    Args:
        name: a sweep of the package, or a YAML file; or what such a file holds, where `dataset` of a cell may be a
            `Problem`.
        tier: full, or a size that the sweep names.
        out: folder of the runs; results/<name> where it is None.
        rerun: missing, failed, stale or all.
        fuse: auto, off, or a number of runs that are trained together at most; as the sweep says where it is None.
        progress: show it on stderr, or below the cell of a notebook; None: where that is a terminal or a notebook.
        engine: a name in `invbench.sweeps.engines.ENGINES`: local, ray or slurm, or one that was entered there.
        threads: of each process, or cores of each run on a cluster; None: 1.
        device: auto, cpu or cuda; None: auto, GPUs where there are some.
        gpus, jobs_per_gpu, workers: local; see `LocalResources`. One run at a time on a GPU where it is None.
        timeout: local: seconds for one attempt at a run.
        memory_floor: local: GiB that must be free where others work before one more run begins; None: 1.
        gpus_per_run: ray, also a fraction, and slurm: GPUs of each run.
        address: ray: auto, local (one of its own), or host:port; None: auto.
        minutes: slurm: time of a job, after which a longer run is queued again; None: 60.
        slurm: slurm: options of sbatch by their long names, such as `{"partition": "gpu"}`.

    Raises:
        UserError: something in the request is wrong, or an option is none of the engine's; nothing was run.
        Interrupted: Ctrl-C, or a full disk; running runs have kept their checkpoints, and the same call continues.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a process of the sweep imports the script
        mark_of_unguarded(os.getppid()).touch()
        os._exit(1)
    show = somebody_looks() if progress is None else progress
    definition = str(name) if isinstance(name, Path) else name
    request = SweepRequest.read(definition, out, tier, rerun, None if fuse is None else str(fuse), quiet=not show)
    chosen = make_engine(
        engine,
        threads=threads,
        device=device,
        gpus=gpus,
        jobs_per_gpu=jobs_per_gpu,
        workers=workers,
        timeout=timeout,
        memory_floor=memory_floor,
        gpus_per_run=gpus_per_run,
        address=address,
        minutes=minutes,
        slurm=slurm,
    )
    with suppress(RunFailed):  # the failed runs are in the table, with their kinds
        carry_out_sweep(request, chosen)
    return load_results(request.out)


def carry_out_sweep(request: SweepRequest, engine: Engine) -> None:
    """Carry out what is left of a sweep.

    Raises:
        UserError: something in the request is wrong; nothing was run.
        RunFailed: all runs are over, and some have failed.
        Interrupted: Ctrl-C, or a full disk; the same command continues.
    """
    configs, out = request.runs(), request.out
    for line in announce_changes(request.sweep, request.tier, configs, out):
        request.say(line)
    todo = chosen(configs, statuses(configs, out), request.rerun)
    if request.rerun is Rerun.all:
        reopen(todo, out)
    with (
        stop_requests(signals=2) as stop,
        SweepMonitor({}, stop, done=len(configs) - len(todo), quiet=request.quiet) as monitor,
    ):
        while todo and not monitor.draining:
            monitor.titles |= {config.spec.run_id: config.title for config in todo}
            fuse = request.sweep.fuse if request.fuse is None else request.fuse
            engine.run(todo, Options(out=out, quiet=True, fuse=fuse), monitor)
            configs = request.runs()
            left = chosen(configs, statuses(configs, out), request.rerun)
            todo = [config for config in left if config.spec.run_id not in monitor.titles]
    _conclude(request, configs, monitor)


def _conclude(request: SweepRequest, configs: Sequence[RunConfig], monitor: SweepMonitor) -> None:
    """Say how it ended; raise where not all is done."""
    out = request.out
    status_of = statuses(configs, out)
    counts = {kind: list(status_of.values()).count(kind) for kind in ("done", "stale", "failed", "newer")}
    left = len(configs) - sum(counts.values())
    parts = [f"{counts['done']} of {len(configs)} runs done"]
    parts += [f"{counts['failed']} failed (--rerun failed)"] if counts["failed"] else []
    parts += [f"{counts['stale']} made by other code (--rerun stale)"] if counts["stale"] else []
    parts += [f"{counts['newer']} made by a newer invbench, which are left alone"] if counts["newer"] else []
    parts += [f"{left} not finished"] if left else []
    request.say(f"{', '.join(parts)}: `bench table {out}`")
    for message, count in _grouped(monitor.failures).items():
        request.say(f"  {message}" + (f" (and {count - 1} more such)" if count > 1 else ""))
    if monitor.full:
        raise Interrupted(f"{monitor.full}; make room, and the same command continues")
    if monitor.stop.is_set() and left:
        raise Interrupted(f"stopped with {left} runs not finished; the same command continues")
    if counts["failed"] or left:
        kind = next((one.kind for one in monitor.outcomes.values() if one.status == "failed"), "failed")
        why = f"; their folders in {out} say why" if counts["failed"] else ""
        raise RunFailed(kind, f"{counts['failed'] + left} of {len(configs)} runs are not done{why}")


def dry_run(request: SweepRequest, workers: int) -> list[str]:
    """List every run with its status and the settings that vary, and estimate the cost of those that are left."""
    configs, out = request.runs(), request.out
    settings = told_apart(configs)
    status_of, costs = statuses(configs, out), CostEstimator(out)
    todo = {config.spec.run_id for config in chosen(configs, status_of, request.rerun)}
    first = first_stages([config for config in configs if config.spec.run_id in todo], out)
    width = max(len(config.title) for config in configs)
    lines, known, unknown = [], 0.0, 0
    for config in configs:
        status, run_id = status_of[config.spec.run_id], config.spec.run_id
        line = f"{run_id}  {'to do' if run_id in todo else '-':5}  {status:7}  {config.title:{width}}"
        if run_id in todo:
            seconds = costs.seconds(config)
            known, unknown = known + (seconds or 0), unknown + (seconds is None)
            line += f"  {'about ' + duration(seconds) if seconds is not None else 'no record like it'}"
        lines.append(f"{line}  {settings[run_id]}".rstrip())
    for seconds in map(costs.seconds, first):
        known, unknown = known + (seconds or 0), unknown + (seconds is None)
    total = f"{len(todo)} of {len(configs)} runs are left"
    total += f", and {len(first)} first stage{'s' * (len(first) > 1)} that they begin from" if first else ""
    if known:
        of = f"{len(todo) + len(first) - unknown} of these take " if unknown else ""
        total += f": {of}about {duration(known / workers)}, {workers} at a time"
    if unknown:
        total += f"; nothing is known of what {unknown} of them take"
    if todo and any(cells.optuna for cells in request.sweep.cells):
        total += "; their results lead to further trials of the search"
    return [*lines, total]


def first_stages(configs: Sequence[RunConfig], out: Path) -> list[RunConfig]:
    """Return the runs that runs begin from and that are carried out for them, without those that are done."""
    folder, first, asking = first_stages_of(out), dict[str, RunConfig](), list(configs)
    while asking:  # a first stage may begin from another run
        begun = {one.spec.run_id: one for config in asking if (one := config.first_stage)}
        status_of = statuses(begun.values(), folder)
        is_left = {
            run_id: status != "done" or not RunFolder(folder / run_id).checkpoint.exists()
            for run_id, status in status_of.items()
        }
        asking = [config for run_id, config in begun.items() if is_left[run_id] and run_id not in first]
        first |= {config.spec.run_id: config for config in asking}
    return list(first.values())


def _grouped(failures: Sequence[str]) -> dict[str, int]:
    """Count messages, whichever run they are of."""
    groups: dict[str, list[str]] = {}
    for text in failures:
        groups.setdefault(text.partition(": ")[2], []).append(text)
    return {texts[0]: len(texts) for texts in groups.values()}
