"""Scripts that users run: the twelve QM9 runs, small, on stand-ins."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
from cells import small_settings

import invbench
from invbench.spec import resolve

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
TINY = small_settings("erm", "qm9") | {"trainer.epochs": 1}
pytestmark = pytest.mark.usefixtures("standins")


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(SCRIPTS)  # processes that it starts look there too
    module = importlib.import_module("trainqm9_all")
    monkeypatch.setattr(module, "SMALL", TINY)
    return module


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


def test_runs_are_spread_over_processes(script: ModuleType, tmp_path: Path) -> None:
    cells = [resolve(method, "qm9", 0, TINY) for method in script.METHODS]
    rows = script.spread(cells, tmp_path / "two", ["cpu", "cpu"])
    assert [row["status"] for row in rows] == ["done"] * 3
    alone = script.spread(cells, tmp_path / "one", ["cpu"])
    assert [row["test MAE"] for row in rows] == pytest.approx([row["test MAE"] for row in alone])
    assert len(invbench.load_results(tmp_path / "two")) == 3
