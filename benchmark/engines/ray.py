"""The runs of a sweep as tasks of a Ray cluster: as many at a time as its GPUs and cores allow.

Results must be on a file system that all nodes share. A task that is cancelled keeps its checkpoint; tasks end with the
sweep that started them, and the same command takes them up again.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from invbench.engines.cluster import Handle, carry_out_elsewhere
from invbench.engines.worker import Outcome, carry_out
from invbench.errors import UserError
from invbench.runner import Options
from invbench.spec import Cell
from invbench.watching import Watch


@dataclass(frozen=True)
class RayEngine:
    """Runs on a Ray cluster.

    Args:
        address: `auto` for the cluster that this machine is part of, `local` for one of its own, or host:port.
        gpus: of each run, also a fraction; None takes one where the cluster has GPUs.
        threads: cores of each run.
    """

    address: str = "auto"
    gpus: float | None = None
    threads: int = 1

    def run(self, cells: Sequence[Cell], options: Options, watch: Watch) -> None:
        """Carry out all runs, each until it is done, has failed for good, or the watch drains."""
        ray = _ray()
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {self.address}: {error}; `ray start --head` starts one") from None
        try:
            gpus = self.gpus if self.gpus is not None else float(ray.cluster_resources().get("GPU", 0) > 0)
            task = ray.remote(num_cpus=self.threads, num_gpus=gpus, max_retries=0)(_carry_out)
            shared = replace(options, out=options.out.absolute())

            def submit(chosen: Sequence[Cell]) -> list[Handle]:
                specs = [cell.spec.model_dump() for cell in chosen]
                return [
                    Task(ray, task.options(name=cell.title).remote(spec, shared, self.threads))
                    for cell, spec in zip(chosen, specs, strict=True)
                ]

            carry_out_elsewhere(cells, options, watch, submit)
        finally:
            ray.shutdown()


class Task:
    """A run as a task of Ray."""

    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def outcome(self) -> Outcome | None:
        """How it ended; None while it waits or works."""
        ready, _ = self.ray.wait([self.reference], timeout=0)
        if not ready:
            return None
        errors = self.ray.exceptions
        try:
            outcome: Outcome = self.ray.get(self.reference)
        except errors.TaskCancelledError:
            return Outcome("interrupted")
        except errors.OutOfMemoryError as error:
            return Outcome("failed", "oom", _line(error))
        except (errors.WorkerCrashedError, errors.RaySystemError, errors.NodeDiedError) as error:
            return Outcome("failed", "killed", _line(error))
        except errors.RayError as error:
            return Outcome("failed", "error", _line(error))
        return outcome

    def stop(self) -> None:
        """SIGINT: the run keeps its checkpoint and ends; one that waits does not begin."""
        self.ray.cancel(self.reference, force=False)


def _carry_out(spec: dict[str, Any], options: Options, threads: int) -> Outcome:
    torch.set_num_threads(threads)
    return carry_out(spec, options)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs the extra: pip install 'invbench[ray]'") from None
    return ray
