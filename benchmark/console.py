"""What is said on stderr while something takes long: lines, counts, pictures in place; and the console of tables."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any, cast

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from invbench.terminal import Lasting, visible

LINE_SECONDS = 10.0
"""Least time between two lines of a log that say only how far the run is."""
ENDLESS = 10_000
"""Width, in characters, of what is not broken into lines."""

REFRESH_SECONDS = 0.25
"""Least time between two pictures of progress."""


OnProgress = Callable[[int], object]
"""Called with the number of parts of a long piece of work that are done."""


def error_console(quiet: bool = False) -> Console:
    """Return the console on stderr, where progress is shown. A terminal that closes stops no run."""
    return Console(file=cast(IO[str], Lasting(sys.stderr)), quiet=quiet, highlight=False)


def output_console() -> Console:
    """Return the console on stdout. What goes to a file or a pipe is not broken to the width of a terminal."""
    console = Console()
    return console if console.is_terminal or console.is_jupyter or "COLUMNS" in os.environ else Console(width=ENDLESS)


def somebody_looks() -> bool:
    """Whether progress would be seen, in a terminal or in a notebook; if not, stderr is somebody's file."""
    console = error_console()
    return console.is_terminal or console.is_jupyter


class NotebookView:
    """View below a cell of a notebook that is redrawn in place."""

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
def counting(what: str) -> Iterator[OnProgress]:
    """Show how many of something are done: on a terminal in place, in a log a line every ten seconds."""
    console, last = error_console(), time.monotonic()
    with console.status(plain_text(what)) if console.is_terminal else nullcontext() as status:

        def on_progress(count: int) -> None:
            nonlocal last
            if status is not None:
                status.update(plain_text(f"{what}: {count}"))
            elif time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                announce(f"{what}: {count}")

        yield on_progress


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[OnProgress]:
    """Show how much of something is done: a bar on a terminal, in a log a line every ten seconds."""
    console, last = error_console(), time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)

        def on_progress(count: int) -> None:
            nonlocal last
            bar.update(task, completed=count)
            if not console.is_terminal and time.monotonic() - last > LINE_SECONDS:
                last = time.monotonic()
                announce(f"{what}: {count} of {total}")

        yield on_progress


def announce(text: str) -> None:
    """Print one line to stderr."""
    error_console().print(plain_text(text), soft_wrap=True)


def plain_text(text: object) -> Text:
    """Return a text that rich prints as it is, with control characters as escapes."""
    return Text(visible(text))


def duration(seconds: float) -> str:
    """Format seconds, as in `2 h 05 min`, `3 min 20 s` or `7 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
