"""The runs of a sweep as tasks of a Ray cluster: as many at a time as its GPUs and cores allow.

Results must be on a file system that all nodes share. A task that is cancelled keeps its checkpoint; tasks end with the
sweep that started them, and the same command takes them up again.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from invbench.errors import UserError
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.sweeps.engines.cluster import Handle, carry_out_elsewhere
from invbench.sweeps.engines.worker import carry_out
from invbench.sweeps.jobs import Outcome
from invbench.sweeps.monitor import SweepMonitor


@dataclass(frozen=True)
class RayEngine:
    """Runs on a Ray cluster.

    Args:
        address: `auto` for the cluster that this machine is part of, `local` for one of its own, or host:port.
        gpus: of each run, also a fraction; None takes one where the cluster has GPUs.
        threads: cores of each run.
        device: cuda where runs must have a GPU; else they have one where `gpus` gives it to them.
    """

    address: str = "auto"
    gpus: float | None = None
    threads: int = 1
    device: str = "auto"

    def run(self, configs: Sequence[RunConfig], options: Options, monitor: SweepMonitor) -> None:
        """Carry out all runs, each until it is done, has failed for good, or the monitor drains."""
        ray = _ray()
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {self.address}: {error}; `ray start --head` starts one") from None
        try:
            gpus = self.gpus if self.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
            if self.device == "cuda" and not gpus:
                raise UserError("--device cuda: the Ray cluster has no GPU")
            task = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(carry_out)
            device = "cuda" if gpus else "cpu"
            shared = replace(options, out=options.out.absolute(), threads=self.threads, device=device)

            def submit(jobs: Sequence[Sequence[RunConfig]]) -> list[Handle]:
                specs = [[config.spec.model_dump() for config in job] for job in jobs]
                return [
                    Task(ray, task.options(name=job[0].title).remote(spec, shared), len(job))
                    for job, spec in zip(jobs, specs, strict=True)
                ]

            slots = ray.cluster_resources().get("GPU", 0) / gpus if gpus else ray.cluster_resources().get("CPU", 1)
            carry_out_elsewhere(configs, options, monitor, submit, max(1, int(slots)))
        finally:
            ray.shutdown()


class Task:
    """A job as a task of Ray."""

    def __init__(self, ray: Any, reference: Any, runs: int) -> None:
        self.ray, self.reference, self.runs = ray, reference, runs

    def outcomes(self) -> list[Outcome] | None:
        """Return how the job's runs ended; None while it waits or works."""
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        end = self._end()
        return end if isinstance(end, list) else [end] * self.runs

    def _end(self) -> Outcome | list[Outcome]:
        errors = self.ray.exceptions
        try:
            outcomes: list[Outcome] = self.ray.get(self.reference)
        except errors.TaskCancelledError:
            return Outcome("interrupted")
        except errors.OutOfMemoryError as error:
            return Outcome("failed", "oom", _line(error))
        except (errors.WorkerCrashedError, errors.RaySystemError, errors.NodeDiedError) as error:
            return Outcome("failed", "killed", _line(error))
        except errors.RayError as error:
            return Outcome("failed", "error", _line(error))
        return outcomes

    def stop(self) -> None:
        """Send SIGINT: a run writes its checkpoint and ends; a waiting one does not begin."""
        self.ray.cancel(self.reference, force=False)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the extra: pip install 'invbench[ray]'") from None
    return ray
