"""What a notebook shows: progress in place below a cell, and tables laid out."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import invbench

SPIRALS: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 3, "dataset.environments": 2}


class Cell:
    """Below it things are shown; a handle draws what was shown anew."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.pictures = 0

    def display(self, content: Any, display_id: bool = False) -> "Cell | None":
        if not display_id:  # a line that stays
            return None
        self.texts.append("")
        self.update(content)
        return self

    def update(self, content: Any) -> None:
        self.pictures += 1
        self.texts[-1] = content._repr_mimebundle_([], [])["text/plain"]


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """Simulate a cell of a notebook for rich and IPython."""
    cell = Cell()
    module = ModuleType("IPython.display")
    module.display = cell.display  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert Console().is_jupyter
    return cell


def test_a_run_is_drawn_in_place(cell: Cell, tmp_path: Path) -> None:
    invbench.run("erm", "spirals", settings=SPIRALS, out=tmp_path)
    (text,) = cell.texts
    assert "erm/spirals seed 0" in text
    assert "3/3" in text
    assert "test_accuracy" in text
    assert cell.pictures > 1, "at the beginning and at the end"


def test_a_sweep_is_drawn_in_place(cell: Cell, tmp_path: Path) -> None:
    lines = [
        "method: erm",
        "dataset: spirals",
        "set: {trainer.epochs: null, trainer.steps: 3, dataset.environments: 2}",
    ]
    (tmp_path / "few.yaml").write_text("cells:\n  - " + "\n    ".join(lines) + "\n")
    invbench.sweep(tmp_path / "few.yaml", out=tmp_path / "runs", workers=1)
    assert "1 done  0 failed  0 left" in cell.texts[0]


@pytest.mark.parametrize("where", ["display", "update", "import"])
def test_a_notebook_that_cannot_show_anything_stops_no_run(
    where: str, cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise BrokenPipeError("no front end")

    if where == "import":
        monkeypatch.setitem(sys.modules, "IPython.display", None)
    else:
        monkeypatch.setattr(sys.modules["IPython.display"] if where == "display" else cell, where, fail)
    assert invbench.run("erm", "spirals", settings=SPIRALS, out=tmp_path).status == "done"


def test_progress_is_shown_where_somebody_looks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not in a file that stderr was sent to, unless it was asked for."""
    invbench.run("erm", "spirals", settings=SPIRALS, out=tmp_path)
    assert capsys.readouterr().err == ""
    invbench.run("erm", "spirals", seed=1, settings=SPIRALS, out=tmp_path, progress=True)
    assert "step 3/3" in capsys.readouterr().err


def test_nothing_is_shown_where_nothing_is_wanted(cell: Cell, tmp_path: Path) -> None:
    invbench.run("erm", "spirals", settings=SPIRALS, out=tmp_path, progress=False)
    assert cell.texts == []


def test_a_table_is_laid_out(tmp_path: Path) -> None:
    for seed in (0, 1):
        invbench.run("erm", "spirals", seed=seed, settings=SPIRALS, out=tmp_path)
    table = invbench.table(invbench.load_results(tmp_path))
    html = table._repr_html_()
    assert '<th scope="row">ERM</th>' in html
    assert "(2)</td>" in html
    assert "t-interval" in html
    assert isinstance(table, pd.DataFrame)
    del table["half_width"]
    assert "<th>half_width</th>" not in table._repr_html_(), "a table like any other, once it has been changed"
    assert "<table" in table._repr_html_()
    assert type(table[["method", "mean"]]) is pd.DataFrame
