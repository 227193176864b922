"""What the documents show works as shown."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("example", ["WorstCase", "ResidualBackbone"])
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


def test_the_readme_names_what_there_is() -> None:
    from invbench.registry import BACKBONES, DATASETS, METHODS

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for registry in (METHODS, DATASETS, BACKBONES):
        for name in registry.entries():
            assert f"`{name}`" in readme, f"README does not mention {registry.kind} {name}"


def test_no_unsafe_loading() -> None:
    """No pickle, no unsafe YAML, no evaluation of text, no shell, anywhere in the package."""
    patterns = r"pickle\.load|yaml\.load\(|(?<![\w.])eval\(|(?<![\w.])exec\(|shell=True|extractall\(|torch\.load\("
    for folder in ("benchmark", "methods", "datasets", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.findall(patterns, path.read_text(encoding="utf-8")), path
