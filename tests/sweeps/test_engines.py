"""Ray and Slurm, both real: the same sweep gives the same numbers wherever it is carried out, and survives there."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import Bench
from faulty import FaultySweep
from slurm_cluster import slurm_cluster, why_not

from invbench.runs.folder import run_folders
from invbench.system.signals import stop_requests

NO_RAY = "" if find_spec("ray") else "the extra ray is not installed"
NO_SLURM = why_not() if find_spec("submitit") else "the extra slurm is not installed"
FAULTS = ["none", "kill_once", "raise"]
RAY = [pytest.mark.slow, pytest.mark.ray, pytest.mark.skipif(bool(NO_RAY), reason=NO_RAY)]
SLURM = [pytest.mark.slow, pytest.mark.slurm, pytest.mark.skipif(bool(NO_SLURM), reason=NO_SLURM)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Start a Slurm cluster and yield the variables that name it."""
    with slurm_cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield {"SLURM_CONF": environment["SLURM_CONF"]}


@contextmanager
def ray_cluster(environment: dict[str, str]) -> Iterator[str]:
    """Start a Ray cluster that outlives a sweep and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    quiet = ["--include-dashboard=false", "--disable-usage-stats"]
    with subprocess.Popen(
        [sys.executable, *command, *quiet],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as head:  # fmt: skip
        assert head.stdout is not None
        assert any("--block" in line for line in head.stdout), "Ray has not started"
        try:
            yield f"127.0.0.1:{port}"
        finally:
            head.terminate()


@pytest.fixture(params=[pytest.param("ray", marks=RAY), pytest.param("slurm", marks=SLURM)])
def away(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[FaultySweep, tuple[str, ...]]]:
    """Yield a sweep that is carried out on a cluster, and the options for it."""
    faulty_sweep = FaultySweep(tmp_path / "there")
    if request.param == "slurm":
        faulty_sweep.environment |= request.getfixturevalue("slurm")
        yield faulty_sweep, ("--engine", "slurm")
    else:
        # Else it depends on whether this user has ever made a token.
        faulty_sweep.environment["RAY_AUTH_MODE"] = "disabled"
        with ray_cluster(faulty_sweep.environment) as address:
            yield faulty_sweep, ("--engine", "ray", "--address", address)


def test_the_same_numbers_as_on_this_machine(away: tuple[FaultySweep, tuple[str, ...]], tmp_path: Path) -> None:
    """Also where a process is killed; a failure is the same failure."""
    (there, where), here = away, FaultySweep(tmp_path / "here")
    file = here.file(FAULTS, steps=10)
    here.run(file)
    status, said = there.run(file, *where)
    assert status == 1, said
    assert there.kinds() == here.kinds() == {"none": ["done"], "kill_once": ["done"], "raise": ["error"]}
    assert said.count("  killed: ") == 1
    assert there.metrics() == here.metrics()
    assert "2 of 3 runs done, 1 failed (--rerun failed)" in said
    before = {folder.record: folder.record.stat().st_mtime_ns for folder in run_folders(there.out)}
    assert there.run(file, *where)[0] == 1
    assert before == {path: path.stat().st_mtime_ns for path in before}, "nothing is done twice"
    file = here.file(["none"], steps=10, seeds="1-3", name="together.yaml")
    here.run(file, "--fuse", "3")
    status, said = there.run(file, *where, "--fuse", "3")
    assert status == 0, said
    assert "and 2 more begins on" in said
    assert there.metrics() == here.metrics()


def test_the_sweep_is_killed_and_then_stopped(
    away: tuple[FaultySweep, tuple[str, ...]], undisturbed: dict[str, dict[str, float]]
) -> None:
    """Slurm's jobs go on without it, Ray's end; in both cases the same command continues, as it does after Ctrl-C."""
    there, where = away
    file = there.slow_file()
    there.dawdles.touch()  # the runs must outlast the sweep's second start
    sweep = there.start(file, *where)
    there.wait_for_steps(sweep, 2)
    sweep.kill()
    sweep.communicate()
    jobs = there.out / "slurm" / "jobs.json"
    before = jobs.read_text() if jobs.exists() else ""
    sweep = there.start(file, *where)
    assert sweep.stdout is not None
    assert "begins on" in sweep.stdout.readline(), "it has found those that still work"
    there.wait_for_steps(sweep, 2)
    assert (jobs.read_text() if jobs.exists() else "") == before, "no job is submitted twice"
    os.killpg(sweep.pid, signal.SIGINT)
    said, _ = sweep.communicate(timeout=60)
    assert sweep.returncode == 130, said
    assert "the same command continues" in said
    kinds = set(there.kinds()["slow"])
    assert "interrupted" in kinds
    assert kinds <= {"interrupted", "queued", "done"}, "nothing has failed"
    there.dawdles.unlink()
    status, said = there.run(file, *where)
    assert status == 0, said
    assert any("continuing at step" in folder.log.read_text() for folder in run_folders(there.out))
    assert there.metrics() == undisturbed


@pytest.mark.slow
@pytest.mark.slurm
@pytest.mark.skipif(bool(NO_SLURM), reason=NO_SLURM)
def test_jobs_that_slurm_interrupts_go_on(
    slurm: dict[str, str], undisturbed: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    """One is preempted, which ends and queues it; the other is told that its time is nearly up."""
    there = FaultySweep(tmp_path)
    there.environment |= slurm
    sweep = there.start(there.slow_file(), "--engine", "slurm")
    there.wait_for_steps(sweep, 2)
    first, second, *_ = json.loads((there.out / "slurm" / "jobs.json").read_text()).values()
    for command in (["scontrol", "requeue", first], ["scancel", "--signal=USR2", second]):
        subprocess.run(command, env=there.environment, check=True)
    said, _ = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    assert sum("continuing at step" in folder.log.read_text() for folder in run_folders(there.out)) == 2
    assert "tried again" not in said
    assert there.metrics() == undisturbed


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_extra_is_named(
    engine: str, module: str, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    status, _, said = bench("sweep", "smoke", "--tier", "small", "--engine", engine, "--out", str(tmp_path / "out"))
    assert status == 2
    assert f"pip install 'invbench[{engine}]'" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "sluurm"], "did you mean 'slurm'"),
        (["--engine", "ray", "--workers", "2"], "--workers is for --engine local; leave it out"),
        (["--address", "auto"], "--address is for --engine ray; leave it out"),
        (["--gpus-per-run", "1"], "--gpus-per-run is for --engine ray or slurm; leave it out"),
        (["--engine", "slurm", "--gpus-per-run", "0.5"], "Slurm gives whole GPUs"),
        (["--engine", "slurm", "--slurm", "gpu"], "write KEY=VALUE"),
    ],
)
def test_mistakes(arguments: list[str], message: str, bench: Bench) -> None:
    status, _, said = bench("sweep", "smoke", *arguments)
    assert (status, said.count("\n")) == (2, 1)
    assert message in said


def test_a_signal_to_a_run_reaches_the_sweep_around_it() -> None:
    """An engine that trains in the process of the sweep begins no other run after Ctrl-C."""
    with stop_requests(signals=2) as sweep:
        with stop_requests() as run:
            os.kill(os.getpid(), signal.SIGINT)
        assert run.is_set()
        assert sweep.is_set()
        assert not sweep.urgent
        with stop_requests() as run:
            assert not run.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
        assert sweep.urgent
