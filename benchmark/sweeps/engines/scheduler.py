"""Scheduling of a sweep on one machine: pure functions of the known state and the time, without process or clock."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from invbench.sweeps.jobs import Job

CPU = "cpu"


class Slot(NamedTuple):
    """Slot for one run at a time; several may share a device."""

    number: int
    device: str = CPU


class RunningJob(NamedTuple):
    """Job that a slot works on."""

    job: Job
    since: float
    """Time from which its duration counts."""
    stepped: bool = False
    """Whether it has made a step, from which on its memory is known."""
    stopping: bool = False


class Limits(NamedTuple):
    """Limits of a sweep."""

    timeout: float | None = None
    """Maximum seconds of one attempt at a run; runs that are trained together have the sum of theirs."""
    memory_floor: float = 0.0
    """Minimum number of free bytes on a busy device before another run begins there."""
    settle: float = 20.0
    """Maximum seconds to wait for a GPU's run to make its first step before another one begins there."""


class Start(NamedTuple):
    """Action: begin a job in a slot."""

    slot: Slot
    job: Job


class Stop(NamedTuple):
    """Action: let a slot's job write its checkpoint and end, since its time is over."""

    slot: Slot


def decide(
    slots: Sequence[Slot],
    waiting: Sequence[Job],
    busy: Mapping[int, RunningJob],
    free_memory: Mapping[str, float],
    rules: Limits,
    now: float,
    draining: bool = False,
) -> list[Start | Stop]:
    """Decide which jobs begin and which stop now.

    Args:
        slots: with consecutive numbers.
        waiting: in the order in which they should begin.
        busy: by number of the slot.
        free_memory: bytes by device, where that is known.
        draining: nothing new begins.
    """
    actions: list[Start | Stop] = [Stop(slot) for slot in slots if _overdue(busy.get(slot.number), rules, now)]
    if draining:
        return actions
    due = [job for job in waiting if job.not_before <= now]
    company = Counter(slot.device for slot in slots if slot.number in busy)
    closed = {slot.device for slot in slots if slot.number in busy and busy[slot.number].job.alone}
    devices = dict.fromkeys(slot.device for slot in slots)
    lone = [job for job in due if job.alone]
    for job, device in zip(lone, sorted(devices.keys() - closed, key=lambda name: company[name]), strict=False):
        closed.add(device)  # until it is empty nothing else begins there
        if not company[device]:
            actions.append(Start(next(slot for slot in slots if slot.device == device), job))
    sociable = iter(job for job in due if not job.alone)
    free = [slot for slot in slots if slot.number not in busy and slot.device not in closed]
    begun: set[str] = set()  # one on a device at a time: what it takes of the memory shows only afterwards
    for slot in sorted(free, key=lambda slot: (company[slot.device], slot.number)):
        if slot.device in begun or (
            company[slot.device] and not _room(slot.device, slots, busy, free_memory, rules, now)
        ):
            continue
        job_or_none = next(sociable, None)
        if job_or_none is None:
            break
        actions.append(Start(slot, job_or_none))
        begun.add(slot.device)
    return actions


def _overdue(busy: RunningJob | None, rules: Limits, now: float) -> bool:
    if busy is None or rules.timeout is None or busy.stopping:
        return False
    return now - busy.since >= rules.timeout * len(busy.job.run_ids)


def _room(
    device: str,
    slots: Sequence[Slot],
    busy: Mapping[int, RunningJob],
    free_memory: Mapping[str, float],
    rules: Limits,
    now: float,
) -> bool:
    """Tell whether a busy device takes one more job."""
    if free_memory.get(device, float("inf")) < rules.memory_floor:
        return False
    mates = [busy[slot.number] for slot in slots if slot.device == device and slot.number in busy]
    return device == CPU or all(mate.stepped or now - mate.since >= rules.settle for mate in mates)
