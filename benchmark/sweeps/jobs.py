"""Jobs of a sweep, and the rules by which they are retried and split."""

import heapq
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from invbench.runs.resolve import RunConfig, fuse_obstacle, fusion_key
from invbench.runs.spec import Fuse

RETRIES = {"killed": 3, "oom": 1, "input_output": 1}
"""Maximum number of retries by kind of failure; faults of code or numbers are not retried."""
PAUSE_SECONDS = {"input_output": 5.0}
HELD_SECONDS = 2.0
"""Seconds until a run that another process holds is tried again."""


class Job(NamedTuple):
    """Run that waits for a slot, or several that are trained together."""

    run_id: str
    attempts: int = 0
    """Number of failures so far."""
    alone: bool = False
    """Whether it gets a device for itself, since it ran out of memory beside others."""
    not_before: float = 0.0
    others: tuple[str, ...] = ()
    """Ids of the runs that are trained together with it."""
    kind: str = ""
    """Text that is equal for runs that need the same memory; empty where that is not known."""

    @property
    def run_ids(self) -> tuple[str, ...]:
        """Ids of all runs of the job."""
        return (self.run_id, *self.others)

    @property
    def memory_key(self) -> tuple[str, int]:
        """Key of jobs that need the same memory: kind and number of runs."""
        return self.kind, len(self.run_ids)


def again(job: Job, kind: str, now: float) -> Job | None:
    """Return the job of another attempt after a failure of this kind; None where there is none."""
    if job.attempts >= RETRIES.get(kind, 0):
        return None
    alone = job.alone or kind == "oom"
    return job._replace(attempts=job.attempts + 1, alone=alone, not_before=now + PAUSE_SECONDS.get(kind, 0))


def parted(job: Job, run_ids: Sequence[str], kind: str) -> list[Job]:
    """Split a job whose runs failed together: in halves where their number may be the cause, else singly."""
    size = (len(run_ids) + 1) // 2 if kind in RETRIES else 1
    parts = [run_ids[first : first + size] for first in range(0, len(run_ids), size)]
    return [job._replace(run_id=first, others=tuple(others)) for first, *others in parts]


def later(job: Job, now: float) -> Job:
    """Return the job of another attempt once the process that holds the run may be done."""
    return job._replace(not_before=now + HELD_SECONDS)


MOST = 64
"""Maximum number of runs that are trained together by default."""


def jobs_of(configs: Iterable[RunConfig], fuse: Fuse, slots: int) -> list[Job]:
    """Arrange runs as jobs, each of one run or of several that are trained together.

    Args:
        slots: number of jobs that can be done at a time; with `auto` none of them is left idle.
    """
    groups: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for config in configs:
        run_id = config.spec.run_id
        kinds[run_id] = fusion_key(config)
        alone = fuse in ("off", 1) or fuse_obstacle(config)
        groups.setdefault(run_id if alone else kinds[run_id], []).append(run_id)
    most = fuse if isinstance(fuse, int) else MOST
    groups_of_ids = [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]
    if fuse == "auto":
        groups_of_ids = _spread(groups_of_ids, slots)
    return [Job(first, others=tuple(others), kind=kinds[first]) for first, *others in groups_of_ids]


def _spread(groups: list[list[str]], slots: int) -> list[list[str]]:
    """Halve the largest groups until there is one for each slot."""
    heap = [(-len(group), float(number), group) for number, group in enumerate(groups)]
    heapq.heapify(heap)
    while heap and len(heap) < slots and len(heap[0][2]) > 1:
        _, number, group = heapq.heappop(heap)
        half = (len(group) + 1) // 2
        for order, part in ((number, group[:half]), (number + 0.5, group[half:])):
            heapq.heappush(heap, (-len(part), order, part))
    return [group for _, _, group in sorted(heap, key=lambda entry: entry[1])]


CLEAN = ("", "diverged", "request")
"""Kinds of ends that leave nothing behind in a process."""
Status = Literal["done", "failed", "interrupted", "held", "apart"]


class Outcome(NamedTuple):
    """End of an attempt at a run; `apart`: runs could not be trained together, and should be tried otherwise."""

    status: Status
    kind: str = ""
    """Kind of a failure: oom, killed, timeout, diverged, input_output, disk_full, request or error."""
    message: str = ""
    seconds: float = 0.0
