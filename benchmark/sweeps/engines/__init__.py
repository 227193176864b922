"""Where the runs of a sweep are carried out: in processes of this machine, on a Ray cluster, or by Slurm.

All engines call `worker.carry_out`, ours in another process; it leaves the same record wherever it is called. A new
engine is an entry of `ENGINES`; the command lists those of `invbench.choices.EngineName`.
"""

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from invbench.choices import EngineName
from invbench.errors import UserError, brief, did_you_mean
from invbench.system.gpus import MOST_PROCESSES

if TYPE_CHECKING:
    from invbench.runs.options import Options
    from invbench.runs.resolve import RunConfig
    from invbench.sweeps.monitor import SweepMonitor

GIBIBYTE = 2**30
LONGEST = 366 * 86400
"""Seconds that a run may be given."""
DEVICES = ("auto", "cpu", "cuda")
"""Devices of the runs of a sweep."""
BOUNDS: Mapping[str, tuple[float, float]] = {
    "timeout": (1e-3, LONGEST),
    "memory_floor": (0, 2**20),
    "gpus_per_run": (0, MOST_PROCESSES),
    "minutes": (1, LONGEST // 60),
}
"""Least and greatest values of options that no engine checks by itself."""


class Engine(Protocol):
    """Protocol of an engine, which carries out runs."""

    def run(self, configs: "Sequence[RunConfig]", options: "Options", monitor: "SweepMonitor") -> None:
        """Carry out the runs, tell the monitor how they end, and begin none while it drains."""


def _local(
    *,
    device: str = "auto",
    gpus: str | int | None = None,
    jobs_per_gpu: int = 1,
    workers: int | None = None,
    threads: int = 1,
    timeout: float | None = None,
    memory_floor: float = 1.0,
) -> Engine:
    from invbench.sweeps.engines.local import LocalEngine, LocalResources
    from invbench.sweeps.engines.scheduler import Limits

    slots = LocalResources(None if gpus is None else str(gpus), jobs_per_gpu, workers, threads, device).slots()
    return LocalEngine(slots, Limits(timeout, memory_floor * GIBIBYTE), threads)


def _ray(*, device: str = "auto", address: str = "auto", gpus_per_run: float | None = None, threads: int = 1) -> Engine:
    from invbench.sweeps.engines.ray import RayEngine

    _check_gpus(device, gpus_per_run)
    return RayEngine(address, 0 if device == "cpu" else gpus_per_run, threads, device)


def _slurm(
    *,
    device: str = "auto",
    gpus_per_run: float = 0,
    threads: int = 1,
    minutes: int = 60,
    slurm: Mapping[str, str] | None = None,
) -> Engine:
    from invbench.sweeps.engines.slurm import SlurmEngine

    if gpus_per_run != int(gpus_per_run):
        raise UserError(f"--gpus-per-run {gpus_per_run:g}: Slurm gives whole GPUs")
    _check_gpus(device, gpus_per_run)
    return SlurmEngine(minutes, int(gpus_per_run), threads, parameters=slurm or {}, device=device)


def _check_gpus(device: str, gpus_per_run: float | None) -> None:
    """Raise UserError where GPUs are asked for and ruled out."""
    if device == "cpu" and gpus_per_run:
        raise UserError("--device cpu and --gpus-per-run contradict each other; give one of them")


ENGINES: dict[str, Callable[..., Engine]] = {
    EngineName.local: _local,
    EngineName.ray: _ray,
    EngineName.slurm: _slurm,
}
"""What makes each engine, from keywords. Those that its signature has are the options of a sweep that it takes."""


def make_engine(name: str, **options: Any) -> Engine:
    """Make the engine of a name, with those options that are not None.

    Raises:
        UserError: there is no such engine, or it does not take an option or its value.
    """
    if name not in ENGINES:
        raise UserError(f"no engine '{name}'{did_you_mean(name, ENGINES)}")
    given = {option: value for option, value in options.items() if value is not None}
    if options.get("device") not in (None, *DEVICES):
        raise UserError(f"--device {brief(str(options['device']))}: it is one of {', '.join(DEVICES)}")
    for option, value in given.items():
        takers = [engine for engine, make in ENGINES.items() if option in signature(make).parameters]
        if name not in takers:
            raise UserError(f"--{option.replace('_', '-')} is for --engine {' or '.join(takers)}; leave it out")
        if option in BOUNDS:
            _check_number(option, value)
    return ENGINES[name](**given)


def _check_number(option: str, value: Any) -> None:
    least, most = BOUNDS[option]
    if not isinstance(value, int | float) or not least <= value <= most:
        raise UserError(
            f"--{option.replace('_', '-')} {brief(str(value))}: it is a number from {least:.9g} to {most:.9g}"
        )
