"""A stopwatch for the parts of a run, each counted once."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from invbench.system.device import wait_for


class Stopwatch:
    """Stopwatch of named parts. Where parts are nested, the time of the inner one is not counted in the outer one's.

    Args:
        device: it is waited for where a part begins and ends; None waits for nothing.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.open: list[str] = []  # the parts that have begun, the inner one last
        self.since = 0.0

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Count the time of this block for the part."""
        self.read()
        self.open.append(part)
        try:
            yield
        finally:
            self.read()
            self.open.pop()

    def read(self) -> dict[str, float]:
        """Return the seconds of each part until now."""
        if self.device is not None:
            wait_for(self.device)
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now
        return dict(self.seconds)
