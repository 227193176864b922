"""What engines that hand runs to a cluster share: everything is submitted at once, and asked after now and then."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from invbench.claims import look
from invbench.engines.worker import Outcome, settle
from invbench.records import RunFolder
from invbench.runner import Options
from invbench.schedule import Job
from invbench.spec import Cell
from invbench.watching import Watch

POLL_SECONDS = 1.0


class Handle(Protocol):
    """A run that was handed to a cluster."""

    def outcome(self) -> Outcome | None:
        """How it ended; None while it waits or works."""

    def stop(self) -> None:
        """Let it keep its checkpoint and end."""


Submit = Callable[[Sequence[Cell]], Sequence[Handle]]
"""Hand runs to the cluster, a handle for each."""


def carry_out_elsewhere(cells: Sequence[Cell], options: Options, watch: Watch, submit: Submit) -> None:
    """Submit all runs, follow them to their end, and submit those again that deserve it."""
    by_id = {cell.spec.run_id: cell for cell in cells}
    waiting = [Job(run_id) for run_id in by_id]
    working: dict[str, tuple[Job, Handle]] = {}
    stopped = False
    while working or (waiting and not watch.draining):
        now = time.monotonic()
        due = [] if watch.draining else [job for job in waiting if job.not_before <= now]
        if due:
            handles = submit([by_id[job.run_id] for job in due])
            working |= {job.run_id: (job, handle) for job, handle in zip(due, handles, strict=True)}
            waiting = [job for job in waiting if job.not_before > now]
        if watch.draining and not stopped:
            stopped = True
            for _, handle in working.values():
                handle.stop()
        for run_id, (job, handle) in list(working.items()):
            folder = RunFolder(options.out / run_id)
            _look(folder, watch)
            outcome = handle.outcome()
            if outcome is None:
                continue
            del working[run_id]
            following = settle(job, outcome, by_id[run_id].spec, folder, watch)
            waiting += [following] if following else []
        watch.tick()
        if working or waiting:
            time.sleep(POLL_SECONDS)


def _look(folder: RunFolder, watch: Watch) -> None:
    """What the run's claim tells: where it is, and how far."""
    seen = look(folder.claim)
    if seen is not None and seen.holder is not None and not seen.holder.gone:
        place = f"{seen.holder.host}, process {seen.holder.pid}"
        if not watch.knows(folder.path.name):
            watch.started(folder.path.name, place)
        watch.progress(folder.path.name, seen.holder.step, seen.holder.total)
