"""Phases of a step, which a profile times. Without a profile they cost nothing."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch.profiler import record_function

from invbench.system.stopwatch import Stopwatch

NOTHING = nullcontext()
PHASES = ("data", "forward", "objective", "backward", "gradient rule", "critic", "optimiser")
"""Names of the phases, in the order of a step."""


class Phases(Stopwatch):
    """Seconds of every phase, without those of the phases inside it.

    Args:
        device: it is waited for where a phase begins and ends; None waits for nothing.
        named: pass the phases' names to torch's profiler, which takes time.
    """

    watching: "Phases | None" = None
    """Instance that times phases at the moment."""

    def __init__(self, device: torch.device | None, named: bool = False) -> None:
        super().__init__(device)
        self.named = named

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Time the phases of this block."""
        Phases.watching = self
        try:
            yield
        finally:
            Phases.watching = None

    @contextmanager
    def timed_phase(self, name: str) -> Iterator[None]:
        """Count the time of the block for this phase."""
        with self.during(name), record_function(name) if self.named else NOTHING:
            yield


def timed_phase(name: str) -> AbstractContextManager[None]:
    """Mark a block as a phase of a step, one of `PHASES`."""
    return NOTHING if Phases.watching is None else Phases.watching.timed_phase(name)
