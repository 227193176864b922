"""Scheduling of a sweep on one machine: pure functions of the known state and the time, without process or clock."""

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
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
    """Maximum seconds to wait for a GPU's run of a kind that is new to make its first step, before another one begins
    there."""


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
    needs: Mapping[tuple[str, int], float] = MappingProxyType({}),
) -> list[Start | Stop]:
    """Decide which jobs begin and which stop now.

    Args:
        slots: with consecutive numbers.
        waiting: in the order in which they should begin.
        busy: by number of the slot.
        free_memory: bytes by device, where that is known.
        draining: nothing new begins.
        needs: bytes that a job took on a GPU until its first step, by `Job.memory_key`, of those that have made one.
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
    following = next(sociable, None)
    begun: dict[str, list[Job]] = {}
    while free and following is not None:
        slot = min(free, key=lambda slot: (company[slot.device], slot.number))
        free.remove(slot)
        here = [busy[other.number] for other in slots if other.device == slot.device and other.number in busy]
        new = begun.setdefault(slot.device, [])
        if (here or new) and not _room(slot.device, following, here, new, free_memory, rules, now, needs):
            continue
        actions.append(Start(slot, following))
        new.append(following)
        company[slot.device] += 1
        following = next(sociable, None)
    return actions


def _overdue(busy: RunningJob | None, rules: Limits, now: float) -> bool:
    if busy is None or rules.timeout is None or busy.stopping:
        return False
    return now - busy.since >= rules.timeout * len(busy.job.run_ids)


def _room(
    device: str,
    job: Job,
    mates: Sequence[RunningJob],
    begun: Sequence[Job],
    free_memory: Mapping[str, float],
    rules: Limits,
    now: float,
    needs: Mapping[tuple[str, int], float],
) -> bool:
    """Tell whether a device takes one more job beside these mates and those that have just begun there.

    What a job needs of a GPU's memory shows once it has made a step. Until then its likes tell it, where one has run.
    """
    free = free_memory.get(device, float("inf"))
    if device == CPU:
        return not begun and free >= rules.memory_floor
    unseen = [mate.job for mate in mates if not mate.stepped and now - mate.since < rules.settle] + list(begun)
    if any(mate.memory_key not in needs for mate in unseen):
        return False
    expected = sum(needs[mate.memory_key] for mate in unseen) + needs.get(job.memory_key, 0.0)
    return free - expected >= rules.memory_floor
