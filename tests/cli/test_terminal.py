"""Names and messages with characters that command a terminal: shown, wherever the program writes."""

import io
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import Bench
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from invbench.cli import main
from invbench.cli.listing import _print
from invbench.cli.run import _table
from invbench.console import announce, counting
from invbench.runs.folder import run_folders
from invbench.sweeps.jobs import Outcome
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.signals import StopRequest
from invbench.terminal import visible, visible_lines
from invbench.training.progress import Report

HARMFUL = "\x1b[2J\x1b]0;title\x07\r\b\x9b1m\u202eright\u2066\u2028line\nerror: another\x7f"
SHOWN = r"\x1b[2J\x1b]0;title\x07\r\x08\x9b1m\u202eright\u2066\u2028line\nerror: another\x7f"
MARKUP = "[/x] [red]:smile: [link=https://example.org]"
"""What rich would take for its own."""


def test_what_is_shown() -> None:
    assert visible(HARMFUL) == SHOWN
    assert visible("caf\udce9") == r"caf\udce9", "a file name that is not UTF-8"
    plain = "Ünïcode ± † µ² 中文 עברית 👩\u200d🔬 a\tb \\x1b"
    assert visible(plain) == plain
    assert visible_lines("a\n\x1bb\n") == "a\n\\x1bb\n"


@given(st.text())
def test_any_text_becomes_one_line_that_can_be_written(text: str) -> None:
    line = visible(text)
    line.encode()
    assert len(f"{line}x".splitlines()) == 1
    assert visible(line) == line
    assert "\x1b" not in line


@pytest.mark.parametrize("name", [HARMFUL, "caf\udce9", "a\u2029b"])
def test_errors_are_one_line(bench: Bench, name: str) -> None:
    for arguments in (("table", name), ("show", name), (f"--{name}",), ("run", "-m", name, "-d", "spirals")):
        status, out, err = bench(*arguments)
        assert (status, out) == (2, "")
        assert err.startswith("error: ")
        assert err.removesuffix("\n").isprintable()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.parametrize("arguments", [["table", "none † here"], ["--help"], ["ls", "published"], ["ls"]])
def test_terminals_that_know_few_letters(monkeypatch: pytest.MonkeyPatch, arguments: list[str], encoding: str) -> None:
    buffers = [io.BytesIO(), io.BytesIO()]
    streams = [io.TextIOWrapper(buffer, encoding=encoding) for buffer in buffers]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    monkeypatch.setattr(sys, "argv", ["bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    for stream in streams:
        stream.flush()
    out, err = (buffer.getvalue() for buffer in buffers)
    if arguments[0] == "table":
        assert stop.value.code == 2
        assert (out, err.count(b"\n")) == (b"", 1)
        assert rb"none \u2020 here" in err
    else:
        assert not stop.value.code
        assert out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("verb", ["ls", "--help"])
def test_output_to_a_full_disk(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(OSError), Path("/dev/full").open("w", encoding="utf-8") as full:  # closing it fails too
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "argv", ["bench", verb])
        with pytest.raises(SystemExit) as stop:
            main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: the output cannot be written: No space left")


def test_a_run_says_each_thing_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the terminal and in its log."""
    log = tmp_path / "log.txt"
    with Report(f"erm {MARKUP} {HARMFUL}", 5, log) as report:
        report.say(f"failed: {MARKUP} {HARMFUL} caf\udce9")
        report.evaluated(1, {f"test_{HARMFUL}": 0.5})
    announce(f"{MARKUP} {HARMFUL} caf\udce9")
    with counting(HARMFUL) as tell:
        tell(1)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        rf"erm {MARKUP} {SHOWN}  failed: {MARKUP} {SHOWN} caf\udce9",
        rf"erm {MARKUP} {SHOWN}  step 1/5  test_{SHOWN} 0.5",
        rf"{MARKUP} {SHOWN} caf\udce9",
    ]
    assert [line.split("  ", 1)[1] for line in log.read_text(encoding="utf-8").splitlines()] == [
        rf"failed: {MARKUP} {SHOWN} caf\udce9", f"step 1/5  test_{SHOWN} 0.5",
    ]  # fmt: skip


def test_bars_and_counts_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "2000")
    with Report(f"erm {MARKUP} {HARMFUL}", 5, tmp_path / "log.txt") as report:
        report.evaluated(1, {f"test_[/x]{HARMFUL}": 0.5})
    with counting(f"counted {MARKUP}") as tell:
        tell(1)
    with SweepMonitor({"a": f"erm {MARKUP} {HARMFUL}"}, StopRequest()) as monitor:
        monitor.started(["a"], f"cpu:0 {MARKUP}")
        monitor.ended("a", Outcome("failed", "error", f"{MARKUP} {HARMFUL}"))
    screen = re.sub("\x1b\\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)  # what rich itself commands
    for text in (f"erm {MARKUP} {SHOWN}", f"test_[/x]{SHOWN} 0.5", f"counted {MARKUP}", f"{MARKUP} {SHOWN}\n"):
        assert text in screen
    assert not re.search("[\x1b\x07\b\x9b\u202e]", screen)


def rendered(what: object) -> str:
    text = io.StringIO()
    Console(file=text, width=1000).print(what)
    return text.getvalue()


def test_a_sweep_in_a_log_and_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = SweepMonitor({"a": f"erm {MARKUP}", "b": f"vrex {HARMFUL}"}, StopRequest())
    monitor.started(["a"], f"cpu:0 {MARKUP}")
    monitor.started(["b"], f"host {HARMFUL}")
    picture = rendered(monitor.picture())
    assert f"erm {MARKUP}" in picture
    assert f"host {SHOWN}" in picture
    monitor.ended("b", Outcome("failed", "error", f"{MARKUP} {HARMFUL}"))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert f"{MARKUP} {SHOWN}" in lines[2]
    assert f"vrex {SHOWN}: {MARKUP} {SHOWN}" in rendered(monitor.picture())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Replace the program's clock by a number of seconds that the test sets."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_a_log_tells_the_time_that_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Report("erm", 60, tmp_path / "log.txt") as report:
        for step in range(1, 61):
            clock[0] += 100.0 if step == 1 else 4.0  # the first one sets things up
            report.step(step)
        report.evaluated(60, {})
    lines = [line.removeprefix("erm  ") for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "step 1/60"
    assert lines[1] == "step 4/60, about 3 min 44 s to go"
    assert lines[-2:] == ["step 58/60, about 8 s to go", "step 60/60  "]


@pytest.mark.parametrize(("seconds", "warned"), [(4.0, False), (50.0, True)])
def test_a_long_run_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], clock: list[float], seconds: float, warned: bool
) -> None:
    with Report("erm", 400, tmp_path / "log.txt") as report:
        for step in range(1, 20):
            clock[0] += seconds
            report.step(step)
    said = [line for line in capsys.readouterr().err.splitlines() if "this run" in line]
    assert said == ["erm  this run will take about 5 h 31 min"] * warned
    assert ("this run will take" in (tmp_path / "log.txt").read_text()) is warned


def test_a_sweep_in_a_log_tells_the_time_that_is_left(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    monitor = SweepMonitor({name: f"erm {name}" for name in "abc"}, StopRequest())
    for name in "abc":
        clock[0] += 60
        monitor.ended(name, Outcome("done", seconds=60))
    ends = [line.partition("[")[2] for line in capsys.readouterr().err.splitlines()]
    assert ends == [
        "1 done, 0 failed, 2 left, about 2 min 00 s to go]",
        "2 done, 0 failed, 1 left, about 1 min 00 s to go]",
        "3 done, 0 failed, 0 left]",
    ]


def test_tables_of_runs_and_lists(capsys: pytest.CaptureFixture[str]) -> None:
    screen = rendered(_table(f"{MARKUP} {HARMFUL}", [["seed", MARKUP, HARMFUL], ["0", HARMFUL, MARKUP]]))
    assert screen.count(MARKUP) == 3
    assert screen.count(SHOWN) == 3
    _print("names", ("name", "summary"), [(HARMFUL, MARKUP), ("erm", HARMFUL)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[1].index("summary") == lines[2].index(MARKUP) == lines[3].index(SHOWN)


def test_a_run_without_stderr(tmp_path: Path) -> None:
    command = 'exec "$@" 2>&-'
    run = [sys.executable, "-c", "from invbench.cli.entry import main; main()", "run", "-m", "erm", "-d", "spirals"]
    settings = ["trainer.epochs=null", "trainer.steps=2", "dataset.environments=2"]
    options = [part for setting in settings for part in ("--set", setting)]
    done = subprocess.run(["bash", "-c", command, "run", *run, *options, "--out", str(tmp_path)], timeout=120)
    assert done.returncode == 0
    assert [folder.status() for folder in run_folders(tmp_path)] == ["done"]


def test_a_terminal_that_goes_away_stops_no_run(tmp_path: Path) -> None:
    """What it would have been shown is in the log."""
    controller, terminal = pty.openpty()
    settings = ["--set", "trainer.steps=60", "--set", "trainer.evaluate_every=2", "--out", str(tmp_path)]
    command = [sys.executable, "-c", "from invbench.cli import main; main()", "run", "-m", "erm", "-d", "spirals"]
    process = subprocess.Popen(
        [*command, *settings], stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    os.close(terminal)
    screen = b""
    while b"/60" not in screen:
        screen += os.read(controller, 1000)
    os.close(controller)
    assert process.wait(120) == 0
    (record,) = tmp_path.glob("*/record.json")
    assert '"status": "done"' in record.read_text()
