"""Names for the parts of a step, by which a profile tells where time goes. Without a profile they cost nothing."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

from invbench.machine import wait_for

NOTHING = nullcontext()
PHASES = ("data", "forward", "objective", "backward", "gradient rule", "second player", "optimiser")
"""In the order in which a step goes through them."""


class Phases:
    """Seconds of every phase, those of the phases inside it left out.

    Args:
        device: it is waited for where a phase begins and ends; None waits for nothing.
        named: torch's profiler gets to know the phases' names, which takes a while.
    """

    watching: "Phases | None" = None
    """Who is told of phases at the moment."""

    def __init__(self, device: torch.device | None, named: bool = False) -> None:
        self.device, self.named = device, named
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.inside: list[float] = []  # seconds of inner phases, of every phase that is open

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Be told of the phases of this block."""
        Phases.watching = self
        try:
            yield
        finally:
            Phases.watching = None
            self.inside.clear()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The block is of this phase."""
        self._wait()
        began = time.perf_counter()
        self.inside.append(0.0)
        with record_function(name) if self.named else NOTHING:
            yield
        self._wait()
        took = time.perf_counter() - began
        self.seconds[name] += took - self.inside.pop()
        if self.inside:
            self.inside[-1] += took

    def _wait(self) -> None:
        if self.device is not None:
            wait_for(self.device)


def phase(name: str) -> AbstractContextManager[None]:
    """The block is this part of a step, one of `PHASES`."""
    return NOTHING if Phases.watching is None else Phases.watching.phase(name)
