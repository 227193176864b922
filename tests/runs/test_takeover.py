"""A run that changes hands: a holder that slept writes nothing more, whatever the clocks of the machines say."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil
import pytest
from cells import SMALL
from filelock import FileLock

from invbench.errors import Interrupted, RunFailed, RunHeld, UserError
from invbench.runs.folder import RunFolder
from invbench.runs.lease import LOCK, Lease, Owner, read_lease
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.runs.spec import RunSpec
from invbench.training.runner import run_one

SETTINGS = SMALL["spirals"] | {"trainer.steps": 60, "trainer.evaluate_every": 3}
SKEWS = [3600.0, pytest.param(-3600.0, marks=pytest.mark.slow)]
"""Seconds by which a machine's clock is ahead."""
MACHINE = """
import os, sys, time, types
from pathlib import Path
from invbench.runs import lease as claims
from invbench.errors import Interrupted, RunHeld
from invbench.runs.options import Options
from invbench.training.runner import run_one
from invbench.runs.resolve import resolve

name, skew, pause, out = sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])
claims.HEARTBEAT_SECONDS, claims.SILENT_SECONDS, claims.WATCH_SECONDS = 0.1, 1.0, 1.0
claims._machine = lambda: name
claims.time = types.SimpleNamespace(time=lambda: time.time() + skew, monotonic=time.monotonic, sleep=time.sleep)
if pause:  # a disk so slow that one can stop the process in the middle of a save
    sync = os.fsync
    os.fsync = lambda handle: (time.sleep(pause), sync(handle))
config = resolve("erm", "spirals", 0, SETTINGS)
try:
    print(run_one(config, Options("cpu", out, checkpoint_seconds=0)).status)
except (Interrupted, RunHeld) as stopped:
    print(type(stopped).__name__)
"""


def start(out: Path, machine: str, skew: float = 0.0, pause: float = 0.0, steps: int = 60) -> subprocess.Popen[str]:
    """Start the run on a machine of this name, whose clock is so many seconds fast."""
    code = MACHINE.replace("SETTINGS", repr(SETTINGS | {"trainer.steps": steps}))
    command = [sys.executable, "-c", code, machine, str(skew), str(pause), str(out)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    return said.strip()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / resolve("erm", "spirals", 0, SETTINGS).spec.run_id)


@pytest.fixture
def sleeper(tmp_path: Path, folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Stop a process between writing a file of the run and putting it into its place."""
    process = start(tmp_path, "sleepy", pause=0.05)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if folder.checkpoint.exists() and any(folder.path.glob(".c*.*")):
            process.send_signal(signal.SIGSTOP)
            if any(folder.path.glob(".curves*")) or any(folder.path.glob(".checkpoint*")):
                break
            process.send_signal(signal.SIGCONT)
        time.sleep(0.001)
    yield process
    process.kill()
    process.communicate()


def contents(folder: RunFolder) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.path.iterdir()}


@pytest.mark.parametrize("skew", SKEWS)
def test_a_holder_that_slept_leaves_what_others_have_finished(
    sleeper: subprocess.Popen[str], folder: RunFolder, tmp_path: Path, skew: float
) -> None:
    time.sleep(1.2)
    assert ended(start(tmp_path, "other", skew)) == "done"
    finished = contents(folder)
    assert sorted(finished) == ["checkpoint.safetensors", "curves.parquet", "log.txt", "record.json", "spec.yaml"]
    sleeper.send_signal(signal.SIGCONT)
    assert ended(sleeper) == "Interrupted"
    assert contents(folder) == finished


@pytest.mark.parametrize("skew", SKEWS)
def test_clocks_that_differ_take_no_run_from_a_living_holder(tmp_path: Path, skew: float) -> None:
    holder = start(tmp_path, "first", pause=0.05, steps=100_000)
    config = resolve("erm", "spirals", 0, SETTINGS | {"trainer.steps": 100_000})
    folder = RunFolder(tmp_path / config.spec.run_id)
    try:
        while not folder.checkpoint.exists() and holder.poll() is None:
            time.sleep(0.01)
        assert ended(start(tmp_path, "second", skew, steps=100_000)) == "RunHeld"
        step = step_of(folder)
        while step_of(folder) <= step and holder.poll() is None:
            time.sleep(0.01)
        assert holder.poll() is None, "the first one works on"
    finally:
        holder.kill()
        holder.communicate()


def step_of(folder: RunFolder) -> int:
    """Read the step from the claim."""
    seen = read_lease(folder.lease_file)
    assert seen is not None
    assert seen.holder is not None
    assert seen.holder.machine == "first"
    return seen.holder.step


@pytest.mark.slow
def test_a_takeover_counts_generations_and_leaves_no_file_behind(folder: RunFolder, tmp_path: Path) -> None:
    """Whatever the killed ones left: locks, and files that were not yet in their places."""
    for generation in (1, 2):
        process = start(tmp_path, "same", pause=0.02)
        until = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < until:
            seen = read_lease(folder.lease_file)
            if seen and seen.holder and seen.holder.pid == process.pid and any(folder.path.glob(".c*.?*")):
                assert seen.holder.generation == generation
                break
            time.sleep(0.002)
        process.kill()
        process.communicate()
    assert (folder.path / LOCK).exists(), "killed in the middle of a write"
    assert ended(start(tmp_path, "same")) == "done"
    assert not [path.name for path in folder.path.iterdir() if path.name.startswith(".") or path == folder.lease_file]


SAVING = """
import sys
from pathlib import Path
import torch
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).hold() as folder:
    while True:
        Checkpoint({"a": torch.zeros(2**24)}, {}).save(folder.replacing(folder.checkpoint))
"""


def test_half_a_checkpoint_is_removed_by_who_comes_next(tmp_path: Path) -> None:
    """Whatever the library that writes it calls its files."""
    process = subprocess.Popen([sys.executable, "-c", SAVING, str(tmp_path)])
    while not [path for path in tmp_path.glob(".*") if not path.name.startswith(".claim") and size_of(path) > 0]:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert len(list(tmp_path.glob(".*"))) > 1, "killed in the middle of a write"
    with RunFolder(tmp_path).hold():
        assert [path.name for path in tmp_path.glob(".*")] == [LOCK]


def size_of(path: Path) -> int:
    """Return the size of a file, or 0 if it is gone by now."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_who_lost_the_run_at_once_removes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what another process is writing by now."""
    file = tmp_path / f".record.json.{'0' * 32}"
    file.touch()
    confirm = Lease.confirm

    def taken(claim: Lease) -> None:
        claim.path.write_text(claim.holder.model_copy(update={"token": "another"}).model_dump_json())
        confirm(claim)

    monkeypatch.setattr(Lease, "confirm", taken)
    with pytest.raises(Interrupted), RunFolder(tmp_path).hold():
        pass
    assert file.exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_claim_without_content_keeps_nobody_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Whoever is interrupted before it has one leaves nothing; so with file systems that know no links."""
    folder = RunFolder(tmp_path)

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    def refused(*arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr("os.link", refused)
    with monkeypatch.context() as interrupted:
        interrupted.setattr(Owner, "model_dump_json", interrupt)
        with pytest.raises(KeyboardInterrupt), folder.hold():
            pass
    assert list(tmp_path.iterdir()) == []
    with folder.hold(), pytest.raises(RunHeld), folder.hold():
        pass


def test_a_claim_has_its_lock_from_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Later there may be no room for another file; where there is none now, nothing is claimed."""
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with folder.hold():
        assert (folder.path / LOCK).exists()

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileLock, "acquire", full)
    with pytest.raises(RunFailed, match="No space left on device; make room"), folder.hold():
        pass
    assert list(folder.path.iterdir()) == []


def test_a_removed_folder_is_not_made_anew_by_its_holder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with folder.hold() as held:
        held.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_which_others_have_finished_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have been there between its making and its claim, and the request be a mistake only now."""
    path, out = tmp_path / "events.csv", tmp_path / "runs"
    frame = pd.DataFrame({"_label": [0, 1] * 30, "mass": range(60), "a": range(60)})
    frame.to_csv(path, index=False)
    sizes = {"trainer.steps": 3, "trainer.batch_size": 10, "backbone.width": 4}
    config = resolve("erm", "tabular_nuisance", 0, sizes | {"dataset.table": str(path), "dataset.nuisance": ["mass"]})
    create = RunFolder.create

    def slow(folder: RunFolder, spec: RunSpec) -> bool:
        new = create(folder, spec)
        monkeypatch.setattr(RunFolder, "create", create)
        run_one(config, Options("cpu", out))
        path.write_text("_label\n")
        return new

    monkeypatch.setattr(RunFolder, "create", slow)
    with pytest.raises(UserError, match="column"):
        run_one(config, Options("cpu", out))
    record = RunFolder(out / config.spec.run_id).read_record()
    assert record is not None
    assert record.status == "done"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_clock_that_is_set_makes_no_holder_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """psutil's time of birth moves with the clock of the machine."""
    holder = Owner.this_process()
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: 5.0)
    assert holder.lives
    assert not holder.model_copy(update={"born": holder.born - 100}).lives
