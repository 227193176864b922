"""Options of carrying out runs, which do not change what the runs are."""

from dataclasses import dataclass
from pathlib import Path

from invbench.runs.spec import Fuse

RESULTS = "results"
"""Folder of the runs when nothing else is asked for."""


@dataclass(frozen=True)
class Options:
    """Options of carrying out a run; none of them changes what the run is.

    Args:
        device: auto, cpu, cuda or cuda:i.
        out: folder that gets a folder for each run.
        checkpoint_seconds: time between checkpoints; 0 makes one after every step.
        quiet: show no progress on stderr; the run's log.txt has it either way.
        loggers: further destinations of the curves: csv, tensorboard, wandb, mlflow.
        fuse: whether runs of a sweep are trained together; see `invbench.runs.spec.Fuse`.
        threads: number of threads of torch on the CPU; None chooses it by the size of the run.
    """

    device: str = "auto"
    out: Path = Path(RESULTS)
    checkpoint_seconds: float = 10.0
    quiet: bool = True
    loggers: tuple[str, ...] = ()
    fuse: Fuse = "off"
    threads: int | None = None
