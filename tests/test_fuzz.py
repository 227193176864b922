"""No call of `bench` ends with a traceback, by a signal, or not at all, whatever it is given.

A case ends with status 0, with status 2 and one line, or with status 1 and a last line that says what failed. The cases
are those of the modules `fuzz_*`; of each, a part that is drawn once and for all runs by default, another with the mark
`slow`, and what is left with the mark `fuzz`.
"""

import importlib
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from fuzzing import Case, Result, Server, damaged, fault, outcome

QUICK = {"fuzz_command": 40, "fuzz_data": 8, "fuzz_results": 20, "fuzz_sweeps": 30}
"""Cases of each group that run by default, fewer where a case takes longer."""
SLOW = 120
"""Further cases of each group that run where slow tests do."""
CHUNKS = 8
"""Tests that share the cases of a group."""
LIMIT = 300.0
"""Seconds that one of these tests may take; it takes about 5."""


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@cache
def drawn(group: str) -> tuple[list[Case], list[Case], list[Case]]:
    """Return a group's cases in a fixed mixed order: those that run by default, with slow tests, and when asked for."""
    cases: list[Case] = importlib.import_module(group).cases()
    labels = [case.label for case in cases]
    assert len(set(labels)) == len(labels)
    mixed = random.Random(group).sample(cases, len(cases))  # noqa: S311
    quick, slow = QUICK[group], QUICK[group] + SLOW
    return mixed[:quick], mixed[quick:slow], mixed[slow:]


def faults(server: Server, cases: list[Case]) -> list[str]:
    """List what is wrong with how the cases end, and whether they took too long."""
    end = time.monotonic() + LIMIT
    lines = []
    for number, case in enumerate(cases):
        if time.monotonic() > end:
            return [*lines, f"{len(cases) - number} cases were left at the time limit"]
        lines += filter(None, [fault(case, server.run(case))])
    return lines


@pytest.mark.parametrize("part", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.fuzz)])
@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("group", QUICK)
def test_calls(server: Server, group: str, chunk: int, part: int) -> None:
    assert not (lines := faults(server, drawn(group)[part][chunk::CHUNKS])), "\n".join(lines)


@pytest.mark.parametrize(
    ("result", "ended"),
    [
        (Result(0, "", "", 1, 0, False), "zero"),
        (Result(2, "", "error: no\n", 1, 0, False), "ok2"),
        (Result(2, "", "once\nerror: no\n", 1, 0, False), "multiline"),
        (Result(1, "", "once\nerror: no\n", 1, 0, False), "ok1"),
        (Result(1, "", "error: no\nagain\n", 1, 0, False), "odd"),
        (Result(1, "", "error: unexpected TypeError\n", 1, 0, False), "unexpected"),
        (Result(1, "", "Traceback (most recent call last):\nerror: no\n", 1, 0, False), "traceback"),
        (Result(-11, "", "", 1, 0, False), "signal 11"),
        (Result(-9, "", "", 1, 0, True), "timeout"),
    ],
)
def test_outcomes(result: Result, ended: str) -> None:
    assert outcome(result) == ended
    assert bool(fault(Case("it", []), result)) == (ended not in ("zero", "ok1", "ok2"))


def test_a_call_is_one_of_its_own(server: Server) -> None:
    """It sees its folder and its variables, and is stopped at its time limit, with what it has started."""

    def prepare(folder: Path) -> None:
        os.mkfifo(folder / "never")
        (folder / "mine.yaml").write_text("cells: 3")

    assert server.run(Case("version", ["--help"])).status == 0
    said = server.run(Case("file", ["sweep", "mine.yaml", "--dry-run"], prepare)).err
    assert "cells" in said
    said = server.run(Case("variable", ["data", "ls"], environment={"INVBENCH_DATA": "/somewhere/else"})).out
    assert "/somewhere/else" in said
    result = server.run(Case("long", ["run", "-m", "erm", "-d", "spirals"], seconds=0.2))
    assert (result.timed_out, result.status) == (True, -signal.SIGKILL)


def test_damage_is_drawn() -> None:
    content = bytes(range(100))
    several = [damaged(content, random.Random(seed)) for seed in range(50)]  # noqa: S311
    assert several == [damaged(content, random.Random(seed)) for seed in range(50)]  # noqa: S311
    assert len(set(several)) > 40
