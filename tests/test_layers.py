"""The order of the rooms: a package imports only those above it, no file in a circle, and tables need no torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import invbench

ORDER = (
    "top", "system", "datafiles", "core", "components", "backbones", "evaluation", "runs", "training", "results",
    "sweeps", "leaderboard", "published", "analysis", "reporting", "testing", "cli",
)  # fmt: skip
"""Rooms, each of which may import those ahead of it; `top` are the files beside them."""
BESIDE = {"methods": ("top", "core", "components"), "datasets": ("top", "datafiles", "core", "components", "system")}
"""What the files of methods and datasets may import."""
NEVER = {"results": ("training",)}
FACE = "invbench"
"""Hands on what all rooms have, and is imported by none."""


def modules() -> dict[str, Path]:
    """Return every file of the package by the name it is imported as."""
    root = Path(next(iter(invbench.__path__)))
    folders = {"invbench": root} | {
        f"invbench.{name}": Path(next(iter(__import__(f"invbench.{name}", fromlist=[""]).__path__))) for name in BESIDE
    }
    files = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            files[".".join((package, *parts)).removesuffix(".__init__")] = path
    return files


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """Yield the modules of the package that a file imports anywhere in it, also for type checkers only."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    yield from imports_in(tree, name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0])


def imports_in(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules of invbench that code in a package of it imports: by statements, or by a name in quotes."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) + 1 - node.level] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            wholes = [f"{module}.{alias.name}" for alias in node.names]
            names = [whole if whole in MODULES else module for whole in wholes]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
        yield from (each for each in names if each.split(".")[0] == "invbench")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import invbench.training.loop as loop", "invbench.training.loop"),
        ("from invbench.training import loop", "invbench.training.loop"),
        ("from invbench.training.loop import TrainingLoop", "invbench.training.loop"),
        ("from ..training import loop", "invbench.training.loop"),
        ("from ..training.loop import TrainingLoop", "invbench.training.loop"),
        ("from .load import load_results", "invbench.results.load"),
        ("def later():\n    from invbench.training.loop import TrainingLoop", "invbench.training.loop"),
        ("importlib.import_module('invbench.training.loop')", "invbench.training.loop"),
    ],
)
def test_every_kind_of_import_is_seen(code: str, expected: str) -> None:
    assert list(imports_in(ast.parse(code), "invbench.results")) == [expected]
    assert not list(imports_in(ast.parse("import torch, json\nimport_module(name)"), "invbench.results"))


def room(name: str) -> str:
    parts = name.split(".")[1:]
    return parts[0] if parts and parts[0] in (*ORDER, *BESIDE) else "top"


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {FACE}))
def test_a_room_imports_only_those_above_it(name: str) -> None:
    importer = room(name)
    allowed = BESIDE.get(importer) or set(ORDER[: ORDER.index(importer) + 1]) - set(NEVER.get(importer, ()))
    face = importer not in BESIDE  # files of methods and datasets may take what anybody takes
    wrong = [other for other in imports(name) if (face and other == FACE) or room(other) not in (*allowed, importer)]
    assert not wrong, f"{name} is in the room {importer}, which may not import {', '.join(wrong)}"


def test_no_file_imports_in_a_circle() -> None:
    graph = {name: set(imports(name)) - {name} for name in MODULES if name != FACE}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        raise AssertionError(f"a circle: {' -> '.join(error.args[1])}") from None


def test_every_room_says_what_it_is_for() -> None:
    for name in ORDER[1:]:
        tree = ast.parse((MODULES[f"invbench.{name}"]).read_text(encoding="utf-8"))
        assert "mports" in (ast.get_docstring(tree) or ""), f"{name} does not say what it imports"


def test_results_are_read_and_compared_without_torch(tmp_path: Path) -> None:
    settings = {"trainer.epochs": None, "trainer.steps": 2, "dataset.environments": 2}
    for method in ("erm", "vrex"):
        invbench.run(method, "spirals", settings=settings, out=tmp_path)
    program = f"""
import sys, invbench
from invbench.cli import app
results = invbench.load_results({str(tmp_path)!r})
invbench.table(results)._repr_html_()
invbench.load_curves({str(tmp_path)!r})
for command in (["table", {str(tmp_path)!r}], ["compare", {str(tmp_path)!r}, {str(tmp_path)!r}], ["ls"]):
    app(command, standalone_mode=False)
sys.exit("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
