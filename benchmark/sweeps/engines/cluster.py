"""What engines that hand runs to a cluster share: everything is submitted at once, and asked after now and then."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from invbench.runs.folder import RunFolder
from invbench.runs.lease import read_lease
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.sweeps.engines.worker import settle_outcomes
from invbench.sweeps.jobs import Job, Outcome, jobs_of
from invbench.sweeps.monitor import SweepMonitor

POLL_SECONDS = 1.0


class Handle(Protocol):
    """A job that was handed to a cluster."""

    def outcomes(self) -> Sequence[Outcome] | None:
        """Return how the job's runs ended; None while it waits or works."""

    def stop(self) -> None:
        """Ask the job to write its checkpoint and end."""


Submit = Callable[[Sequence[Sequence[RunConfig]]], Sequence[Handle]]
"""Hand jobs to the cluster, each of one run or of several together, a handle for each job."""


def carry_out_elsewhere(
    configs: Sequence[RunConfig], options: Options, monitor: SweepMonitor, submit: Submit, slots: int
) -> None:
    """Submit all runs, follow them to their end, and submit those again that deserve it.

    Args:
        slots: number of jobs that run at a time.
    """
    by_id = {config.spec.run_id: config for config in configs}
    waiting = jobs_of(configs, options.fuse, slots)
    working: dict[str, tuple[Job, Handle]] = {}
    stopped = False
    while working or (waiting and not monitor.draining):
        monitor.check()
        now = time.monotonic()
        due = [] if monitor.draining else [job for job in waiting if job.not_before <= now]
        if due:
            handles = submit([[by_id[run_id] for run_id in job.run_ids] for job in due])
            working |= {job.run_id: (job, handle) for job, handle in zip(due, handles, strict=True)}
            waiting = [job for job in waiting if job.not_before > now]
        if monitor.draining and not stopped:
            stopped = True
            for _, handle in working.values():
                handle.stop()
        for run_id, (job, handle) in list(working.items()):
            _look(RunFolder(options.out / run_id), job, monitor)
            outcomes = handle.outcomes()
            if outcomes is None:
                continue
            del working[run_id]
            waiting += settle_outcomes(job, outcomes, by_id, options.out, monitor)
        monitor.tick()
        if working or waiting:
            time.sleep(POLL_SECONDS)


def _look(folder: RunFolder, job: Job, monitor: SweepMonitor) -> None:
    """Report where the job's first run is and how far, by its lease file."""
    seen = read_lease(folder.lease_file)
    if seen is not None and seen.holder is not None and not seen.holder.gone:
        process = f"{seen.holder.host}, process {seen.holder.pid}"
        if not monitor.knows(folder.path.name):
            monitor.started(job.run_ids, process)
        monitor.progress(folder.path.name, seen.holder.step, seen.holder.total)
