"""SIGINT and SIGTERM as requests, so that a run stops between two steps and keeps its checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopRequest:
    """Request to a process to stop.

    A plain number, not a `threading.Event`: that has a lock, and one signal's handler may interrupt another's.
    """

    count = 0
    """Number of signals so far."""

    def is_set(self) -> bool:
        """Tell whether the process was asked to stop."""
        return self.count > 0

    @property
    def urgent(self) -> bool:
        """Whether the process was asked more than once."""
        return self.count > 1


_requests: list[StopRequest] = []
"""Requests of the blocks that are open, the innermost last."""


@contextmanager
def stop_requests(signals: int = 1) -> Iterator[StopRequest]:
    """Yield what SIGINT and SIGTERM ask for inside this block, where they interrupt nothing.

    A block around it hears of them, too: a sweep whose run is stopped in the same process begins no other.

    Args:
        signals: after so many, the next one acts as always. A block that waits for others takes two, looks whether
            the request is urgent, and ends at a moment that suits it: an exception out of nowhere could leave a lock
            of a library locked.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        for each in _requests:
            each.count += 1
        if request.count >= signals:
            signal.signal(number, previous[number])

    _requests.append(request)
    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        _requests.remove(request)
        for number, handler in previous.items():
            signal.signal(number, handler)
