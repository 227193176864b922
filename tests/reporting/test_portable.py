"""Texts without the folders of this machine."""

import traceback
from pathlib import Path

import pytest

import invbench.methods
from invbench.reporting.portable import without_folders
from invbench.runs.resolve import resolve

PACKAGE = Path(invbench.__path__[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot write to {root}/run-1: full", "cannot write to results/run-1: full"),
        ("no run in {root}", "no run in results"),
        ("no run in {root}, {root}; see", "no run in results, results; see"),
        ("{root}-2/run-1", "…/run-1"),
        ("file://{root}/run-1", "results/run-1"),
        ("dataset.table='/home/ann/my-data/x.parquet'", "dataset.table='…/x.parquet'"),
        ("/home/ann/.venv/lib/python3.11/site-packages/torch/nn/functional.py", "torch/nn/functional.py"),
        ("/usr/lib/python3.12/json/decoder.py", "json/decoder.py"),
        ('"/home/ann/x.py", line 3', '"…/x.py", line 3'),
        ("[/a/b/c, /d/e]", "[…/c, …/e]"),
        ("file:///home/ann/x", "…/x"),
        ("https://example.org/a/b/c and://x", "https://example.org/a/b/c and://x"),
        ("2/5 runs, and/or/not, a/b/c, ../x/y, ~/x/y, ./a/b, 3 / 4 / 5, 2026/01/02", None),
        ("", ""),
        ("no path", None),
    ],
)
def test_texts(tmp_path: Path, text: str, expected: str | None) -> None:
    root = tmp_path / "results"
    cut = without_folders([root])(text.format(root=root))
    assert cut == (text if expected is None else expected)
    assert without_folders([root])(cut) == cut


def test_a_link_is_a_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    for root in (Path("link"), tmp_path / "link"):
        cut = without_folders([root])
        assert cut(f"{tmp_path}/real/x") == cut(f"{tmp_path}/link/x") == "real/x"
    Path("loop").symlink_to("loop")
    assert without_folders([Path("loop")])(f"{tmp_path}/loop") == "loop"
    assert without_folders([Path("/")])("/etc/passwd /") == "…/passwd /"


def test_a_traceback_of_the_package() -> None:
    with pytest.raises(Exception, match="nothing") as caught:
        resolve("nothing", "spirals")
    cut = without_folders([])("".join(traceback.format_exception(caught.value)))
    assert 'File "invbench/runs/resolve.py", line ' in cut
    assert str(PACKAGE) not in cut
    method = Path(invbench.methods.__path__[0]) / "erm.py"
    assert without_folders([])(f'File "{method}"') == 'File "invbench/methods/erm.py"'


def test_long_texts_take_no_time() -> None:
    """No text makes the patterns try again and again."""
    for text in ("/a" * 100_000, "/a b" * 50_000, "/" * 100_000, "a/" * 100_000, "file:" * 50_000):
        assert len(without_folders([])(text)) <= len(text)
