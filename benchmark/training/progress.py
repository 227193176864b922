"""Progress of a run: a bar on a terminal or in a notebook, plain lines in a log; in the run's log file too."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, cast

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from invbench.terminal import Lasting, visible

if TYPE_CHECKING:
    from invbench.runs.lease import Claim

LINE_SECONDS = 10.0
"""Least time between two lines of a log that say only how far the run is."""
REFRESH_SECONDS = 0.25
"""Least time between two pictures of progress."""
LONG_SECONDS = 3600.0
"""A run that takes longer says so once its first steps have been timed."""
Tell = Callable[[int], object]
"""Called with the number of parts of a long piece of work that are done."""


def error_console(quiet: bool = False) -> Console:
    """Where progress is shown: stderr, since stdout is for results. A terminal that goes away stops no run."""
    return Console(file=cast(IO[str], Lasting(sys.stderr)), quiet=quiet, highlight=False)


def somebody_looks() -> bool:
    """Whether progress would be seen, in a terminal or in a notebook; if not, stderr is somebody's file."""
    console = error_console()
    return console.is_terminal or console.is_jupyter


class NotebookView:
    """What stands below a cell of a notebook and is drawn anew in its place."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.drawn, self.broken = 0.0, False

    def show(self, renderable: RenderableType, now: bool = False) -> None:
        """Draw it; unless it must be now, no sooner than a part of a second after the last time."""
        if self.broken or (not now and time.monotonic() - self.drawn < REFRESH_SECONDS):
            return
        self.drawn, picture = time.monotonic(), Padding(renderable, 0)
        try:
            from IPython.display import display

            if self.handle is None:
                self.handle = display(picture, display_id=True)
            else:
                self.handle.update(picture)
        except Exception:  # whatever a notebook does, it stops no run
            self.broken = True


@contextmanager
def counting(what: str) -> Iterator[Tell]:
    """Show how many of something are done: on a terminal in place, in a log a line every ten seconds."""
    console, last = error_console(), time.monotonic()
    with console.status(plain_text(what)) if console.is_terminal else nullcontext() as status:

        def tell(count: int) -> None:
            nonlocal last
            if status is not None:
                status.update(plain_text(f"{what}: {count}"))
            elif time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                announce(f"{what}: {count}")

        yield tell


def announce(text: str) -> None:
    """One line on stderr."""
    error_console().print(plain_text(text), soft_wrap=True)


def plain_text(text: object) -> Text:
    """What rich shows as it is, but for control characters, which become escapes."""
    return Text(visible(text))


def headlines(metrics: Iterable[str]) -> list[str]:
    """The metrics that are worth a reader's first look: of environments only the worst, and only in the test."""
    detail = "distance|jensen|rejection|representation|(validation|train)_(mutual|roc)"
    hidden = re.compile(rf"\.|{detail}|_bin\d+$|_loss$|_env\d+$|_average$|^(?!test_).*_worst$")
    return [name for name in metrics if not hidden.search(name)]


def duration(seconds: float) -> str:
    """Such as `2 h 05 min`, `3 min 20 s`, `7 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


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

    def __init__(self, title: str, total: int, log: Path, quiet: bool = False, claim: "Claim | None" = None) -> None:
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
