"""Tables for other programs: whatever a name holds, it is text there, and the table keeps its shape."""

import csv as standard
import html
import io
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from invbench.results.formats import Format, written
from invbench.results.layout import Entry, Layout
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.spreadsheet import csv
from invbench.terminal import visible
from invbench.training.loggers import CSV

NAMES = st.text(
    st.sampled_from("a0 \\{}$&#%^_~<>|[]()*`\"'!+-=@:;.\t\n\r\x0b\x1b\x85\u2028\u202e±†é\ud800"), max_size=8
)
ENTRY = Entry("-0.1250 ± 0.0100", "2/3", True, True)
ATTACKS = (
    "\n\\input{/etc/passwd}", "%\n\\write18{id}", "a\r\\relax", "x\\\\[1cm]", "[2] & *", "$\\frac{", "^^M\\relax",
    "a|b\\|c", "<img src=x>", "[a](javascript:b)", "![a](http://b)", "`a`\n# b", "&lt;",
)  # fmt: skip


def layout(name: str) -> Layout:
    return Layout([name, "setting"], [name], [([name, "plain"], [ENTRY]), (["plain", name], [None])])


def with_attacks(test: Callable[[str], None]) -> Callable[[str], None]:
    for name in ATTACKS:
        test = example(name)(test)
    return given(NAMES)(test)


def plain(latex: str) -> str:
    """Return what LaTeX sets for text that holds only known escapes; fail for any live command."""
    escapes = {
        r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"\textless{}": "<",
        r"\textgreater{}": ">", r"\textbar{}": "|", r"\symbol{34}": '"', r"$\pm$": "±", r"$^{\dagger}$": "†",
        "{[}": "[", "{*}": "*", **{f"\\{mark}": mark for mark in "&%$#_{}"},
    }  # fmt: skip
    parts = re.split("|".join(f"({re.escape(escape)})" for escape in escapes), latex)
    known = [part for part in parts if part is not None]
    for part in known:
        assert part in escapes or not set(part) & set("\\{}$&#%^_~\n\r["), latex
    return "".join(escapes.get(part, part) for part in known)


@with_attacks
def test_latex(name: str) -> None:
    needs, begin, _, caption, label, *lines, end = written(layout(name), [f"of {name}"], Format.latex).split("\n")
    assert needs == r"% needs \usepackage{booktabs}"
    assert (begin, end, label) == (r"\begin{table}", r"\end{table}", r"\label{tab:results}")
    assert plain(caption.removeprefix(r"\caption{").removesuffix("}")) == f"Of {visible(name)}."
    _, begin, _, heads, _, first, second, _, end = lines
    assert (begin, end) == (r"\begin{tabular}{llr}", r"\end{tabular}")
    cells = [line.removesuffix(r" \\").split(" & ") for line in (heads, first, second)]
    assert [[plain(cell) for cell in line] for line in (cells[0], cells[1][:2], cells[2])] == [
        [visible(name), "setting", visible(name)], [visible(name), "plain"], ["plain", visible(name), ""],
    ]  # fmt: skip
    assert cells[1][2] == r"\textbf{$-$0.1250 $\pm$ 0.0100} (2/3)$^{\dagger}$"


@with_attacks
def test_markdown(name: str) -> None:
    """A mark counts where an even number of backslashes is before it."""
    table, _, remark = written(layout(name), [f"of {name}"], Format.markdown).partition("\n\n")
    live = re.compile(r"(?<!\\)(?:\\\\)*([|`*_\[\]~$#<])")
    lines = table.split("\n")
    assert ["".join(live.findall(line)) for line in lines] == ["||||", "||||", "|||****|", "||||"]
    assert live.findall(remark) == []
    plain = html.unescape(re.sub(r"\\(.)", r"\1", remark))
    assert plain == f"of {visible(name)}"


@with_attacks
def test_html(name: str) -> None:
    text = written(layout(name), [f"of {name}"], Format.html)
    tags = re.findall(r"<([a-z/]+)", text)
    assert tags == re.findall(r"<([a-z/]+)", written(layout("name"), ["of name"], Format.html))
    assert html.unescape(re.findall(r'<th scope="row">(.*)</th><th scope="row">plain', text)[0]) == visible(name)


@with_attacks
def test_text(name: str) -> None:
    lines = written(layout(name), [f"of {name}"], Format.text).split("\n")
    assert len(lines) == 5
    assert lines[-1] == f"of {visible(name)}"


@given(NAMES.map(lambda name: name.replace("\ud800", "")))  # pandas has no such texts
@example("=cmd|' /C calc'!A0")
@example("+1+cmd")
@example("-2+3")
@example("@SUM(A1)")
@example("-.")
@example("-1.2.3")
@example("\t=1")
@example("\r=1")
@example('=HYPERLINK("http://x")')
@example("＝1+1")
def test_csv_runs_nothing(name: str) -> None:
    frame = pd.DataFrame({"method": [name, "erm"], f"{name} ": [-1.5, 2.0], "setting": [[1, -2], None]})
    (first, second, *_), row, _ = standard.reader(io.StringIO(csv(frame), newline=""))
    assert first == "method"
    for cell, source in ((row[0], name), (second, f"{name} ")):
        assert cell in (visible(source), f"'{visible(source)}")
        assert not re.match(r"[\t\r\n=+\-@＝]", cell) or float(cell) is not None, "a number stays one"
    assert row[1:] == ["-1.5", "[1, -2]"]


def test_csv_keeps_numbers() -> None:
    """All digits, signs, gaps, and numbers that are texts."""
    frame = pd.DataFrame(
        {
            "float": [-0.1 - 0.2, 1e-300, None], "int": pd.array([-1, None, 2**40], dtype="Int64"),
            "bool": [True, False, True], "mixed": [-3, "-3.5e-4", "-x"],
        }
    )  # fmt: skip
    assert csv(frame).splitlines() == [
        "float,int,bool,mixed", "-0.30000000000000004,-1,True,-3", "1e-300,,False,-3.5e-4", ",1099511627776,True,'-x",
    ]  # fmt: skip


def test_the_csv_logger(tmp_path: Path) -> None:
    logger = CSV(RunFolder(tmp_path), resolve("erm", "spirals").spec, [])
    logger.row({"step": 1, "=1+1": -0.5, "width.\x1b": 2.0})
    logger.close()
    assert (tmp_path / "curves.csv").read_text(encoding="utf-8") == "step,'=1+1,width.\\x1b\n1,-0.5,2.0\n"


@pytest.mark.parametrize("how", list(Format))
def test_what_is_plain_stays_so(how: Format) -> None:
    if how is Format.csv:
        assert csv(pd.DataFrame({"a b": ["and_mask", "é—ü"]})) == "a b\nand_mask\né—ü\n"
    else:
        assert "plain" in written(layout("name"), [], how)
