"""Loading of other packages' code, which may raise anything, print, or never return."""

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import FrameType
from typing import TextIO, TypeVar, cast

from invbench.errors import UserError, brief
from invbench.terminal import Lasting, visible

T = TypeVar("T")
PATIENCE = 5.0
"""Seconds of loading after which a line says what is being imported."""


def load_guarded(load: Callable[[], T], what: str, doing: str = "importing") -> T:
    """Call `load` and return its result; what it prints goes to stderr.

    Args:
        what: description of the code, for messages.
        doing: what is done with it, for the line that says it takes long.

    Raises:
        UserError: the code raised anything, KeyboardInterrupt and SystemExit included.
        KeyboardInterrupt: the user pressed Ctrl-C, whatever the code did with it.
    """
    stderr = cast(TextIO, Lasting(sys.stderr))  # which it cannot close
    with (
        redirect_stdout(stderr),
        redirect_stderr(stderr),
        warnings.catch_warnings(),
        _said_after(PATIENCE, f"{doing} {what} takes long"),
        _interrupts() as pressed,
    ):
        try:
            result = load()
        except BaseException as error:  # whatever it is, it is theirs
            reason = one_line(error)
            if pressed:
                raise KeyboardInterrupt from error
            raise UserError(f"{what} does not load: {reason}") from error
        if pressed:
            raise KeyboardInterrupt
        return result


def one_line(error: BaseException) -> str:
    """Describe another package's exception in one bounded line: its class, unless it is a UserError, and message."""
    try:
        text = str(error)
    except BaseException:  # theirs too
        text = "its message cannot be read"
    named = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return visible(brief(" ".join(named.split()))).removesuffix(":")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Record and raise the user's Ctrl-C: the code may raise KeyboardInterrupt by itself, or swallow it."""
    pressed: list[int] = []
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield pressed  # nothing is raised here
        return

    def record(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except KeyboardInterrupt:
            pressed.append(number)
            raise

    signal.signal(signal.SIGINT, record)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _said_after(seconds: float, text: str) -> Iterator[None]:
    """Write a line to stderr where the block takes longer than this."""

    def say() -> None:
        with suppress(OSError, ValueError, AttributeError):  # stderr may be gone, or none
            sys.stderr.write(f"{visible(text)}\n")

    timer = threading.Timer(seconds, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
