"""The runs of a sweep in warm processes of this machine, one for each slot: torch is imported once per slot.

A slot is a GPU, a share of one, or some cores. Its process keeps to its device and its threads, carries out one run
after the other, and is replaced after a failure that may have left something behind. What happens next is decided in
`invbench.sweeps.jobs`.
"""

import math
import multiprocessing
import os
import queue
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import psutil
import torch
from pebble import ProcessExpired, ProcessPool

from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.runs.lease import Owner, read_lease
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.sweeps.engines.scheduler import CPU, Limits, RunningJob, Slot, Start, Stop, decide
from invbench.sweeps.engines.worker import UNGUARDED, carry_out, mark_of_unguarded, prepare, settle_outcomes
from invbench.sweeps.jobs import CLEAN, Outcome, jobs_of, later
from invbench.sweeps.monitor import SweepMonitor
from invbench.system.gpus import MOST_PROCESSES, chosen_gpus, visible_gpus
from invbench.system.threads import available_cores

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

TICK_SECONDS = 0.1
ORDER, BY_BUS = "CUDA_DEVICE_ORDER", "PCI_BUS_ID"
"""Variable and value by which CUDA numbers GPUs as the driver does, which is asked for their memory."""
START_SECONDS = 60.0
"""Longest time that a process may take to begin with a run; its time counts from there."""
GRACE_SECONDS = 30.0
"""Longest time that a run has for its checkpoint before its process is killed."""


@dataclass
class WorkerProcess:
    """A slot's process and what it is doing."""

    slot: Slot
    pool: ProcessPool | None = None
    number: "Synchronized[int] | None" = None
    """Of the process, 0 until it is ready for a run."""
    future: "Future[list[Outcome]] | None" = None
    killed_at: float | None = None
    """When a run that was asked to stop has had its grace."""

    def take(self, configs: Sequence[RunConfig], options: Options) -> "Future[list[Outcome]]":
        """Begin a run, or several together."""
        options = replace(options, device="cpu" if self.slot.device == CPU else "cuda")  # never the one for the other
        if self.pool is not None and not self.pool.active:  # its process was killed while it had nothing to do
            self.replace()
        if self.pool is None:
            device = "" if self.slot.device == CPU else self.slot.device
            context = multiprocessing.get_context("spawn")
            self.number = context.Value("q", 0)
            setup = (device, os.getpid(), self.number)
            self.pool = ProcessPool(1, context=context, initializer=prepare, initargs=setup)
        with _without_ctrl_c():
            self.future = self.pool.schedule(
                carry_out, args=([config.spec.model_dump() for config in configs], options)
            )
        self.killed_at = None
        return self.future

    def send(self, signal_number: int) -> bool:
        """Send a signal to the slot's own process; whether it is ready to get one."""
        number = self.number.value if self.number is not None else 0
        try:
            ours = number > 0 and psutil.Process(number).ppid() == os.getpid()
            if ours:
                os.kill(number, signal_number)
        except (psutil.NoSuchProcess, ProcessLookupError):
            return False
        return ours

    def is_at(self, holder: Owner) -> bool:
        """Whether a claim is held by the slot's own process."""
        return holder.near and self.number is not None and holder.pid == self.number.value

    def replace(self) -> None:
        """End the process, whatever it does; the next run gets a new one."""
        if self.pool is not None:
            self.pool.stop()
            self.pool.join()
        self.pool = self.number = self.future = None


@dataclass
class LocalEngine:
    """Slots and rules of a sweep on this machine.

    Args:
        slots: where runs go; `invbench.sweeps.engines.scheduler.Slot`.
        rules: time and memory.
        threads: of each process.
    """

    slots: Sequence[Slot]
    rules: Limits = field(default_factory=Limits)
    threads: int = 1
    kept: list[WorkerProcess] = field(default_factory=list, init=False, repr=False, compare=False)
    """Processes that outlive a call of `run`, in a block of `kept_warm`."""

    @contextmanager
    def kept_warm(self) -> "Iterator[LocalEngine]":
        """Keep the processes from one sweep to the next, until the end of the block: a new one imports torch first."""
        self.kept = [WorkerProcess(slot) for slot in self.slots]
        try:
            yield self
        finally:
            end(self.kept)
            self.kept = []

    def run(self, configs: Sequence[RunConfig], options: Options, monitor: SweepMonitor) -> None:
        """Carry out all runs, each until it is done, has failed for good, or the monitor drains."""
        options = replace(options, threads=self.threads)
        workers = self.kept or [WorkerProcess(slot) for slot in self.slots]
        work = _Work(self, workers, {config.spec.run_id: config for config in configs}, options, monitor)
        try:
            work.until_done()
        finally:
            end([workers[number] for number in work.busy] if self.kept else workers)


class _Work:
    """One call of `LocalEngine.run`."""

    def __init__(
        self,
        engine: LocalEngine,
        workers: Sequence[WorkerProcess],
        configs: Mapping[str, RunConfig],
        options: Options,
        monitor: SweepMonitor,
    ) -> None:
        self.engine, self.workers, self.configs, self.options, self.monitor = engine, workers, configs, options, monitor
        self.waiting = jobs_of(configs.values(), options.fuse, len(engine.slots))
        self.busy: dict[int, RunningJob] = {}
        self.needs: dict[tuple[str, int], float] = {}
        """Bytes that jobs of a kind took on a GPU until their first step, by `Job.memory_key`."""
        self.free_before: dict[int, float] = {}
        """Free bytes of a slot's GPU when its job began, while nothing else has begun or ended there."""
        self.answers: queue.Queue[tuple[int, list[Outcome]]] = queue.Queue()
        self.stopped = False  # all running ones have been asked to stop

    def until_done(self) -> None:
        while self.busy or (self.waiting and not self.monitor.draining):
            self.monitor.check()
            now = time.monotonic()
            if self.monitor.draining and not self.stopped:
                self.stopped = True
                for number in self.busy:
                    self._ask_to_stop(number, now)
            self._look_at_progress()
            for action in self._decide(now):
                if isinstance(action, Start):
                    self._start(action, now)
                else:
                    self._ask_to_stop(action.slot.number, now)
            self._kill_those_without_grace(now)
            self.monitor.tick()
            self._take_answers()

    def _decide(self, now: float) -> "list[Start | Stop]":
        free = free_memory(self.engine.slots) if self.engine.rules.memory_floor else {}
        return decide(
            self.engine.slots, self.waiting, self.busy, free, self.engine.rules, now, self.monitor.draining, self.needs
        )

    def _start(self, start: Start, now: float) -> None:
        job, number = start.job, start.slot.number
        self.waiting.remove(job)
        folder = self._folder(job.run_id)
        if job.not_before and folder.status() == "running":  # looked at before, and still in other hands
            self.waiting.append(later(job, now))
            return
        self._disturbed(start.slot.device)
        if start.slot.device != CPU:
            self.free_before[number] = _gpu_memory(start.slot.device)
        self.busy[number] = RunningJob(job, now + START_SECONDS)
        self.monitor.started(job.run_ids, _place(start.slot))
        future = self.workers[number].take([self.configs[run_id] for run_id in job.run_ids], self.options)
        future.add_done_callback(lambda done: self.answers.put((number, outcomes_of(done, len(job.run_ids)))))

    def _take_answers(self) -> None:
        """Wait a moment for the first run that ends, and take all that have."""
        with suppress(queue.Empty):
            self._ended(*self.answers.get(timeout=TICK_SECONDS))
            while True:
                self._ended(*self.answers.get_nowait())

    def _ended(self, number: int, outcomes: "Sequence[Outcome]") -> None:
        if any(outcome.kind == UNGUARDED for outcome in outcomes):
            raise UserError(
                "the script that calls invbench.sweep is imported by the sweep's processes; put the call under "
                "`if __name__ == '__main__':`"
            )
        busy = self.busy.pop(number)
        self._disturbed(self.engine.slots[number].device)
        if busy.stopping:
            outcomes = [one if one.status == "done" else self._stopped(one) for one in outcomes]
        if any(outcome.kind not in CLEAN for outcome in outcomes):
            self.workers[number].replace()
        following = settle_outcomes(busy.job, outcomes, self.configs, self.options.out, self.monitor)
        # Those that failed come first, those in other hands last.
        held = [job for job in following if job.not_before and job.attempts == busy.job.attempts]
        self.waiting = [*(job for job in following if job not in held), *self.waiting, *held]

    def _stopped(self, outcome: Outcome) -> Outcome:
        """Return the outcome of a run that was asked to stop: interrupted by the user, or out of time."""
        if self.monitor.draining:
            return Outcome("interrupted", message=outcome.message)
        limit = self.engine.rules.timeout
        return Outcome("failed", "timeout", f"not done after {limit:g} s; a longer --timeout continues it")

    def _ask_to_stop(self, number: int, now: float) -> None:
        """Send SIGTERM to the slot's process: a run writes its checkpoint and ends; before training it ends at once."""
        self.busy[number] = self.busy[number]._replace(stopping=True)
        limit = self.engine.rules.timeout
        grace = GRACE_SECONDS if limit is None or self.monitor.draining else min(GRACE_SECONDS, limit)
        worker = self.workers[number]
        worker.killed_at = now + grace if worker.send(signal.SIGTERM) else now

    def _kill_those_without_grace(self, now: float) -> None:
        for number in self.busy:
            worker = self.workers[number]
            if worker.killed_at is not None and now >= worker.killed_at and worker.future is not None:
                worker.future.cancel()

    def _look_at_progress(self) -> None:
        for number, busy in self.busy.items():
            seen = read_lease(self._folder(busy.job.run_id).lease_file)
            if seen is not None and seen.holder is not None and self.workers[number].is_at(seen.holder):
                self.monitor.progress(busy.job.run_id, seen.holder.step, seen.holder.total)
                since, stepped = min(busy.since, time.monotonic()), seen.holder.step > 0
                if stepped and not busy.stepped:
                    self._learn_need(number, busy)
                self.busy[number] = busy._replace(stepped=stepped, since=since)

    def _learn_need(self, number: int, busy: RunningJob) -> None:
        """Note what a job that has made a step took of its GPU's memory; nothing where that cannot be told."""
        before = self.free_before.pop(number, None)
        if before is not None:
            taken = before - _gpu_memory(self.engine.slots[number].device)
            key = busy.job.memory_key
            # Where a GPU's memory cannot be asked for there is no floor to keep either.
            self.needs[key] = max(self.needs.get(key, 0.0), taken if math.isfinite(taken) else 0.0)

    def _disturbed(self, device: str) -> None:
        """Forget the free memory of a device at the beginning of jobs, since something begins or ends there now."""
        for slot in self.engine.slots:
            if slot.device == device:
                self.free_before.pop(slot.number, None)

    def _folder(self, run_id: str) -> RunFolder:
        return RunFolder(self.options.out / run_id)


def end(workers: Sequence[WorkerProcess]) -> None:
    """End processes, at once: what is to be kept has been kept."""
    for worker in workers:
        worker.send(signal.SIGKILL)
    with ExitStack() as stack:  # another Ctrl-C, while one of them ends, leaves none of the others
        for worker in workers:
            stack.callback(worker.replace)


@contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Start processes and threads without a terminal's Ctrl-C; this process receives it after the block.

    Otherwise one that is still being loaded would tell of it at length.
    """
    resource_tracker.ensure_running()  # which would unblock signals when it begins
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outcomes_of(done: "Future[Any]", runs: int) -> list[Outcome]:
    """Return a process's answer on so many runs, or what its end means."""
    end = _end(done)
    return done.result() if end is None else [end] * runs


def _end(done: "Future[Any]") -> Outcome | None:
    if done.cancelled():
        return Outcome("interrupted")
    error = done.exception()
    if isinstance(error, ProcessExpired):
        return Outcome("failed", "killed", f"its process ended with status {error.exitcode} (out of memory?)")
    if isinstance(error, BrokenProcessPool) and (mark := mark_of_unguarded(os.getpid())).exists():
        mark.unlink(missing_ok=True)
        return Outcome("failed", UNGUARDED)
    if isinstance(error, BrokenProcessPool):
        return Outcome("failed", "killed", "its process ended before it began")
    if error is not None:
        return Outcome("failed", "error", f"{type(error).__name__}: {error}")
    return None


def _place(slot: Slot) -> str:
    return f"worker {slot.number}" if slot.device == CPU else f"GPU {slot.device}"


def free_memory(slots: Sequence[Slot]) -> dict[str, float]:
    """Return free bytes by device, at most this machine's; of a GPU only where nvidia-ml-py is installed."""
    host = float(psutil.virtual_memory().available)
    return {device: min(host, _gpu_memory(device)) for device in {slot.device for slot in slots}}


def _gpu_memory(device: str) -> float:
    if device == CPU:
        return float("inf")
    if "-" not in device and os.environ.get(ORDER) != BY_BUS:  # a number means another GPU to CUDA than to the driver
        return float("inf")
    try:
        import pynvml

        pynvml.nvmlInit()
        by_name = pynvml.nvmlDeviceGetHandleByUUID if "-" in device else pynvml.nvmlDeviceGetHandleByIndex
        return float(pynvml.nvmlDeviceGetMemoryInfo(by_name(device if "-" in device else int(device))).free)
    except Exception:  # no package, no driver, a name that it does not know: then there is no floor
        return float("inf")


@dataclass(frozen=True)
class LocalResources:
    """Resources of one machine that a sweep uses.

    Args:
        gpus: such as `0,2`, positions in the list of visible GPUs; all where it is None.
        jobs_per_gpu: runs that share a GPU.
        workers: this many processes on the CPU, and no GPU.
        threads: of each process.
        device: auto, which is GPUs where there are some; cpu; or cuda.
    """

    gpus: str | None = None
    jobs_per_gpu: int = 1
    workers: int | None = None
    threads: int = 1
    device: str = "auto"

    def slots(self) -> list[Slot]:
        """Make a slot for each run at a time. Raises UserError where there is no such device."""
        numbers = {"workers": self.workers, "jobs_per_gpu": self.jobs_per_gpu, "threads": self.threads}
        for name, number in numbers.items():
            if number is not None and not 1 <= number <= MOST_PROCESSES:
                raise UserError(f"there can be 1 to {MOST_PROCESSES} {name}, not {number}")
        on_gpu = self.device == "cuda" or self.gpus is not None or self.jobs_per_gpu > 1
        on_cpu = self.device == "cpu" or self.workers is not None
        if on_cpu and on_gpu:
            raise UserError(
                "--workers and --device cpu are for the CPU, --gpus, --jobs-per-gpu and --device cuda for GPUs; "
                "give one of them"
            )
        devices: list[str] = []
        if not on_cpu:
            os.environ.setdefault(ORDER, BY_BUS)
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            devices = chosen_gpus(self.gpus, visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), count))
        if devices:
            return [Slot(number, device) for number, device in enumerate(devices * self.jobs_per_gpu)]
        if on_gpu:
            raise UserError(
                "no GPU is visible, which --gpus, --jobs-per-gpu and --device cuda ask for; "
                "`bench doctor` says what torch sees"
            )
        workers = max(1, available_cores() // self.threads) if self.workers is None else self.workers
        return [Slot(number, CPU) for number in range(workers)]
