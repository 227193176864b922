"""Scripts: the twelve QM9 runs, small, on stand-ins; rows of the acceptance of a GPU, on the CPU; peers' steps."""

import importlib
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from cells import small_settings

from invbench.sweeps.definition import Sweep

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TINY = small_settings("erm", "qm9") | {"trainer.epochs": 1}
pytestmark = pytest.mark.usefixtures("standins")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script with a small size that is even smaller."""
    monkeypatch.syspath_prepend(SCRIPTS)
    module = importlib.import_module("trainqm9_all")
    plan = Sweep.read("qm9_all")
    tiers = {"small": plan.tiers["small"].model_copy(update={"set": TINY})}
    monkeypatch.setattr(module.Sweep, "read", lambda name: plan.model_copy(update={"tiers": tiers}))
    return module


@pytest.mark.slow
def test_twelve_runs_make_one_table(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script.main(out=tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:4] == ["task", "group", "method", "status"]
    assert len(lines) == 13
    assert {tuple(line.split()[:3]) for line in lines[1:]} == {
        (task, group, method)
        for task in ("homo", "lumo")
        for group in ("trivial", "translation")
        for method in ("erm", "fixed_augmentation", "augerino")
    }
    assert all(line.split()[3] == "done" for line in lines[1:])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/record.json")}
    script.main(task=script.Task.homo, group=script.Group.trivial, out=tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/record.json")} == before


Accept = Callable[..., tuple[int, list[dict[str, Any]]]]
"""First words of rows, and seconds -> exit status, the rows in the file."""


@pytest.fixture
def acceptance(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script that accepts a GPU."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("acceptance_gpu")


@pytest.fixture
def accept(acceptance: ModuleType, tmp_path: Path) -> Accept:
    """Return a function that carries out rows in a dry run."""

    def call(*only: str, seconds: float = math.inf) -> tuple[int, list[dict[str, Any]]]:
        with pytest.raises(SystemExit) as ended:
            acceptance.main(acceptance.What.all, "cpu", tmp_path, small=True, seconds=seconds, only=list(only))
        rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
        return int(str(ended.value.code)), rows

    return call


def test_rows_of_another_size_and_a_line_that_a_kill_has_cut(
    acceptance: ModuleType, accept: Accept, tmp_path: Path
) -> None:
    accept("same step erm")
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"part": "same st')
    _, rows = accept("same step erm")
    assert [row["part"] for row in rows] == ["machine", "same step", "machine"]
    for only, line in (
        (["same step erm"], "are of another device or size"),
        (["nothing"], "no row begins with nothing"),
    ):
        with pytest.raises(SystemExit, match=line):
            acceptance.main(acceptance.What.all, "cpu", tmp_path, small=only == ["nothing"], only=only)


def test_rows_of_an_acceptance_are_written_once(accept: Accept) -> None:
    names = ("same step erm", "out of memory", "steps erm, 2")
    status, rows = accept(*names, seconds=0)
    assert status == 1
    assert [row["part"] for row in rows] == ["machine"]
    status, rows = accept(*names)
    assert status == 0
    assert [(row["part"], row["cell"], row["ok"]) for row in rows[1:]] == [
        ("machine", "cpu", True),
        ("same step", "erm", True),
        ("out of memory", "erm", None),
        ("steps", "erm, 2", True),
    ]
    assert rows[2]["compared"].startswith("Compare the parameters after a step")
    assert rows[2]["float64"] == rows[2]["float32"] == 0
    assert rows[4]["ms"] > 0
    _, rows = accept(*names)
    assert [row["part"] for row in rows[5:]] == ["machine"]


def test_a_row_that_fails_stops_no_other(
    accept: Accept, acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(setup: object, cell: str) -> dict[str, Any]:
        raise RuntimeError(f"{cell} is wrong\n\nin many lines\nto the end")

    monkeypatch.setitem(acceptance.CHECKS, "symmetry", (fail, acceptance.CHECKS["symmetry"][1]))
    status, rows = accept("symmetry", "resume erm")
    assert status == 1
    assert [row["ok"] for row in rows] == [True, False, False, True]
    assert rows[1]["error"] == "RuntimeError: tf32 off is wrong ... to the end"
    assert "tests/test_scripts.py:" in rows[1]["at"]
    assert rows[3]["resumed"] == 0
    assert "WRONG symmetry tf32 on: RuntimeError: tf32 on is wrong" in capsys.readouterr().out


def test_waits_are_counted_by_line(acceptance: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)
    with acceptance.waits_of_host(torch.device("cuda")) as lines:
        warnings.warn("Synchronization debug mode does not yet detect all synchronizing operations", stacklevel=1)
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert list(lines.values()) == [2]
    assert "test_scripts.py" in next(iter(lines))
    assert modes == ["warn", "default"]


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the script that compares steps with the published algorithms in plain PyTorch."""
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("benchmark_peers")


def test_steps_are_those_of_the_published_algorithms(peers: ModuleType) -> None:
    """To 1e-4 of a step in double precision, for all in which nothing is random; `check` exits where one is not."""
    methods = sorted(peers.PEERS.keys() - {*peers.RANDOM, *peers.OTHERWISE})
    assert len(methods) == 25
    images = peers.Size(2, 4, 4, convolutional=True)
    for size in (peers.Size(3, 8, 12), images):
        for method in methods:
            peers.check(method, size)
    peers.check("arm", images)


def test_a_step_of_another_algorithm_is_found(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.PEERS, "vrex", peers.PEERS["irmv1"])
    with pytest.raises(SystemExit, match="vrex, .*: a step of the suite and of its peer differ"):
        peers.check("vrex", peers.Size(3, 8, 12))
