"""One process at a time works on a run, whatever happens to the others, to the machine or to its clock."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from invbench.errors import Interrupted, RunHeld
from invbench.runs import lease as claims
from invbench.runs.lease import Owner, hold_lease, is_held, read_lease

HOLD = """
import sys, time
from pathlib import Path
from invbench.runs.lease import hold_lease
with hold_lease(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
RACE = """
import sys, time
from pathlib import Path
from invbench.runs.lease import hold_lease
from invbench.errors import RunHeld
path, start = Path(sys.argv[1]), float(sys.argv[2])
while time.time() < start:
    pass
try:
    with hold_lease(path):
        time.sleep(1.5)
        print("won")
except RunHeld:
    print("lost")
"""

CHANGE = """
import os, sys, time
for i in range(200):
    os.utime(sys.argv[1], (float(sys.argv[2]) + i,) * 2)
    time.sleep(0.02)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "claim.json"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make heartbeats fast."""
    monkeypatch.setattr(claims, "HEARTBEAT_SECONDS", 0.02)
    monkeypatch.setattr(claims, "WATCH_SECONDS", 0.4)


def elsewhere(path: Path, silent: float) -> Owner:
    """Write the claim of another machine, last renewed so many seconds ago."""
    holder = Owner.this_process().model_copy(update={"machine": "far away", "host": "far"})
    path.write_text(holder.model_dump_json())
    then = time.time() - silent
    os.utime(path, (then, then))
    return holder


def holding(path: Path) -> subprocess.Popen[str]:
    """Start another process that holds the claim."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_held_and_given_up(path: Path) -> None:
    with hold_lease(path) as claim:
        assert is_held(path)
        claim.step, claim.total = 3, 10
        time.sleep(0.2)
        seen = read_lease(path)
        assert seen is not None
        assert seen.holder is not None
        assert (seen.holder.pid, seen.holder.step, seen.holder.total) == (os.getpid(), 3, 10)
        with pytest.raises(RunHeld, match=f"worked on by process {os.getpid()} on"), hold_lease(path):
            pass
    assert not path.exists()
    assert not is_held(path)
    assert list(path.parent.iterdir()) == []


def test_a_killed_holder_on_this_machine_is_followed_at_once(path: Path) -> None:
    process = holding(path)
    assert process.stdout is not None
    with pytest.raises(RunHeld, match=f"process {process.pid} "), hold_lease(path):
        pass
    process.kill()
    while is_held(path):  # the process may remain as a zombie for as long as we do not ask for its end
        time.sleep(0.01)
    began = time.monotonic()
    with hold_lease(path):
        assert time.monotonic() - began < claims.WATCH_SECONDS
    process.stdout.close()
    process.wait()


def test_another_process_with_the_same_number_is_not_the_holder(path: Path) -> None:
    path.write_text(Owner.this_process().model_copy(update={"born": 1.0}).model_dump_json())
    assert not is_held(path)
    with hold_lease(path):
        assert is_held(path)


def test_a_far_holder_lives_while_its_file_changes(path: Path) -> None:
    elsewhere(path, silent=5)
    assert is_held(path)
    with pytest.raises(RunHeld, match="on far"), hold_lease(path):
        pass


@pytest.mark.parametrize("silent", [3600, -3600])
def test_a_silent_far_holder_is_followed_after_a_closer_look(path: Path, silent: float) -> None:
    """An hour ago, or in an hour: a clock was set."""
    elsewhere(path, silent)
    began = time.monotonic()
    with hold_lease(path):
        assert time.monotonic() - began >= claims.WATCH_SECONDS


@pytest.mark.parametrize("silent", [3600, -3600])
def test_a_far_holder_whose_clock_is_wrong_is_left_alone(path: Path, silent: float) -> None:
    """Its file is old or of tomorrow, but it changes."""
    elsewhere(path, silent)
    process = subprocess.Popen([sys.executable, "-c", CHANGE, str(path), str(time.time() - silent)])
    with pytest.raises(RunHeld), hold_lease(path):
        pass
    process.kill()
    process.wait()


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b'{"pid": 3}'])
def test_a_claim_that_cannot_be_read_is_watched_like_a_far_one(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(RunHeld, match="another process"), hold_lease(path):
        pass
    then = time.time() - 3600
    os.utime(path, (then, then))
    with hold_lease(path):
        assert is_held(path)


def test_a_holder_that_slept_too_long_notices(path: Path) -> None:
    with hold_lease(path) as claim:
        claim.check()
        other = elsewhere(path, silent=0)
        time.sleep(0.2)
        with pytest.raises(Interrupted, match="another process has taken over"):
            claim.check()
    seen = read_lease(path)
    assert seen is not None
    assert seen.holder == other, "the new holder's claim is left alone"


def test_a_stopped_process_wakes_up_without_the_claim(path: Path) -> None:
    """SIGSTOP is what a closed laptop does to a run on a shared folder."""
    process = holding(path)
    process.send_signal(signal.SIGSTOP)
    assert is_held(path), "on the same machine a stopped process is still a process"
    process.kill()
    process.communicate()


@pytest.mark.parametrize("dead", [False, True])
def test_of_many_only_one_wins(path: Path, dead: bool) -> None:
    """Whether there is no claim, or a dead one that all try to take over."""
    if dead:
        path.write_text(Owner.this_process().model_copy(update={"pid": 2**22 + 1}).model_dump_json())
    command = [sys.executable, "-c", RACE, str(path), str(time.time() + 3)]
    racers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    results = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(results) == ["lost"] * 5 + ["won"]


def test_a_full_disk_does_not_stop_the_heart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(path) as claim:
        time.sleep(0.1)

        def full(*_: object, **__: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "replace", full)
        before = read_lease(path)
        time.sleep(0.2)
        after = read_lease(path)
        assert before is not None
        assert after is not None
        assert before.mark != after.mark
        claim.check()
