"""Where the runs of a sweep are carried out: in processes of this machine, on a Ray cluster, or by Slurm.

All engines call `worker.carry_out` in another process, which leaves the same record wherever it is called.
"""

from collections.abc import Sequence
from typing import Protocol

from invbench.runs.resolve import Cell
from invbench.sweeps.monitor import SweepMonitor
from invbench.training.runner import Options


class Engine(Protocol):
    """Where runs are carried out."""

    def run(self, cells: Sequence[Cell], options: Options, watch: SweepMonitor) -> None:
        """Carry out the runs, tell the watch, and begin none while it drains."""
