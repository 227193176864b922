"""What is finished stays: through failures, full disks, sweeps beside people's runs, and Ctrl-C at any moment."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
from cells import SMALL, small_config
from faulty import CODE, FaultySweep
from filelock import FileLock

from invbench.errors import Interrupted, RunFailed, RunHeld
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.lease import read_lease
from invbench.runs.options import Options
from invbench.runs.record import Record, load_record
from invbench.runs.resolve import RunConfig, resolve
from invbench.system.signals import stop_requests
from invbench.training import attempt
from invbench.training.runner import Ended, run, run_one, run_together

SIZES = {"trainer.steps": 12, "trainer.batch_size": 10, "backbone.width": 4, "dataset.standardise": False}


def test_a_finished_record_outlives_any_number_of_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data that changed."""
    path, out = tmp_path / "events.csv", tmp_path / "runs"
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(60, 3)), columns=["mass", "a", "b"])
    frame["_label"] = np.arange(60) % 2

    def again() -> Record:
        settings = SIZES | {"dataset.table": str(path), "dataset.nuisance": ["mass"]}
        return run("erm", "tabular_nuisance", settings=settings, out=out)

    frame.to_csv(path, index=False)
    first = again()
    frame.assign(a=frame.a * 2).to_csv(path, index=False)
    with monkeypatch.context() as accident:
        accident.setattr(attempt, "measure", lambda *arguments: 1 / 0)
        for _ in range(3):
            with pytest.raises(RunFailed, match="division by zero"):
                again()
    second = again()
    frame.assign(a=frame.a * 3).to_csv(path, index=False)
    third = again()
    (folder,) = run_folders(out)
    kept = [load_record(earlier) for earlier in folder.previous.values()]
    assert [*kept, folder.read_record()] == [second, first, third]


def test_a_record_that_cannot_be_understood_is_kept_too(tmp_path: Path) -> None:
    config = small_config("erm", "spirals")
    run_one(config, Options("cpu", tmp_path))
    folder = RunFolder(tmp_path / config.spec.run_id)
    for text in ("{", "not a record"):
        folder.record.write_text(text)
        run_one(config, Options("cpu", tmp_path))
    assert sorted(path.read_text() for path in folder.previous.values()) == ["not a record", "{"]


def test_the_record_of_another_run_is_not_this_one_s(tmp_path: Path) -> None:
    first, second = (small_config("erm", "spirals", trainer__steps=steps) for steps in (5, 6))
    run_one(second, Options("cpu", tmp_path))
    folder = RunFolder(tmp_path / first.spec.run_id)
    folder.create(first.spec)
    folder.record.write_bytes(RunFolder(tmp_path / second.spec.run_id).record.read_bytes())
    record = run_one(first, Options("cpu", tmp_path))
    assert (record.run_id, record.engine["steps"]) == (first.spec.run_id, 5)
    assert folder.read_record() == record


def test_pipes_under_the_names_of_a_run_are_not_waited_for(tmp_path: Path) -> None:
    config = small_config("erm", "spirals")
    folder = RunFolder(tmp_path / config.spec.run_id)
    folder.create(config.spec)
    os.mkfifo(folder.checkpoint)
    assert run_one(config, Options("cpu", tmp_path)).status == "done"
    assert "the checkpoint is no file; starting afresh" in folder.log.read_text()
    folder.record.unlink()
    folder.log.unlink()
    os.mkfifo(folder.log)
    with pytest.raises(RunFailed, match="No such device"):
        run_one(config, Options("cpu", tmp_path))
    os.mkfifo(folder.lease_file)
    with pytest.raises(RunHeld):
        run_one(config, Options("cpu", tmp_path))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """What is left is the look at the claim before each write."""

    def refused(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(FileLock, "acquire", refused)
    assert run_one(small_config("erm", "spirals"), Options("cpu", tmp_path)).status == "done"


def test_a_failure_is_recorded_whatever_else_cannot_be_written(tmp_path: Path) -> None:
    """Where the log and the curves are folders, for one."""
    config = small_config("erm", "spirals", trainer__learning_rate=1e30)
    folder = RunFolder(tmp_path / config.spec.run_id)
    folder.create(config.spec)
    folder.log.mkdir()
    folder.curves.mkdir()
    with pytest.raises(RunFailed):
        run_one(config, Options("cpu", tmp_path))
    record = folder.read_record()
    assert record is not None
    assert record.status == "failed"


def mounted(folder: Path, limits: str) -> bool:
    """Whether this process may mount a small file system there."""
    command = ["mount", "-t", "tmpfs", "-o", limits, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize(("small", "large"), [("size={}", "size=50m"), ("size=50m,nr_inodes=14", "nr_inodes=1000")])
def test_a_full_disk_stops_a_sweep_until_there_is_room(faulty_sweep: FaultySweep, small: str, large: str) -> None:
    """By bytes, and by the number of files; the same command goes on and ends as if nothing had happened."""
    file = faulty_sweep.file(["none"] * 4, steps=20)
    assert faulty_sweep.run(file, "--workers", "1")[0] == 0
    undisturbed = faulty_sweep.metrics()
    needed = sum(path.stat().st_blocks * 512 for path in faulty_sweep.out.rglob("*"))
    faulty_sweep.out = faulty_sweep.folder / "small"
    faulty_sweep.out.mkdir()
    if not mounted(faulty_sweep.out, small.format(needed // 2)):
        pytest.skip("no right to mount a small disk")
    try:
        status, said = faulty_sweep.run(file, "--workers", "1")
        assert (status, "make room" in said) == (130, True), said
        assert "Traceback" not in said
        assert len(faulty_sweep.metrics()) < 4
        subprocess.run(["mount", "-o", f"remount,{large}", str(faulty_sweep.out)], check=True)
        status, said = faulty_sweep.run(file, "--workers", "1")
        assert status == 0, said
        assert faulty_sweep.metrics() == undisturbed
        assert not list(faulty_sweep.out.rglob(".*")), "what could not be written is gone"
    finally:
        subprocess.run(["umount", str(faulty_sweep.out)], check=True)


@pytest.mark.slow
def test_a_sweep_leaves_a_person_s_run_alone(faulty_sweep: FaultySweep) -> None:
    """Whether its time is up or it is stopped: it ends its own processes only."""
    file = faulty_sweep.file(["slow"], steps=100_000)
    settings = SMALL["spirals"] | {"trainer.steps": 100_000, "method.fault": "slow"}
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    options = ["-m", "faulty", "-d", "spirals", *sets, "--out", str(faulty_sweep.out)]
    command = [sys.executable, "-c", CODE, "run", *options]
    person = subprocess.Popen(
        command, env=faulty_sweep.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    faulty_sweep.wait_for_steps(person, 1)  # type: ignore[arg-type]
    sweep = faulty_sweep.start(file, "--timeout", "3s", "--workers", "1")
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until and not children_of(sweep.pid):
            time.sleep(0.05)
        time.sleep(8)
        assert person.poll() is None, "its time is not the sweep's"
        os.kill(sweep.pid, signal.SIGINT)
        said, _ = sweep.communicate(timeout=60)
        assert sweep.returncode in (1, 130), said
        assert person.poll() is None
        (folder,) = run_folders(faulty_sweep.out)
        seen = read_lease(folder.lease_file)
        assert seen is not None
        assert seen.holder is not None
        assert seen.holder.pid == person.pid
        assert folder.status() == "running"
    finally:
        person.kill()
        person.wait()


def children_of(number: int) -> list[psutil.Process]:
    """List the workers of a sweep."""
    try:
        return [one for one in psutil.Process(number).children() if "spawn_main" in " ".join(one.cmdline())]
    except psutil.Error:
        return []


def test_two_signals_at_once_are_two_requests() -> None:
    """A terminal's SIGINT and a sweep's SIGTERM, one of which may arrive while the other is being handled."""
    me = os.getpid()
    with stop_requests(signals=1000) as request:
        senders = [
            threading.Thread(target=lambda number=number: [os.kill(me, number) for _ in range(300)])
            for number in (signal.SIGINT, signal.SIGTERM)
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            while sender.is_alive():
                sender.join(0.01)
        assert request.urgent


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
def test_ctrl_c_twice_at_any_moment_ends_a_sweep(faulty_sweep: FaultySweep, seed: int) -> None:
    """Whatever its workers are doing: starting, hanging, being ended."""
    rng = random.Random(seed)  # noqa: S311
    sweep = faulty_sweep.start(faulty_sweep.file(["hang"], seeds="0-3"))
    until = time.monotonic() + 120
    while time.monotonic() < until and len(children_of(sweep.pid)) < 1 + seed % 2:
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 4))
    workers = children_of(sweep.pid)
    for _ in range(2):
        os.killpg(sweep.pid, signal.SIGINT)
        time.sleep(rng.uniform(0.3, 1.0))
    said, _ = sweep.communicate(timeout=20)
    assert sweep.returncode == 130, said
    assert "Traceback" not in said, "of processes that were being loaded"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive


def test_what_is_not_a_step_is_not_in_the_time_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = attempt.measure

    def slow(*arguments: object) -> dict[str, object]:
        time.sleep(1.0)
        return measure(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(attempt, "measure", slow)
    record = run_one(small_config("erm", "spirals"), Options("cpu", tmp_path))
    cost = record.cost
    assert cost["invariance_seconds"] >= 1.0
    assert cost["seconds_per_step"] * record.engine["steps"] == pytest.approx(cost["training_seconds"])
    assert cost["training_seconds"] < 1.0
    parts = ("training", "evaluation", "checkpoint", "invariance")
    assert cost["wall_seconds"] == pytest.approx(sum(cost[f"{part}_seconds"] for part in parts))


def test_runs_that_are_trained_together_do_not_pay_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> dict[str, object]:
        time.sleep(1.0)
        return {}

    monkeypatch.setattr(attempt, "measure", slow)
    records: list[Record] = []

    def keep(config: RunConfig, ended: Ended) -> None:
        assert isinstance(ended, Record)
        records.append(ended)

    run_together([small_config("erm", "spirals", seed) for seed in range(3)], Options("cpu", tmp_path, fuse=8), keep)
    assert [1.0 <= record.cost["invariance_seconds"] < 2.0 for record in records] == [True] * 3
    walls = [record.cost["wall_seconds"] for record in records]
    assert max(walls) - min(walls) < 0.9, "the last one would pay for two others"
    shares = {record.cost["training_seconds"] for record in records}
    assert len(shares) == 1
    curves = [pd.read_parquet(folder.curves)["training_seconds"] for folder in run_folders(tmp_path)]
    assert all(column.dropna().is_monotonic_increasing for column in curves)
    assert all(column.iloc[-1] <= max(shares) for column in curves)


def test_a_lost_run_leaves_no_record_of_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong after another process has taken the run over is none of the run's failures."""
    config = resolve("erm", "spirals", 0, SMALL["spirals"] | {"trainer.steps": 4})
    folder = RunFolder(tmp_path / config.spec.run_id)

    def taken(*arguments: object) -> dict[str, object]:
        other = json.loads(folder.lease_file.read_text()) | {"token": "another", "machine": "far"}
        folder.lease_file.write_text(json.dumps(other))
        raise ValueError("too late")

    monkeypatch.setattr(attempt, "measure", taken)
    with pytest.raises(Interrupted, match="another process has taken over"):
        run_one(config, Options("cpu", tmp_path))
    assert not folder.record.exists()
    assert read_lease(folder.lease_file).holder.token == "another"  # type: ignore[union-attr]  # noqa: S105
