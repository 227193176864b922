"""Decisions of the local scheduler, with fake GPUs and a fake clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from invbench.errors import UserError
from invbench.sweeps.engines.scheduler import Limits, RunningJob, Slot, Start, Stop, decide
from invbench.sweeps.jobs import Job, again, later
from invbench.system.gpus import chosen_gpus, visible_gpus

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


@pytest.mark.parametrize(
    ("variable", "count", "expected"),
    [
        (None, 0, []),
        (None, 2, ["0", "1"]),
        ("", 0, []),
        (" ", 0, []),
        ("-1", 0, []),
        ("2", 1, ["2"]),
        ("3,1", 2, ["3", "1"]),
        (" 1 , 0", 2, ["1", "0"]),
        ("0,-1,1", 1, ["0"]),
        ("0,7", 1, ["0"]),  # there is no GPU 7: CUDA ends the list there
        (f"{UUID},GPU-ab", 2, [UUID, "GPU-ab"]),
        (MIG, 1, [MIG]),
        (f"{MIG},{MIG[:-1]}3", 1, [MIG, f"{MIG[:-1]}3"]),  # CUDA finds one instance in a process, whatever the list
        ("5", 0, []),
        ("none", 0, []),
        ("NoDevFiles", 0, []),
    ],
)
def test_visible_gpus(variable: str | None, count: int, expected: list[str]) -> None:
    assert visible_gpus(variable, count) == expected


@pytest.mark.parametrize(("variable", "what"), [("0,0", "twice"), ("all", "'all' is no number"), ("0,,1", "'' is no")])
def test_mistakes_in_the_variable(variable: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        visible_gpus(variable, 2)


def test_gpus_are_chosen_by_place() -> None:
    assert chosen_gpus(None, ["4", "7"]) == ["4", "7"]
    assert chosen_gpus("1", ["4", "7"]) == ["7"]
    assert chosen_gpus("1,0", ["4", "7"]) == ["7", "4"]
    for wrong in ("2", "a", "0,0", "-1", "", ","):
        with pytest.raises(UserError, match="numbers from 0 to 1"):
            chosen_gpus(wrong, ["4", "7"])
    with pytest.raises(UserError, match="no GPU is visible"):
        chosen_gpus("0", [])


def slots_of(*devices: str) -> list[Slot]:
    return [Slot(number, device) for number, device in enumerate(devices)]


def jobs(count: int) -> list[Job]:
    return [Job(f"run{index}") for index in range(count)]


def started(actions: list[Start | Stop]) -> dict[int, str]:
    return {action.slot.number: action.job.run_id for action in actions if isinstance(action, Start)}


def until_full(
    slots: list[Slot], waiting: list[Job], rules: Limits, stepped: bool, free: dict[str, float] | None = None
) -> dict[int, RunningJob]:
    """Decide again and again at one moment, as the scheduler does, until nothing more begins."""
    busy: dict[int, RunningJob] = {}
    while starts := [one for one in decide(slots, waiting, busy, free or {}, rules, 0.0) if isinstance(one, Start)]:
        for start in starts:
            busy[start.slot.number] = RunningJob(start.job, 0.0, stepped)
            waiting = [job for job in waiting if job != start.job]
    return busy


@pytest.mark.parametrize("gpus", [1, 2, 8])
def test_every_gpu_gets_a_run(gpus: int) -> None:
    slots = slots_of(*[str(index) for index in range(gpus)])
    assert started(decide(slots, jobs(20), {}, {}, Limits(), 0.0)) == {index: f"run{index}" for index in range(gpus)}


def test_without_gpus_every_worker_gets_one() -> None:
    busy = until_full(slots_of("cpu", "cpu", "cpu"), jobs(20), Limits(), stepped=False)
    assert sorted(busy) == [0, 1, 2]


def test_all_gpus_before_any_twice() -> None:
    slots = slots_of("0", "0", "1", "1")
    assert started(decide(slots, jobs(4), {}, {}, Limits(), 0.0)) == {0: "run0", 2: "run1"}
    assert sorted(until_full(slots, jobs(4), Limits(), stepped=True)) == [0, 1, 2, 3]
    assert sorted(until_full(slots, jobs(4), Limits(), stepped=False)) == [0, 2], "company waits for the first step"


def test_company_does_not_wait_for_ever() -> None:
    slots, busy = slots_of("0", "0"), {0: RunningJob(Job("a"), since=0.0)}
    assert not decide(slots, jobs(1), busy, {}, Limits(settle=20), 19.0)
    assert started(decide(slots, jobs(1), busy, {}, Limits(settle=20), 20.0)) == {1: "run0"}


def test_no_company_where_memory_is_short_but_one_always_runs() -> None:
    slots, rules = slots_of("cpu", "cpu"), Limits(memory_floor=100)
    assert sorted(until_full(slots, jobs(3), rules, stepped=True, free={"cpu": 99})) == [0]
    assert sorted(until_full(slots, jobs(3), rules, stepped=True, free={"cpu": 100})) == [0, 1]


def test_company_of_a_known_kind_does_not_wait() -> None:
    slots = slots_of("0", "0", "0", "1", "1", "1")
    waiting = [Job(f"run{index}", kind="erm") for index in range(6)]
    first = {0: RunningJob(waiting[0], 0.0), 3: RunningJob(waiting[1], 0.0)}
    assert not decide(slots, waiting[2:], first, {}, Limits(), 1.0)
    needs = {("erm", 1): 30.0}
    assert sorted(started(decide(slots, waiting[2:], first, {}, Limits(), 1.0, needs=needs))) == [1, 2, 4, 5]
    two = started(decide(slots, waiting[2:4], first, {}, Limits(), 1.0, needs=needs))
    assert sorted(two) == [1, 4], "each GPU gets one before any gets two"
    rules, free = Limits(memory_floor=10), {"0": 99.0, "1": 69.0}
    # Of GPU 0, 30 are expected of the run that has not made a step, 30 of each new one, and 10 stay free.
    assert sorted(started(decide(slots, waiting[2:], first, free, rules, 1.0, needs=needs))) == [1]
    other = [Job("other", kind="augerino"), *waiting[2:]]
    assert started(decide(slots, other, first, {}, Limits(), 1.0, needs=needs)) == {1: "other", 4: "run2", 5: "run3"}


@pytest.mark.parametrize(("length", "most"), [(3, 29), (6, 53), (20, 165)])
def test_eight_on_a_gpu_fill_up(length: float, most: float) -> None:
    """64 runs of one kind, 8 at a time, whose first step is seen after 2.5 s: nearly as fast as if none waited."""
    slots = slots_of(*["0"] * 8)
    waiting = [Job(str(index), kind="erm") for index in range(64)]
    busy: dict[int, RunningJob] = {}
    began: dict[int, float] = {}
    needs: dict[tuple[str, int], float] = {}
    now = 0.0
    while waiting or busy:
        for number in [number for number in busy if began[number] + length <= now]:
            del busy[number]
        for number, running in list(busy.items()):
            stepped = now - began[number] >= 2.5
            needs |= {running.job.memory_key: 1.0} if stepped else {}
            busy[number] = running._replace(stepped=stepped)
        for action in decide(slots, waiting, busy, {"0": 1e9}, Limits(memory_floor=1.0), now, needs=needs):
            assert isinstance(action, Start)
            waiting.remove(action.job)
            busy[action.slot.number], began[action.slot.number] = RunningJob(action.job, now), now
        now = round(now + 0.1, 1)
    assert 64 / 8 * length <= now <= most


def test_a_run_that_needs_a_device_for_itself() -> None:
    slots = slots_of("0", "0", "1", "1")
    waiting = [Job("big", attempts=1, alone=True), *jobs(4)]
    busy = {0: RunningJob(Job("a"), 0.0, True), 2: RunningJob(Job("b"), 0.0, True), 3: RunningJob(Job("c"), 0.0, True)}
    assert not started(decide(slots, waiting, busy, {}, Limits(), 1.0)), "GPU 0 is kept free for it, GPU 1 is full"
    assert started(decide(slots, waiting, {2: busy[2], 3: busy[3]}, {}, Limits(), 2.0)) == {0: "big"}
    with_big = {0: RunningJob(waiting[0], 2.0, True), 2: busy[2]}
    assert started(decide(slots, waiting[1:], with_big, {}, Limits(), 3.0)) == {3: "run0"}, "it stays alone"


def test_time_is_up() -> None:
    slots, rules = slots_of("cpu", "cpu"), Limits(timeout=60)
    busy = {0: RunningJob(Job("a"), since=0.0), 1: RunningJob(Job("b"), since=30.0)}
    assert decide(slots, [], busy, {}, rules, 59.0) == []
    assert decide(slots, [], busy, {}, rules, 60.0) == [Stop(slots[0])]
    busy[0] = busy[0]._replace(stopping=True)
    assert decide(slots, [], busy, {}, rules, 61.0) == [], "it has been told"


def test_nothing_begins_while_draining() -> None:
    assert decide(slots_of("cpu"), jobs(3), {}, {}, Limits(), 0.0, draining=True) == []


def test_what_is_tried_again() -> None:
    job = Job("a")
    oom = again(job, "oom", 5.0)
    assert oom == Job("a", attempts=1, alone=True, not_before=5.0)
    assert again(oom, "oom", 6.0) is None, "once more alone, and no smaller batch"
    killed = job
    for _ in range(3):
        following = again(killed, "killed", 0.0)
        assert following is not None
        killed = following
    assert again(killed, "killed", 0.0) is None
    for kind in ("error", "diverged", "timeout"):
        assert again(job, kind, 0.0) is None


def test_a_held_run_does_not_keep_others_waiting() -> None:
    waiting = [later(Job("held"), 10.0), *jobs(1)]
    assert started(decide(slots_of("cpu"), waiting, {}, {}, Limits(), 10.0)) == {0: "run0"}
    assert started(decide(slots_of("cpu"), waiting[:1], {}, {}, Limits(), 12.0)) == {0: "held"}


@given(
    st.lists(st.sampled_from(["cpu", "0", "1", "2"]), min_size=1, max_size=8),
    st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=12),
    st.sets(st.integers(0, 7)),
    st.booleans(),
)
def test_no_slot_and_no_run_is_given_twice(
    devices: list[str], kinds: list[tuple[bool, int]], working: set[int], lone: bool
) -> None:
    slots = slots_of(*devices)
    waiting = [Job(f"w{i}", alone=alone, not_before=float(when)) for i, (alone, when) in enumerate(kinds)]
    busy = {
        slot.number: RunningJob(Job(f"b{slot.number}", alone=lone), 0.0, True)
        for slot in slots
        if slot.number in working
    }
    starts = [one for one in decide(slots, waiting, busy, {}, Limits(), 10.0) if isinstance(one, Start)]
    numbers, runs = [one.slot.number for one in starts], [one.job.run_id for one in starts]
    assert len(set(numbers)) == len(numbers)
    assert len(set(runs)) == len(runs)
    assert not set(numbers) & busy.keys()
    assert all(one.job.not_before <= 10 for one in starts)
    by_device: dict[str, list[Job]] = {}
    for slot, job in [*((slots[n], b.job) for n, b in busy.items()), *((one.slot, one.job) for one in starts)]:
        by_device.setdefault(slot.device, []).append(job)
    for one in starts:
        if one.job.alone:
            assert by_device[one.slot.device] == [one.job]
    if not busy and any(job.not_before <= 10 for job in waiting):
        assert starts, "an idle machine with work to do works"
