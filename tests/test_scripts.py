"""Scripts that users run: the twelve QM9 runs, small, on stand-ins."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
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
