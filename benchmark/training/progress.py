"""Progress of a run: a bar on a terminal or in a notebook, plain lines in a log; in the run's log file too."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from invbench.console import LINE_SECONDS, NotebookView, duration, error_console, plain_text
from invbench.evaluation.metrics import headlines
from invbench.terminal import visible

if TYPE_CHECKING:
    from invbench.runs.lease import Lease

LONG_SECONDS = 3600.0
"""A run that takes longer says so once its first steps have been timed."""


class Pace:
    """How long a run still takes, by the steps since it was first looked at; what came before them is left out."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)

    def at(self, step: int) -> None:
        """So many steps are finished now."""
        self.last = (time.monotonic(), step)
        self.first = self.first or self.last

    @property
    def seconds(self) -> float:
        """The seconds between the first step and the last one that were reported."""
        return self.last[0] - self.first[0] if self.first else 0.0

    def left(self, total: int) -> float | None:
        """Seconds to the last of `total` steps, as of now; None where no step has been timed."""
        if self.first is None or self.last[1] <= self.first[1]:
            return None
        each = self.seconds / (self.last[1] - self.first[1])
        return max(0.0, each * (total - self.last[1]) - (time.monotonic() - self.last[0]))


def _at_once(path: str, flags: int) -> int:
    """Open a file without waiting: of a pipe that nobody reads it would be for ever."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)


class Report:
    """Where a run tells how far it is.

    Args:
        title: the run in a few words.
        total: steps of the whole run.
        log: file that gets every line with the time.
        quiet: write to the log file only.
        claim: of the run; it shows others how far the run is, and tells when another process has taken it over.
    """

    def __init__(self, title: str, total: int, log: Path, quiet: bool = False, claim: "Lease | None" = None) -> None:
        self.claim = claim
        if claim is not None:
            claim.total = total
        self.title, self.total, self.log = title, total, log
        self.console = error_console(quiet)
        self.last, self.pace, self.estimated = time.monotonic(), Pace(), False
        self.bar: Progress | None = None
        self.notebook = NotebookView() if self.console.is_jupyter and not quiet else None
        if (self.console.is_terminal or self.notebook) and not quiet:
            left, right = (TextColumn(field, markup=False) for field in ("{task.description}", "{task.fields[note]}"))
            columns = (left, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), right)
            self.bar = Progress(*columns, console=self.console)

    def __enter__(self) -> Self:
        if self.bar:
            self.task = self.bar.add_task(visible(self.title), total=self.total, note="")
            self._draw(now=True)
            if not self.notebook:
                self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            self._draw(now=True)
            if not self.notebook:
                self.bar.stop()

    def step(self, step: int) -> None:
        """`step` steps are finished. Costs next to nothing. Raises Interrupted where the run is no longer ours."""
        if self.claim is not None:
            self.claim.step = step
            self.claim.check()
        self.pace.at(step)
        if not self.estimated and self.pace.seconds > LINE_SECONDS:
            self._estimate()
        if self.bar:
            self.bar.update(self.task, completed=step)
            self._draw()
        elif time.monotonic() - self.last > LINE_SECONDS:
            self.say(self._reached(step))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """The run was measured."""
        note = "  ".join(f"{name} {metrics[name]:.4g}" for name in headlines(metrics))
        if self.bar:
            self.bar.update(self.task, completed=step, note=visible(note))
            self._draw()
            self._write(f"{self._reached(step)}  {note}")
        else:
            self.say(f"{self._reached(step)}  {note}")

    def say(self, text: str) -> None:
        """One line, now."""
        self.last = time.monotonic()
        self._write(text)
        self.console.print(plain_text(f"{self.title}  {text}"), soft_wrap=True)

    def _draw(self, now: bool = False) -> None:
        """In a notebook; on a terminal the bar draws itself."""
        if self.bar and self.notebook:
            self.notebook.show(self.bar.get_renderable(), now)

    def _reached(self, step: int) -> str:
        left = self.pace.left(self.total)
        return f"step {step}/{self.total}" + (f", about {duration(left)} to go" if left and step < self.total else "")

    def _estimate(self) -> None:
        """Say it where the run will take long; once, when its first steps have been timed."""
        left = self.pace.left(self.total)
        if left is not None:
            self.estimated = True
            if left > LONG_SECONDS:
                self.say(f"this run will take about {duration(left)}")

    def _write(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8", opener=_at_once) as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {visible(text)}\n")
