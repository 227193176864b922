"""What the documents show works as shown."""

import importlib
import math
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Bench
from pictures import write_tree

from invbench.runs.resolve import resolve

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "example",
    ["WorstCase", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ResidualBackbone", "SerialEngine"))],
)
def test_the_examples_run_as_printed(example: str, tmp_path: Path) -> None:
    """The complete examples of CONTRIBUTING.md, saved to a file and run."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = [code for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if f"class {example}" in code]
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'test_accuracy': 0." in done.stdout


EXAMPLES: dict[str, Callable[[list[float]], bool]] = {
    "or_against_and": lambda values: values == [1, 1, -1.0, -1, -1, -0.02],
    "linear_regression": lambda values: max(values[:4]) < 0.35 and min(values[9], values[14]) > 2.9,
    "rotation_range": lambda values: 1.3 < values[0] < 1.9 and max(values[1:3]) < 0.1 and values[-1] > 0.95,
    "decorrelate": lambda values: values[1] > 0.04 > 0.02 > values[3],
    "why_erm_fails": lambda values: values[1] < 0.65 < 0.9 < min(values[6], values[9]),
    "own_method": lambda values: values[4] < 0.3 and min(values[9], values[14]) > 2.8 and max(values[10:14]) < 0.1,
    "own_dataset": lambda values: values[3] < 0.3 < 0.45 < values[6],
    "which_symmetry": lambda values: (
        abs(values[1] - math.pi / 2) < 0.2
        and max(values[2:4]) < 0.6
        and values[4] > 0.9
        and values[5] < 0.6
        and values[6] < 5
    ),
    "composition": lambda values: max(values[3], values[7], values[11]) < 0.75 < 0.85 < values[15],
}
"""What must hold of the numbers that they print."""
QUICK = ("why_erm_fails",)
"""Examples that are run by default."""


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in EXAMPLES]
)
def test_the_worked_examples_show_what_they_say(example: str, tmp_path: Path) -> None:
    script = ROOT / "docs" / "examples" / f"{example}.py"
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert EXAMPLES[example]([float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", done.stdout)]), done.stdout
    assert (tmp_path / f"{example}.png").stat().st_size > 10_000


def test_every_worked_example_is_tested() -> None:
    assert {path.stem for path in (ROOT / "docs" / "examples").glob("*.py")} == set(EXAMPLES)


def test_the_lists_name_what_there_is() -> None:
    from invbench.core.registry import BACKBONES, DATASETS, METHODS

    pages = {METHODS: "docs/methods.md", BACKBONES: "docs/methods.md", DATASETS: "docs/datasets.md"}
    for registry, page in pages.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for name in registry.entries():
            assert f"`{name}`" in text, f"{page} does not mention {registry.kind} {name}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{len(METHODS.entries())} methods on {len(DATASETS.entries())} datasets" in readme


def test_the_run_that_the_readme_shows_is_that_of_today() -> None:
    run_id = resolve("and_mask", "spirals", 0).spec.run_id
    assert f"│ {run_id} │" in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["README.md", "docs/use.md"])
def test_pages_say_how_to_activate_the_environment(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert "source .venv/bin/activate" in text
    assert r".venv\Scripts\activate" in text


def test_the_reference_results_name_claims() -> None:
    """The site takes the verdicts from that table, by name."""
    from invbench.published.claims import claims_of

    text = (ROOT / "results" / "reference" / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"^\|[^|]*\|[^|]*\| `(\w+)` \|", text, re.MULTILINE)
    assert len(names) > 20
    assert all(claims_of(name) for name in names)


def test_no_unsafe_loading() -> None:
    """No pickle, no unsafe YAML, no evaluation of text, no shell, anywhere in the package."""
    patterns = (
        r"pickle\.load|yaml\.load\(|(?<![\w.])eval\(|(?<![\w.])exec\(|shell=True|extractall\(|"
        r"torch\.load\((?![^()]*weights_only=True\))"
    )
    for folder in ("benchmark", "methods", "datasets", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.findall(patterns, path.read_text(encoding="utf-8")), path


def documented_commands() -> list[str]:
    text = (ROOT / "docs" / "sources.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`bench ([^`]+)`", text)))


@pytest.mark.parametrize("command", documented_commands())
def test_the_commands_for_the_sources_are_understood(command: str) -> None:
    """Their options are parsed; the runs and sweeps that they name can be resolved."""
    from typer.main import get_command

    from invbench.cli import app
    from invbench.runs.config import parse_assignments
    from invbench.runs.resolve import resolve
    from invbench.sweeps.definition import Sweep

    verb, *arguments = shlex.split(command)
    group = get_command(app)
    verb_command: Any = group.commands[verb]  # type: ignore[attr-defined]
    if hasattr(verb_command, "commands"):
        verb_command, arguments = verb_command.commands[arguments[0]], arguments[1:]
    with verb_command.make_context(verb, arguments) as context:
        given = context.params
    if verb == "run":
        resolve(given["method"], given["dataset"], 0, parse_assignments(given["set_"] or []))
    if verb == "sweep":
        assert Sweep.read(given["name"]).runs()


def group_commands() -> list[str]:
    """Return the commands of the page about groups, each in a line."""
    text = (ROOT / "docs" / "groups.md").read_text("utf-8").replace("\\\n", " ")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [" ".join(line.split()) for block in blocks for line in block.strip().splitlines()]


@pytest.mark.parametrize("offline", [pytest.param(True, marks=pytest.mark.slow), False])
def test_the_commands_about_groups_work(
    offline: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that need no files are carried out, with a few steps; of the others the data are asked for."""
    monkeypatch.chdir(tmp_path)
    commands = [line for line in group_commands() if (re.search("-d (images|wilds)", line) is None) == offline]
    assert len(commands) == (5 if offline else 2)
    for command in commands:
        _, *arguments = shlex.split(command, comments=True)
        steps = ["-q", "--set", "trainer.steps=5"] if arguments[0] == "run" else []
        status, out, err = bench(*arguments, *steps)
        assert (status == 0) == offline, err
        assert any(
            text in out + err for text in ("group_worst", "groups of train", "no file", "copy", "invbench[wilds]")
        ), err


YAML = [
    (path.name, block)
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))
    for block in re.findall("^```yaml\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("page", "block"), YAML)
def test_yaml_can_be_pasted(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a whole sweep."""
    from invbench.sweeps.definition import Sweep

    monkeypatch.chdir(tmp_path)
    write_tree(tmp_path / "PACS", each=2)
    file = tmp_path / "pasted.yaml"
    file.write_text(block, "utf-8")
    assert Sweep.read(str(file)).runs(), page


@pytest.mark.slow
def test_the_notebook_about_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cells run as printed, one after the other."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "own-data.md").read_text("utf-8")
    names: dict[str, Any] = {}
    for block in re.findall("^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(compile(block, "own-data.md", "exec"), names)  # noqa: S102, it is ours
    assert set(names["runs"]["status"]) == {"done"}
    assert len(names["runs"]) == 9
    accuracy = names["runs"].groupby("method")["test_accuracy"].mean()
    assert accuracy["erm"] < 0.6, "the scanner misleads"


@pytest.mark.slow
def test_the_answer_on_the_first_screen_is_that_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = importlib.import_module("draw_leaderboard")
    edition = script.read_edition("small")
    rows = script.read_rows(script.ROWS, edition.problems, edition.version)
    block = script.BLOCK.search((ROOT / "README.md").read_text())
    assert block is not None
    assert block[0] == script.answer(edition, rows), "python scripts/draw_leaderboard.py"
