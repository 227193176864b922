"""The runs of a sweep as array jobs of Slurm, submitted by submitit.

Results must be on a file system that all nodes share. Before its time is up, and when it is preempted, a job is queued
again and goes on at its last checkpoint. Jobs outlive the sweep that submitted them: the same command follows those
that are still queued, and submits only what is missing.
"""

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from invbench.errors import UserError
from invbench.files import write_text
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.runs.spec import RunSpec
from invbench.sweeps.engines.cluster import Handle, carry_out_elsewhere
from invbench.sweeps.engines.worker import carry_out
from invbench.sweeps.jobs import Outcome
from invbench.sweeps.monitor import SweepMonitor

ASK_SECONDS = 5.0
"""Time between two calls of squeue."""
USUAL_ARRAY = 1000
TIMES = 20
"""How often a run may reach the time limit before it is given up."""


@dataclass(frozen=True)
class SlurmEngine:
    """Runs as jobs of Slurm.

    Args:
        minutes: time limit of a job; a run that takes longer is queued again and goes on.
        gpus: of each run.
        threads: cores of each run.
        at_once: most jobs that run at the same time.
        parameters: further options of sbatch by their long names, such as partition, gres, account, mem.
        device: of the runs; with auto a job that asks for GPUs, also by `parameters`, must have one.
    """

    minutes: int = 60
    gpus: int = 0
    threads: int = 1
    at_once: int = 100
    parameters: Mapping[str, str] = field(default_factory=dict)
    device: str = "auto"

    def run(self, configs: Sequence[RunConfig], options: Options, monitor: SweepMonitor) -> None:
        """Carry out all runs, each until it is done, has failed for good, or the monitor drains."""
        asks = self.gpus or any(
            "gpu" in f"{name}={value}" for name, value in self.parameters.items() if name != "partition"
        )
        device = "cuda" if self.device == "auto" and asks else self.device
        shared = replace(options, out=options.out.absolute(), threads=self.threads, device=device)
        jobs = Jobs(shared.out / "slurm")
        executor, most = self._executor(jobs.folder), _most_in_an_array()

        def submit(chosen: Sequence[Sequence[RunConfig]]) -> list[Handle]:
            left = [[config for config in group if not jobs.queued(config.spec.run_id)] for group in chosen]
            new = [group for group in left if group]
            for config in (config for group in new for config in group):
                jobs.answer_file(config.spec.run_id).unlink(missing_ok=True)  # an earlier job's
            work = SlurmRun(shared, jobs.folder)
            arrays = [new[first : first + most] for first in range(0, len(new), most)]
            for array in arrays:
                executor.update_parameters(slurm_array_parallelism=max(1, self.at_once // len(arrays)))
                made = executor.map_array(work, [[config.spec.model_dump() for config in group] for group in array])
                pairs = zip(array, made, strict=True)
                jobs.add({config.spec.run_id: str(job.job_id) for group, job in pairs for config in group})
            return [SlurmJob([config.spec.run_id for config in group], jobs) for group in chosen]

        carry_out_elsewhere(configs, shared, monitor, submit, self.at_once)

    def _executor(self, folder: Path) -> Any:
        try:
            import submitit
        except ImportError:
            raise UserError("--engine slurm needs the extra: pip install 'invbench[slurm]'") from None
        try:
            executor = submitit.AutoExecutor(folder=folder / "logs", cluster="slurm", slurm_max_num_timeout=TIMES)
        except RuntimeError as error:
            raise UserError(f"--engine slurm: {error}; is sbatch on this machine?") from None
        executor.update_parameters(
            name="invbench",
            timeout_min=self.minutes,
            cpus_per_task=self.threads,
            slurm_additional_parameters=dict(self.parameters),
            **({"gpus_per_node": self.gpus} if self.gpus else {}),
        )
        return executor


def _most_in_an_array() -> int:
    """Return the maximum number of jobs of one array."""
    settings = subprocess.run(["scontrol", "show", "config"], check=False, capture_output=True, text=True).stdout
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", settings)
    return max(1, int(match[1])) if match else USUAL_ARRAY


@dataclass
class SlurmRun:
    """Callable of a Slurm job."""

    options: Options
    answers: Path

    def __call__(self, specs: Sequence[dict[str, Any]]) -> None:
        """Carry out a run, or several together, and leave a word on how each ended."""
        with _time_is_up() as queue_again:
            outcomes = carry_out(specs, self.options)
            if queue_again and any(outcome.status == "interrupted" for outcome in outcomes):
                end = queue_again[0]()
                outcomes = [end if outcome.status == "interrupted" else outcome for outcome in outcomes]
        for spec, outcome in zip(specs, outcomes, strict=True):
            write_text(self.answers / f"{RunSpec.model_validate(spec).run_id}.json", json.dumps(outcome._asdict()))

    def checkpoint(self, specs: Sequence[dict[str, Any]]) -> Any:
        """Return what submitit queues when time is up: the same job, which continues at the last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, specs)


@contextmanager
def _time_is_up() -> Iterator[list[Callable[[], Outcome]]]:
    """Handle the signal that this job must end soon: the run writes its checkpoint first.

    Yields a list that is empty until then. What is in it queues the job again and ends this process, or says why not.
    """
    submitits: Any = signal.getsignal(signal.SIGUSR2)
    before = signal.getsignal(signal.SIGTERM)
    actions: list[Callable[[], Outcome]] = []

    def queue_again() -> Outcome:
        try:
            submitits(signal.SIGUSR2, None)
        except Exception as error:
            return Outcome("failed", "timeout", f"not done after {TIMES} jobs: {error}")
        return Outcome("interrupted")

    def hear(number: int, frame: FrameType | None) -> None:
        actions.append(queue_again)
        if signal.getsignal(signal.SIGTERM) == before:  # it does not train yet, so that there is nothing to keep
            queue_again()
        signal.raise_signal(signal.SIGTERM)

    signal.signal(signal.SIGUSR2, hear)
    try:
        yield actions
    finally:
        signal.signal(signal.SIGUSR2, submitits)


class Jobs:
    """Map from runs to the jobs that they were submitted as, and the jobs that Slurm still knows."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "jobs.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.of_run: dict[str, str] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.known: set[str] = set()
        self.asked = -ASK_SECONDS

    def add(self, new: Mapping[str, str]) -> None:
        """Add runs that have just been submitted."""
        self.of_run |= new
        self.known |= set(new.values())
        self.asked = time.monotonic()
        write_text(self.file, json.dumps(self.of_run))

    def queued(self, run_id: str) -> bool:
        """Whether the run's job waits or works."""
        if run_id not in self.of_run:
            return False
        if time.monotonic() - self.asked >= ASK_SECONDS:
            self.known, self.asked = self._squeue(), time.monotonic()
        return self.of_run[run_id] in self.known

    def cancel(self, run_id: str) -> None:
        """Cancel the job: SIGTERM, and SIGKILL after Slurm's KillWait."""
        subprocess.run(["scancel", self.of_run[run_id]], check=False, capture_output=True)

    def answer_file(self, run_id: str) -> Path:
        """Return the path of the file in which the run's job reports its end."""
        return self.folder / f"{run_id}.json"

    def answer(self, run_id: str) -> Outcome | None:
        """Return what the run's job has reported."""
        try:
            return Outcome(**json.loads(self.answer_file(run_id).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def _squeue(self) -> set[str]:
        done = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], check=False, capture_output=True, text=True
        )
        return self.known if done.returncode else set(done.stdout.split())


class SlurmJob:
    """A run as a job, or several together; after a restart of the sweep they may be in several jobs."""

    def __init__(self, run_ids: Sequence[str], jobs: Jobs) -> None:
        self.run_ids, self.jobs = run_ids, jobs

    def outcomes(self) -> list[Outcome] | None:
        """Return how the job's runs ended; None while one of them waits or works."""
        if any(self.jobs.queued(run_id) for run_id in self.run_ids):
            return None
        return [self.jobs.answer(run_id) or self._silent(run_id) for run_id in self.run_ids]

    def _silent(self, run_id: str) -> Outcome:
        text = f"job {self.jobs.of_run[run_id]} ended without a word; see {self.jobs.folder}/logs"
        return Outcome("failed", "killed", text)

    def stop(self) -> None:
        """Stop the job: a running one writes its checkpoint and ends; a waiting one leaves the queue."""
        for run_id in self.run_ids:
            self.jobs.cancel(run_id)
