"""Threads on the CPU: how many a run takes, and that they leave the cores to others while they wait."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from threadpoolctl import threadpool_limits

POLICY = "OMP_WAIT_POLICY"
CHOSEN = (POLICY, "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Environment variables by which a user says how OpenMP's threads wait."""
MOST_THREADS = 1024
"""Maximum number of threads that a user can ask for."""


def wait_passively(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep while they wait, unless the user has chosen. Call it before torch is loaded.

    A thread that spins is quicker on an idle machine, and ruins a run beside others: `scripts/benchmark_contention.py`.
    """
    if not any(name in environment for name in CHOSEN):
        environment[POLICY] = "PASSIVE"


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(count: int) -> None:
    """Set the number of threads of torch, and of the linear algebra of NumPy and SciPy, whose threads spin."""
    import torch  # this module is loaded ahead of it

    torch.set_num_threads(count)
    _linear_algebra(count)


@contextmanager
def threads_put_back() -> Iterator[None]:
    """Restore what `set_threads` changes after this block."""
    import torch

    before, linear_algebra = torch.get_num_threads(), _linear_algebra(None)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        linear_algebra.restore_original_limits()


def _linear_algebra(count: int | None) -> "threadpool_limits":
    """Limit the threads of NumPy's and SciPy's linear algebra; None limits nothing. Returns what restores them."""
    import scipy.linalg  # noqa: F401, only what is loaded is limited
    from threadpoolctl import threadpool_limits

    return threadpool_limits(count, user_api="blas")
