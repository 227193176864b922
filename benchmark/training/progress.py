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
"""Seconds of a run from which on its estimated duration is reported once."""


class Pace:
    """Pace of a run, from the steps since the first report; time before that is left out."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)

    def at(self, step: int) -> None:
        """Record that so many steps are finished now."""
        self.last = (time.monotonic(), step)
        self.first = self.first or self.last

    @property
    def seconds(self) -> float:
        """Seconds between the first step and the last one that were reported."""
        return self.last[0] - self.first[0] if self.first else 0.0

    def left(self, total: int) -> float | None:
        """Estimate the seconds to the last of `total` steps; None where no step has been timed."""
        if self.first is None or self.last[1] <= self.first[1]:
            return None
        each = self.seconds / (self.last[1] - self.first[1])
        return max(0.0, each * (total - self.last[1]) - (time.monotonic() - self.last[0]))


def _at_once(path: str, flags: int) -> int:
    """Open a file without blocking, as a pipe that nobody reads would."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o644)


class Report:
    """Reports of a run's progress, to a terminal or a notebook and to the run's log.

    Args:
        title: the run in a few words.
        total: steps of the whole run.
        log: file that gets every line with the time.
        quiet: write to the log file only.
        lease: of the run; it gets the step, and raises once another process has taken the run over.
    """

    def __init__(self, title: str, total: int, log: Path, quiet: bool = False, lease: "Lease | None" = None) -> None:
        self.lease = lease
        if lease is not None:
            lease.total = total
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
        """Report that `step` steps are finished. Raises Interrupted where another process has taken the run over."""
        if self.lease is not None:
            first = self.lease.step == 0 < step
            self.lease.step = step
            if first:  # a sweep waits for it before it begins more on the same GPU
                self.lease.beat()
            self.lease.check()
        self.pace.at(step)
        if not self.estimated and self.pace.seconds > LINE_SECONDS:
            self._estimate()
        if self.bar:
            self.bar.update(self.task, completed=step)
            self._draw()
        elif time.monotonic() - self.last > LINE_SECONDS:
            self.say(self._reached(step))

    def evaluated(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report an evaluation."""
        note = "  ".join(f"{name} {metrics[name]:.4g}" for name in headlines(metrics))
        if self.bar:
            self.bar.update(self.task, completed=step, note=visible(note))
            self._draw()
            self._write(f"{self._reached(step)}  {note}")
        else:
            self.say(f"{self._reached(step)}  {note}")

    def say(self, text: str) -> None:
        """Write one line to the log and the terminal."""
        self.last = time.monotonic()
        self._write(text)
        self.console.print(plain_text(f"{self.title}  {text}"), soft_wrap=True)

    def _draw(self, now: bool = False) -> None:
        """Draw the bar in a notebook; on a terminal it draws itself."""
        if self.bar and self.notebook:
            self.notebook.show(self.bar.get_renderable(), now)

    def _reached(self, step: int) -> str:
        left = self.pace.left(self.total)
        return f"step {step}/{self.total}" + (f", about {duration(left)} to go" if left and step < self.total else "")

    def _estimate(self) -> None:
        """Report, once, the estimated duration of a run that will take long."""
        left = self.pace.left(self.total)
        if left is not None:
            self.estimated = True
            if left > LONG_SECONDS:
                self.say(f"this run will take about {duration(left)}")

    def _write(self, text: str) -> None:
        with open(self.log, "a", encoding="utf-8", opener=_at_once) as file:
            file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')}  {visible(text)}\n")
