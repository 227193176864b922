"""Sweeps with real processes: killed, hanging, failing, stopped; no finished run is lost, and none is done twice."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import wait
from pathlib import Path

import psutil
import pytest
from cells import SMALL
from faulty import FaultySweep

from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.sweeps.engines.local import LocalEngine, WorkerProcess, outcomes_of
from invbench.sweeps.engines.scheduler import Slot
from invbench.sweeps.jobs import Outcome
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.signals import StopRequest

Metrics = dict[str, dict[str, float]]


@pytest.mark.slow
def test_every_kind_of_failure(faulty_sweep: FaultySweep) -> None:
    """Each is told apart, tried again where that makes sense, and does not disturb the others."""
    file = faulty_sweep.file(["none", "raise", "memory", "kill_once", "none"])
    status, said = faulty_sweep.run(file)
    assert status == 1, said
    assert faulty_sweep.kinds() == {
        "none": ["done", "done"],
        "raise": ["error"],
        "memory": ["oom"],
        "kill_once": ["done"],
    }
    assert said.count("  oom: ") == 1, "once more alone"
    assert said.count("  failed (oom)") == 1, "then no more"
    assert said.count("  killed: ") == 1
    assert "2 failed (--rerun failed)" in said
    assert "no luck" in said
    before = {folder.record: folder.record.stat().st_mtime_ns for folder in run_folders(faulty_sweep.out)}
    status, said = faulty_sweep.run(file)
    assert status == 1, "some have failed still"
    assert before == {path: path.stat().st_mtime_ns for path in before}, "and nothing was done again"
    faulty_sweep.run(file, "--rerun", "failed")
    changed = [path for path in before if path.stat().st_mtime_ns != before[path]]
    assert len(changed) == 2
    assert all((path.parent / "record.previous.json").exists() for path in changed)


@pytest.mark.slow
def test_accidents_of_runs_that_are_trained_together(faulty_sweep: FaultySweep) -> None:
    """A group that is killed is tried in halves, one with an error run by run, where each leaves its own failure."""
    status, said = faulty_sweep.run(faulty_sweep.file(["kill_once", "raise"], seeds="0-3"), "--fuse", "4")
    assert status == 1, said
    assert faulty_sweep.kinds() == {"kill_once": ["done"] * 4, "raise": ["error"] * 4}
    assert said.count("and 3 more will not be trained like this together: killed") == 1
    assert said.count("and 3 more will not be trained like this together: error: ValueError: no luck") == 1
    records = [folder.read_record() for folder in run_folders(faulty_sweep.out)]
    assert sorted(record.engine.get("fused", 0) for record in records if record is not None) == [0] * 4 + [2] * 4


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_given_up(faulty_sweep: FaultySweep) -> None:
    status, said = faulty_sweep.run(faulty_sweep.file(["kill", "none"]))
    assert status == 1, said
    assert faulty_sweep.kinds() == {"kill": ["killed"], "none": ["done"]}
    assert said.count("begins on") == 1 + 1 + 3


@pytest.mark.slow
def test_a_run_that_hangs(faulty_sweep: FaultySweep) -> None:
    status, said = faulty_sweep.run(faulty_sweep.file(["hang", "none", "none"]), "--timeout", "10s")
    assert status == 1, said
    assert faulty_sweep.kinds() == {"hang": ["timeout"], "none": ["done", "done"]}
    assert "a longer --timeout continues it" in said


@pytest.mark.slow
def test_a_run_out_of_time_keeps_its_checkpoint(faulty_sweep: FaultySweep) -> None:
    file = faulty_sweep.file(["slow"], steps=200)
    status, _ = faulty_sweep.run(file, "--timeout", "5s")
    assert status == 1
    (folder,) = run_folders(faulty_sweep.out)
    assert faulty_sweep.kinds() == {"slow": ["timeout"]}
    status, said = faulty_sweep.run(file, "--rerun", "failed")
    assert status == 0, said
    assert "continuing at step" in folder.log.read_text()


@pytest.mark.slow
def test_the_sweep_itself_is_killed(faulty_sweep: FaultySweep, undisturbed: Metrics) -> None:
    """Its workers keep their checkpoints and end; the same command goes on there."""
    file = faulty_sweep.slow_file()
    process = faulty_sweep.start(file)
    faulty_sweep.wait_for_steps(process, 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, "no worker is left behind"
    assert set(faulty_sweep.kinds()["slow"]) <= {"interrupted", "lost", "queued", "done"}
    status, said = faulty_sweep.run(file)
    assert status == 0, said
    assert faulty_sweep.metrics() == undisturbed


def command_of(process: psutil.Process) -> str:
    """Return a process's command line; empty where it has ended, though nobody has waited for it yet."""
    try:
        return " ".join(process.cmdline())
    except (psutil.ZombieProcess, psutil.NoSuchProcess):
        return ""


@pytest.mark.slow
def test_a_worker_is_killed(faulty_sweep: FaultySweep, undisturbed: Metrics) -> None:
    file = faulty_sweep.slow_file()
    process = faulty_sweep.start(file)
    faulty_sweep.wait_for_steps(process, 1)
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [one for one in children if "spawn_main" in command_of(one)]
    workers[0].kill()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert faulty_sweep.metrics() == undisturbed


def test_a_worker_is_killed_between_two_runs(tmp_path: Path) -> None:
    """Long before the second, and just before the third."""
    cell = resolve("erm", "spirals", 0, SMALL["spirals"] | {"trainer.steps": 2})
    worker = WorkerProcess(Slot(0))

    def outcome() -> Outcome:
        future = worker.take([cell], Options(out=tmp_path))
        assert not wait([future], timeout=60).not_done
        return outcomes_of(future, 1)[0]

    def kill() -> None:
        for process in psutil.Process().children(recursive=True):
            if "spawn_main" in command_of(process):
                process.kill()

    try:
        assert outcome().status == "done"
        kill()
        time.sleep(2)
        assert outcome().status == "done"
        kill()
        last = outcome()
        assert last.status == "done" or last.kind == "killed", last
    finally:
        worker.replace()


def test_a_process_that_is_kept_warm_carries_out_several_sweeps(tmp_path: Path) -> None:
    cell = resolve("erm", "spirals", 0, SMALL["spirals"] | {"trainer.steps": 2})

    def pids_of_runs(engine: LocalEngine, *folders: str) -> list[int]:
        pids = []
        for folder in folders:
            with SweepMonitor({cell.spec.run_id: cell.title}, StopRequest(), quiet=True) as monitor:
                engine.run([cell], Options(out=tmp_path / folder), monitor)
            assert monitor.outcomes[cell.spec.run_id].status == "done"
            pids += [number.value for worker in engine.kept if (number := worker.number) is not None]
        return pids

    engine = LocalEngine([Slot(0)])
    with engine.kept_warm():
        first, second = pids_of_runs(engine, "first", "second")
        assert first == second
        psutil.Process(first).kill()
        assert pids_of_runs(engine, "third") != [first]
        (last,) = pids_of_runs(engine, "fourth")
        assert psutil.pid_exists(last)
    assert not psutil.pid_exists(last)
    assert pids_of_runs(engine, "fifth") == []


@pytest.mark.slow
def test_ctrl_c_once_and_twice(faulty_sweep: FaultySweep, undisturbed: Metrics) -> None:
    file = faulty_sweep.slow_file()
    process = faulty_sweep.start(file)
    faulty_sweep.wait_for_steps(process, 2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to all of them
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "the same command continues" in said
    assert faulty_sweep.kinds() == {"slow": ["interrupted"] * 2}, (
        "running ones have their checkpoints, no other has begun"
    )
    hanging = faulty_sweep.start(faulty_sweep.file(["hang"], seeds="0-3", name="hanging.yaml"))
    while not any(RunFolder(path).lease_file.exists() for path in faulty_sweep.out.glob("*")):
        time.sleep(0.05)
    children = psutil.Process(hanging.pid).children(recursive=True)
    for _ in range(2):
        os.killpg(hanging.pid, signal.SIGINT)
        time.sleep(1)
    said, _ = hanging.communicate(timeout=20)
    assert hanging.returncode == 130, said
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    status, said = faulty_sweep.run(file)
    assert status == 0, said
    assert faulty_sweep.metrics() == undisturbed


@pytest.mark.slow
def test_two_sweeps_share_a_folder(faulty_sweep: FaultySweep) -> None:
    """They divide the runs between them: each is done once."""
    file = faulty_sweep.file(["slow"], steps=20, seeds="0-5")
    both = [faulty_sweep.start(file) for _ in range(2)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert all("6 of 6 runs done" in text for text in said)
    logs = [folder.log.read_text() for folder in run_folders(faulty_sweep.out)]
    assert len(logs) == 6
    assert all(log.count("step 20/20") == 1 for log in logs), "each to its end once"
    assert not any("continuing" in log for log in logs)


@pytest.mark.slow
def test_damaged_files(faulty_sweep: FaultySweep) -> None:
    """A record that cannot be read is no record: the run is made again from its checkpoint."""
    file = faulty_sweep.file(["none"], seeds="0-3")
    assert faulty_sweep.run(file)[0] == 0
    expected = faulty_sweep.metrics()
    first, second, third, fourth = run_folders(faulty_sweep.out)
    first.record.write_bytes(first.record.read_bytes()[:40])
    second.record.write_bytes(b"\x00" * 100)
    second.curves.write_bytes(b"PAR1 and then nothing")
    third.checkpoint.write_bytes(b"")
    fourth.spec.write_text("{")
    status, said = faulty_sweep.run(file)
    assert status == 0, said
    assert faulty_sweep.metrics() == expected


@pytest.mark.slow
def test_a_full_disk(faulty_sweep: FaultySweep) -> None:
    """The sweep stops with one clear line; with room again it goes on, and nothing is lost."""
    small = faulty_sweep.folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("only root can mount a small file system")
    try:
        faulty_sweep.out = small / "out"
        file = faulty_sweep.file(["none"], seeds="0-9")
        status, said = faulty_sweep.run(file)
        assert status == 130, said
        assert "No space left on device" in said
        assert "make room, and the same command continues" in said
        before = faulty_sweep.metrics()
        assert 0 < len(before) < 10
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        status, said = faulty_sweep.run(file)
        assert status == 0, said
        metrics = faulty_sweep.metrics()
        assert len(metrics) == 10
        assert {run_id: metrics[run_id] for run_id in before} == before
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=False)


def test_results_that_cannot_be_written(faulty_sweep: FaultySweep) -> None:
    faulty_sweep.out = Path("/proc/none")
    status, said = faulty_sweep.run(faulty_sweep.file(["none"]))
    assert (status, said.count("\n")) == (2, 1)
    assert "cannot write to /proc/none" in said


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_of_it(tmp_path: Path) -> None:
    """Each process of the sweep imports the script, and so begins the sweep; no run is taken to have failed."""
    definition = {"seeds": "0-3", "cells": [{"method": "erm", "dataset": "spirals"}]}
    script = tmp_path / "script.py"
    script.write_text(f"import invbench\ninvbench.sweep({definition!r}, out={str(tmp_path / 'out')!r}, workers=2)\n")
    ended = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].endswith("put the call under `if __name__ == '__main__':`")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["sweep.yaml"]
