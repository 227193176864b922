"""Names for the parts of a step, by which a profile tells where time goes. Without a profile they cost nothing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

from invbench.system.stopwatch import Stopwatch

NOTHING = nullcontext()
PHASES = ("data", "forward", "objective", "backward", "gradient rule", "second player", "optimiser")
"""In the order in which a step goes through them."""


class Phases(Stopwatch):
    """Seconds of every phase, those of the phases inside it left out.

    Args:
        device: it is waited for where a phase begins and ends; None waits for nothing.
        named: torch's profiler gets to know the phases' names, which takes a while.
    """

    watching: "Phases | None" = None
    """Who is told of phases at the moment."""

    def __init__(self, device: torch.device | None, named: bool = False) -> None:
        super().__init__(device)
        self.named = named

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Be told of the phases of this block."""
        Phases.watching = self
        try:
            yield
        finally:
            Phases.watching = None

    @contextmanager
    def timed_phase(self, name: str) -> Iterator[None]:
        """The block is of this phase."""
        with self.during(name), record_function(name) if self.named else NOTHING:
            yield


def timed_phase(name: str) -> AbstractContextManager[None]:
    """The block is this part of a step, one of `PHASES`."""
    return NOTHING if Phases.watching is None else Phases.watching.timed_phase(name)
