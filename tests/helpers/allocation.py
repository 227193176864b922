"""What a refusal may cost: the memory that Python allocates until it comes."""

import threading
import tracemalloc
from collections.abc import Callable

import pytest

from invbench.errors import UserError

MEBIBYTE = 2**20


def peak(call: Callable[[], object], message: str) -> int:
    """Measure how many bytes a call allocates at most before it is refused with this message."""
    threads = set(threading.enumerate())
    tracemalloc.start()
    try:
        with pytest.raises((UserError, ValueError), match=message):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        # Before Python 3.12.9, to stop while another thread allocates crashes (python/cpython#128679).
        for thread in set(threading.enumerate()) - threads:
            thread.join(timeout=30)
        tracemalloc.stop()
