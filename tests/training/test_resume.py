"""A run that is killed at any moment and started again ends as if nothing had happened, to the last bit."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from cells import assert_same_training, small_settings

from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.strict_yaml import parse_yaml

STEPS = 60
CELLS = [
    ("erm", "spirals"),
    pytest.param("erm", "cifar10", marks=pytest.mark.slow),  # random crops and flips in training
    # Random copies, parameters that are no weights:
    pytest.param("augerino", "mario_iggy", marks=pytest.mark.slow),
    pytest.param("irmv1+adareg", "spirals", marks=pytest.mark.slow),  # state of every parameter
    pytest.param("pcgrad", "spirals", marks=pytest.mark.slow),  # random numbers in the rule
    # A critic, caught in the middle of its many updates:
    pytest.param("mutual_information", "mi_toy", marks=pytest.mark.slow),
]
"""Some kinds of state; the contract test resumes every method, without a kill."""


def command(method: str, dataset: str, out: Path, steps: int = STEPS) -> list[str]:
    """Return the command of a small run that writes a checkpoint after every step."""
    settings = {"trainer.steps": steps} | small_settings(method, dataset)
    settings.pop("method.order", None)  # pcgrad as it is
    if "method.critic_steps" in settings:
        settings["method.critic_steps"] = 10
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    code = "from invbench.cli import main; main()"
    verb = ["run", "-m", method, "-d", dataset, *sets, "--out", str(out), "--checkpoint-seconds", "0", "--json"]
    return [sys.executable, "-c", code, *verb]


def folder_of(arguments: list[str], out: Path) -> RunFolder:
    """Return the folder in which such a run keeps its files."""
    sets = dict(value.partition("=")[::2] for flag, value in pairwise(arguments) if flag == "--set")
    assignments = {name: parse_yaml(value, "test") for name, value in sets.items()}
    method, dataset = arguments[arguments.index("-m") + 1], arguments[arguments.index("-d") + 1]
    return RunFolder(out / resolve(method, dataset, 0, assignments).spec.run_id)


def kept_steps(folder: RunFolder) -> int:
    """Return how many steps the checkpoint holds."""
    checkpoint = Checkpoint.load(folder.checkpoint)
    return 0 if checkpoint is None else int(checkpoint.facts["step"])


def stop_later(arguments: list[str], folder: RunFolder, more: int, number: signal.Signals) -> int:
    """Start the run, send the signal once it has kept `more` further steps, and return the exit status."""
    first = kept_steps(folder)
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if kept_steps(folder) >= first + more:
            process.send_signal(number)
            break
        time.sleep(0.002)
    return process.wait(60)


def finish(arguments: list[str]) -> dict[str, object]:
    """Run to the end and return the record."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (record,) = json.loads(done.stdout)
    return record  # type: ignore[no-any-return]


def assert_same(first: RunFolder, second: RunFolder) -> None:
    """Check that metrics, curves and checkpoints are equal, not merely close."""
    a, b = first.read_record(), second.read_record()
    assert a is not None
    assert b is not None
    assert a.metrics == b.metrics
    assert a.engine == b.engine
    assert_same_training(first, second)


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("method", "dataset"), CELLS)
def test_killed_at_three_moments(method: str, dataset: str, tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    arguments = command(method, dataset, disturbed)
    folder = folder_of(arguments, disturbed)
    kills = [stop_later(arguments, folder, more, signal.SIGKILL) for more in (1, 5, 5)]
    assert kills.count(-signal.SIGKILL) >= 2, f"the run was over before it could be killed: {kills}"
    assert folder.read_record() is None
    assert folder.status() == "lost"
    finish(arguments)
    assert folder.log.read_text().count("continuing at step") >= 2
    quiet = command(method, dataset, undisturbed)
    finish(quiet)
    assert_same(folder, folder_of(quiet, undisturbed))


@pytest.mark.slow
def test_interrupted_runs_keep_their_last_step(tmp_path: Path) -> None:
    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    arguments = command("erm", "spirals", disturbed, steps=400)
    folder = folder_of(arguments, disturbed)
    for number in (signal.SIGINT, signal.SIGTERM):
        assert stop_later(arguments, folder, 5, number) == 130
        assert Checkpoint.load(folder.checkpoint) is not None
    finish(arguments)
    quiet = command("erm", "spirals", undisturbed, steps=400)
    finish(quiet)
    assert_same(folder, folder_of(quiet, undisturbed))


def test_two_processes_on_one_run(tmp_path: Path) -> None:
    """One works, the other says so at once and disturbs nothing."""
    arguments = command("and_mask", "spirals", tmp_path, steps=100_000)
    folder = folder_of(arguments, tmp_path)
    first = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not folder.checkpoint.exists() and first.poll() is None:
            time.sleep(0.01)
        second = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
        assert second.returncode == 2
        assert second.stderr.count("\n") == 1
        assert f"is being worked on by process {first.pid} on" in second.stderr
        assert folder.status() == "running"
        kept = kept_steps(folder)
        while kept_steps(folder) <= kept and first.poll() is None:
            time.sleep(0.01)
        assert first.poll() is None, "the first run goes on"
    finally:
        first.kill()
        first.wait(60)
    assert folder.status() == "lost"
