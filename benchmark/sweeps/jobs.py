"""What a sweep on one machine does next: pure functions of what is known and of the time, without process or clock."""

import heapq
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from invbench.runs.resolve import Cell, fuse_obstacle, fusion_key
from invbench.runs.spec import Fuse

RETRIES = {"killed": 3, "oom": 1, "input_output": 1}
"""How often a run is tried again, by kind of failure; where code or numbers are at fault it would be in vain."""
PAUSE_SECONDS = {"input_output": 5.0}
HELD_SECONDS = 2.0
"""Time until a run that another process works on is looked at again."""


class Job(NamedTuple):
    """A run that waits for a slot, or several that go together."""

    run_id: str
    attempts: int = 0
    """Failures so far."""
    alone: bool = False
    """It gets a device for itself, since it ran out of memory beside others."""
    not_before: float = 0.0
    others: tuple[str, ...] = ()
    """Runs that are trained together with it."""

    @property
    def run_ids(self) -> tuple[str, ...]:
        """All of them."""
        return (self.run_id, *self.others)


def again(job: Job, kind: str, now: float) -> Job | None:
    """The same run for another attempt after a failure of this kind; None where there is none."""
    if job.attempts >= RETRIES.get(kind, 0):
        return None
    alone = job.alone or kind == "oom"
    return job._replace(attempts=job.attempts + 1, alone=alone, not_before=now + PAUSE_SECONDS.get(kind, 0))


def parted(job: Job, run_ids: Sequence[str], kind: str) -> list[Job]:
    """The runs of a job that did not work out together: in halves where their number may be to blame, else alone."""
    size = (len(run_ids) + 1) // 2 if kind in RETRIES else 1
    parts = [run_ids[first : first + size] for first in range(0, len(run_ids), size)]
    return [job._replace(run_id=first, others=tuple(others)) for first, *others in parts]


def later(job: Job, now: float) -> Job:
    """The same run, to be looked at again once the process that works on it may be through."""
    return job._replace(not_before=now + HELD_SECONDS)


MOST = 64
"""As many runs are trained together where nobody says how many."""


def jobs_of(cells: Iterable[Cell], fuse: Fuse, places: int) -> list[Job]:
    """The runs as jobs, each of one run or of several that are trained together.

    Args:
        places: jobs that can be done at a time; with `auto` none of them is left idle.
    """
    groups: dict[str, list[str]] = {}
    for cell in cells:
        alone = fuse in ("off", 1) or fuse_obstacle(cell)
        groups.setdefault(cell.spec.run_id if alone else fusion_key(cell), []).append(cell.spec.run_id)
    most = fuse if isinstance(fuse, int) else MOST
    found = [group[first : first + most] for group in groups.values() for first in range(0, len(group), most)]
    if fuse == "auto":
        found = _spread(found, places)
    return [Job(first, others=tuple(others)) for first, *others in found]


def _spread(groups: list[list[str]], places: int) -> list[list[str]]:
    """The groups, the largest of them halved until there is one for each place."""
    heap = [(-len(group), float(number), group) for number, group in enumerate(groups)]
    heapq.heapify(heap)
    while heap and len(heap) < places and len(heap[0][2]) > 1:
        _, number, group = heapq.heappop(heap)
        half = (len(group) + 1) // 2
        for order, part in ((number, group[:half]), (number + 0.5, group[half:])):
            heapq.heappush(heap, (-len(part), order, part))
    return [group for _, _, group in sorted(heap, key=lambda entry: entry[1])]


Status = Literal["done", "failed", "interrupted", "held", "apart"]


class Outcome(NamedTuple):
    """How an attempt at a run ended; `apart`: it was one at several together, which should be tried otherwise."""

    status: Status
    kind: str = ""
    """Of a failure: oom, killed, timeout, diverged, input_output, disk_full, request or error."""
    message: str = ""
    seconds: float = 0.0
