"""Code of other packages: it may raise anything when it is imported, print, or never come back."""

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
"""Seconds after which a line says what is being imported."""


def loaded(load: Callable[[], T], what: str) -> T:
    """What `load` returns. What it prints goes to stderr, since it is no output of ours.

    Args:
        what: whose code it is, for messages.

    Raises:
        UserError: it raised anything, KeyboardInterrupt and SystemExit included.
        KeyboardInterrupt: the user pressed Ctrl-C, whatever the code made of it.
    """
    stderr = cast(TextIO, Lasting(sys.stderr))  # which it cannot close
    with (
        redirect_stdout(stderr),
        redirect_stderr(stderr),
        warnings.catch_warnings(),
        _said_after(PATIENCE, f"importing {what} takes long"),
        _interrupts() as pressed,
    ):
        try:
            found = load()
        except BaseException as error:  # whatever it is, it is theirs
            why = told(error)
            if pressed:
                raise KeyboardInterrupt from error
            raise UserError(f"{what} does not load: {why}") from error
        if pressed:
            raise KeyboardInterrupt
        return found


def told(error: BaseException) -> str:
    """An exception of others in one bounded line: its class, unless it is a user's error, and what it says."""
    try:
        text = str(error)
    except BaseException:  # theirs too
        text = "its message cannot be read"
    named = text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
    return visible(brief(" ".join(named.split()))).removesuffix(":")


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """The user's Ctrl-C, noted and raised: the code may raise KeyboardInterrupt by itself, or swallow it."""
    pressed: list[int] = []
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield pressed  # nothing is raised here
        return

    def noted(number: int, frame: FrameType | None) -> None:
        try:
            usual(number, frame)
        except KeyboardInterrupt:
            pressed.append(number)
            raise

    signal.signal(signal.SIGINT, noted)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, usual)


@contextmanager
def _said_after(seconds: float, text: str) -> Iterator[None]:
    """One line on stderr, where it takes longer."""

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
