"""Defects of others' software, each with its cure: the C library's memory, vector mathematics, torchvision, WILDS.

Memory. The C library's way of giving freed memory back costs more than it is worth. Of tensors that are larger than its
threshold, every allocation is a call of the kernel, and every page of it a fault when it is first written to: with
layers of a few megabytes, up to two thirds of a step's time. So freed memory stays with the process.

Vector mathematics. The first square roots of a process must be those of every other. On an x86 CPU torch hands long
vectors to Intel's vector mathematics, in several threads. In a process's first call that library finds out what the
processor can do, and a thread that comes while another is still finding out takes a kernel that rounds otherwise: in 3
of 60 fresh processes the second half of the first square roots differed in their last bits, enough to make another run
of it. A call that one thread computes alone settles the matter beforehand.

WILDS. It asks the network for its latest version when it is imported, by a package that does so for itself, too, in
threads that warn of their failure later.

torchvision. Its wheels are built with CUDA; beside a CPU-only torch the import fails because two operators it describes
do not exist. Declaring their schemas first cures that; the operators themselves (`nms`) stay unusable and are not
needed.
"""

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from types import ModuleType

import torch

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4  # of glibc's mallopt
PAD = 64 * 2**20


@cache
def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, from now on; glibc only."""
    with suppress(OSError, AttributeError):
        mallopt = _libc().mallopt
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
        mallopt(TOP_PAD, PAD)


def give_back_freed_memory() -> None:
    """Return memory that is free at the moment to the system; glibc only."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


def _libc() -> ctypes.CDLL:
    if sys.platform != "linux":
        raise OSError("no glibc")
    return ctypes.CDLL(None)


FUNCTIONS = (torch.sqrt, torch.exp, torch.log, torch.sin, torch.cos, torch.tan, torch.tanh, torch.erf)


def warm_up_vector_math() -> None:
    """Call the vector functions once on a single number of either precision."""
    for dtype in (torch.float32, torch.float64):
        number = torch.full((1,), 0.5, dtype=dtype)
        for function in FUNCTIONS:
            function(number)


MISSING = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@functools.cache
def torchvision() -> ModuleType:
    """Import torchvision, on first use, and return it."""
    if not torch.version.cuda:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in MISSING:
            if not hasattr(torch.ops.torchvision, name):
                library.define(name + SCHEMA)
        _kept.append(library)
    import torchvision
    import torchvision.datasets

    return torchvision  # type: ignore[no-any-return]


@contextmanager
def without_version_checks() -> Iterator[None]:
    """Let the package `outdated`, which asks for versions, not be there for what is imported in the block."""
    imported = sys.modules.get("outdated")
    sys.modules["outdated"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["outdated"]
        if imported is not None:
            sys.modules["outdated"] = imported


_kept: list[torch.library.Library] = []  # a library's definitions live as long as the object
