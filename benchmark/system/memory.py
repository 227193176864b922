"""Memory that is freed stays with the process: the C library's way of giving it back costs more than it is worth.

Of tensors that are larger than its threshold, every allocation is a call of the kernel, and every page of it a fault
when it is first written to: with layers of a few megabytes, up to two thirds of a step's time.
"""

import ctypes
import sys
from contextlib import suppress
from functools import cache

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's mallopt
PAD = 64 * 2**20


@cache
def keep_freed_memory() -> None:
    """From now on, in this process; glibc only."""
    with suppress(OSError, AttributeError):
        mallopt = _libc().mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, PAD)


def give_back_freed_memory() -> None:
    """What is free at the moment, to the system."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means; torch's own for the CPU is a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("no glibc")
    return ctypes.CDLL(None)
