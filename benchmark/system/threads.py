"""Threads on the CPU: how many a run takes, and that they leave the cores to others while they wait."""

import os
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager

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
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(count)
    threadpool_limits(count, user_api="blas")


@contextmanager
def threads_put_back() -> Iterator[None]:
    """Restore what `set_threads` changes after this block."""
    import torch
    from threadpoolctl import threadpool_limits

    before, blas = torch.get_num_threads(), threadpool_limits()
    try:
        yield
    finally:
        torch.set_num_threads(before)
        blas.restore_original_limits()
