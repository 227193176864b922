"""Carry out runs: hold the folder, make the data, train, write the record."""

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import torch

from invbench.console import announce, somebody_looks
from invbench.core.data import Problem
from invbench.errors import Interrupted, RunFailed, RunHeld, UserError
from invbench.evaluation.invariance import EXAMPLES, FEWEST, SHARE, STEP_COST, measure, transformations
from invbench.files import FULL_DISK
from invbench.runs.commands import parse_seeds
from invbench.runs.curves import write_rows
from invbench.runs.record import Record, RunFolder, now, unwritable
from invbench.runs.resolve import RunConfig, resolve
from invbench.runs.spec import Fuse
from invbench.system.device import choose_device, forget_peak_memory, out_of_memory, peak_memory
from invbench.system.provenance import code_version, describe
from invbench.system.threads import threads_put_back
from invbench.training.build import load_problem, model_on
from invbench.training.curve_columns import best_validation
from invbench.training.inactive import idle_parts, never_reached, why_inactive
from invbench.training.loggers import Loggers
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report
from invbench.training.threads import suitable_threads

Metrics = dict[str, float]
SILENT_SECONDS = 10
"""As long a measurement says nothing."""
Ended = Record | RunFailed | Interrupted | RunHeld | UserError
"""A run's record, or what stopped it."""
RESULTS = "results"
"""Folder of the runs when nothing else is asked for."""


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of it is part of what the run is.

    Args:
        device: auto, cpu, cuda or cuda:i.
        out: folder that gets a folder for each run.
        checkpoint_seconds: time between checkpoints; 0 makes one after every step.
        quiet: no progress on stderr; the run's log.txt has it all the same.
        loggers: where else the curves go: csv, tensorboard, wandb, mlflow.
        fuse: whether runs of a sweep are trained together; `invbench.runs.spec.Fuse`.
        threads: of torch on the CPU; None takes what suits the size of the run.
    """

    device: str = "auto"
    out: Path = Path(RESULTS)
    checkpoint_seconds: float = 10.0
    quiet: bool = True
    loggers: tuple[str, ...] = ()
    fuse: Fuse = "off"
    threads: int | None = None


@overload
def run(
    method: str,
    dataset: str,
    *,
    seed: int = 0,
    seeds: None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> Record: ...


@overload
def run(
    method: str,
    dataset: str,
    *,
    seeds: str | Iterable[int],
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> list[Record]: ...


def run(
    method: str,
    dataset: str,
    *,
    seed: int = 0,
    seeds: str | Iterable[int] | None = None,
    settings: Mapping[str, Any] | None = None,
    device: str = "auto",
    out: str | Path = RESULTS,
    threads: int | None = None,
    progress: bool | None = None,
    loggers: Iterable[str] = (),
    checkpoint_seconds: float = 10.0,
) -> Record | list[Record]:
    """Train one method on one dataset and keep the record. The same call again returns the record that is there.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings)
    >>> record.status
    'done'
    >>> [record.spec.seed for record in invbench.run("erm", "spirals", seeds="0-1", settings=settings)]
    [0, 1]

    Args:
        method: a registered name, or several joined by `+`.
        dataset: a registered name.
        seed: decides data, initialisation, order and noise, each by a stream of its own.
        seeds: several, such as `"0-4"` or `[0, 2, 7]`, instead of one; then the answer is a list of records.
        settings: `{"method.threshold": 0.5, "trainer.epochs": 3}`; they win over the recipe.
        device: auto, cpu, cuda or cuda:i.
        out: folder that gets a folder for each run.
        threads: of torch on the CPU; None takes what suits the size of the run.
        progress: show it on stderr, or below the cell of a notebook; None: where that is a terminal or a notebook.
        loggers: where else the curves go: csv, tensorboard, wandb, mlflow.
        checkpoint_seconds: time between checkpoints; 0 makes one after every step.

    Raises:
        UserError: the request cannot be met; nothing is lost and nothing half-written.
        RunFailed: a run started and failed; its record says why. Of several seeds the others are run all the same.
        Interrupted: Ctrl-C or SIGTERM, or another process has taken the run over; the same call continues it.
    """
    if seeds is not None and seed:
        raise UserError("give either seed or seeds")
    shown = somebody_looks() if progress is None else progress
    options = Options(device, Path(out), checkpoint_seconds, not shown, tuple(loggers), threads=threads)
    if seeds is None:
        return run_one(resolve(method, dataset, seed, settings), options)
    records, failure = run_each([resolve(method, dataset, one, settings) for one in parse_seeds(seeds)], options)
    if failure:
        raise failure
    return records


def run_one(config: RunConfig, options: Options) -> Record:
    """Carry out one run, or return its record where this code has finished it already.

    A run that failed, or was made by other code or from other data, is run again; its record is kept as
    `record.previous.json`.
    """
    with threads_put_back(), _opened(config, options) as opened:
        return opened if isinstance(opened, Record) else opened.carry_out()


def run_each(configs: Sequence[RunConfig], options: Options) -> tuple[list[Record], RunFailed | None]:
    """Carry out every run, whether the ones before it failed or not.

    Returns:
        The records, those of failures among them, and what to raise where there are any.
    """
    records, failures = [], []
    for config in configs:
        try:
            records.append(run_one(config, options))
        except RunFailed as failure:
            failures.append(failure)
            record = RunFolder(options.out / config.spec.run_id).read_record()
            records += [record] if record else []
    if not failures:
        return records, None
    more = f" ({len(failures)} of {len(configs)} runs failed)" if len(configs) > 1 else ""
    return records, RunFailed(failures[0].kind, f"{failures[0]}{more}")


def run_together(configs: Sequence[RunConfig], options: Options, ended: Callable[[RunConfig, Ended], None]) -> None:
    """Carry out runs that differ in seed and numbers only, as one; each leaves what it would leave alone.

    Args:
        options: with `fuse="auto"` it is asked first whether that is faster.
        ended: called with every run that is over, and its record or what stopped it.

    Raises:
        CannotFuse: the runs that have not ended should be carried out one by one.
    """
    from invbench.training.fused.compatibility import check_can_fuse
    from invbench.training.fused.payoff import check_memory  # these take a while to import

    if options.fuse == "auto":
        check_memory(configs[0], choose_device(options.device), len(configs))
    with threads_put_back(), ExitStack() as stack:
        attempts: list[_Attempt] = []
        for config in configs:
            try:
                opened = stack.enter_context(_opened(config, options))
            except (RunHeld, UserError) as stopped:
                ended(config, stopped)
                continue
            if isinstance(opened, Record):
                ended(config, opened)
                continue
            attempts.append(opened)
            check_can_fuse([attempts[0].training, opened.training])  # as soon as possible: data take memory
        groups: dict[int, list[_Attempt]] = {}
        for attempt in attempts:
            groups.setdefault(attempt.training.checkpoint_step, []).append(attempt)
        for group in groups.values():
            _carry_out(group, ended)


def _carry_out(attempts: "Sequence[_Attempt]", ended: Callable[[RunConfig, Ended], None]) -> None:
    """Runs that go on at the same step."""
    from invbench.training.fused.loop import FusedTraining
    from invbench.training.fused.payoff import check_that_it_pays

    fused = FusedTraining([attempt.training for attempt in attempts])
    if attempts[0].options.fuse == "auto":
        check_that_it_pays(fused)
    with ExitStack() as stack:
        reports = [stack.enter_context(attempt.begin()) for attempt in attempts]

        def finish_run(number: int, result: Metrics | RunFailed | Interrupted) -> None:
            attempt, report = attempts[number], reports[number]
            if isinstance(result, Interrupted):
                ended(attempt.config, result)
                return
            try:
                if isinstance(result, RunFailed):
                    raise result
                ended(attempt.config, attempt.conclude(result, report, len(attempts)))
            except (OSError, RuntimeError, RunFailed) as error:
                ended(attempt.config, attempt.failed(error, report))

        fused.run(reports, finish_run)


@contextmanager
def _opened(config: RunConfig, options: Options) -> "Iterator[Record | _Attempt]":
    """The run in this process's hands: its record where it is done, or an attempt at it.

    Raises:
        RunHeld, UserError: it cannot be had, or cannot be run; then a new folder is removed.
    """
    device = choose_device(options.device)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    code = code_version(*config.classes)
    folder = RunFolder(options.out / config.spec.run_id)
    new = folder.create(config.spec)
    with folder.hold() as held:
        record = held.read_record()
        if record is not None and record.spec != config.spec:  # somebody has put another run's there
            record = None
        problem = None
        try:
            if record is not None and record.status == "done" and record.code["sources"] == code["sources"]:
                problem = _other_data(config, record)
                if problem is None:
                    if not options.quiet:
                        announce(f"{config.title}  is done already: {folder.path}")
                    yield record
                    return
            yield _Attempt(config, problem or load_problem(config), held, device, code, options)
        except UserError:
            if new:
                held.discard()
            raise


def _other_data(config: RunConfig, record: Record) -> Problem | None:
    """The run's problem, where there are files that make it another one than the record's."""
    if not config.dataset.files():
        return None
    problem = load_problem(config)
    return None if problem.fingerprint == record.data["fingerprint"] else problem


class _Attempt:
    """One try at a run whose folder this process holds."""

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        folder: RunFolder,
        device: torch.device,
        code: dict[str, Any],
        options: Options,
    ) -> None:
        self.config, self.folder, self.device, self.code, self.options = config, folder, device, code, options
        self.started = now()
        self.data = problem.provenance
        origin = f"{code['sources']}-{problem.fingerprint}"
        self.training = build_training(config, problem, folder, device, origin, options)
        if options.threads is None:
            torch.set_num_threads(suitable_threads(self.training))

    def carry_out(self) -> Record:
        """Train and write the record of success or failure. Raises RunFailed after the latter."""
        with self.begin() as report:
            try:
                return self.conclude(self.training.run(report), report)
            except (Interrupted, KeyboardInterrupt):
                raise
            except Exception as error:
                raise self.failed(error, report) from error

    def begin(self) -> Report:
        """Make the folder ready; returns where the run tells how far it is.

        Raises:
            UserError, RunFailed: the folder cannot be written to.
        """
        try:
            self.folder.set_aside()
        except OSError as error:
            raise unwritable(self.folder.path, error) from None
        forget_peak_memory(self.device)
        return Report(self.config.title, self.training.total, self.folder.log, self.options.quiet, self.folder.holder)

    def conclude(self, metrics: Metrics, report: Report, fused: int = 0) -> Record:
        """Write the record of a run that is trained; fused: with how many others, itself included, if at all."""
        invariance = self._invariance(report)
        training = self.training
        method, total = training.config.method, training.total
        inactive = why_inactive(method, total, training.rows, lambda: _idle_parts(training))
        if inactive and not never_reached(method, total):  # which was said at the beginning
            report.say(f"warning: {inactive}")
        return self._write("done", metrics, invariance, fused, inactive)

    def failed(self, error: Exception, report: Report) -> RunFailed:
        """Write the record of a failure; returns what to tell of it.

        A full disk is no result: the run stays open, and goes on once there is room.
        """
        kind = kind_of(error)
        # Whatever cannot be written must not keep the rest from being so.
        with suppress(OSError), self.folder.replacing(self.folder.curves) as temporary:
            write_rows(self.training.rows, temporary)
        with suppress(OSError):
            report.say(f"failed: {kind}: {error}")
        if kind != "disk_full":
            with suppress(OSError):
                trace = "".join(traceback.format_exception(error))
                self._write("failed", {}, {}, kind=kind, message=str(error), trace=trace)
        return RunFailed(kind, f"{self.config.title} failed ({kind}): {error}; details in {self.folder.path}")

    def _invariance(self, report: Report) -> dict[str, Any]:
        training, total = self.training, transformations(self.training.problem)
        if self.config.trainer.measure_invariance == "off":
            return {}
        if total:
            report.say("measuring invariance")

        def advanced(count: int) -> None:
            report.step(training.done)
            if time.monotonic() - report.last > SILENT_SECONDS:
                report.say(f"measuring invariance: {count} of {total} transformations")

        with training.stopwatch.during("invariance"):
            examples = examples_to_measure(training, training.done)
            return measure(training.model, training.problem, self.config.spec.seed, training.done, examples, advanced)

    def _write(
        self,
        status: Literal["done", "failed"],
        metrics: Metrics,
        invariance: dict[str, Any],
        fused: int = 0,
        inactive: str = "",
        kind: str | None = None,
        message: str | None = None,
        trace: str | None = None,
    ) -> Record:
        training = self.training
        best = best_validation(training.rows, training.problem.task, metrics) if status == "done" else None
        record = Record(
            run_id=self.config.spec.run_id,
            status=status,
            kind=kind,
            message=message,
            traceback=trace,
            spec=self.config.spec,
            metrics=metrics,
            best_validation=best,
            invariance=invariance,
            data=self.data,
            engine={
                "strategy": training.objective.strategy,
                "steps": training.done,
                "steps_per_epoch": training.sampler.steps_per_epoch,
                "parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
                "condensed": training.examples is not training.problem.splits["train"],
                **({"fused": fused} if fused else {}),
                **({"inactive": inactive} if inactive else {}),
            },
            cost=training.cost | {"peak_memory_bytes": float(peak_memory(self.device))},
            code=self.code,
            machine=describe(self.device),
            started=self.started,
            finished=now(),
        )
        self.folder.write_record(record)
        return record


def build_training(
    config: RunConfig, problem: Problem, folder: RunFolder, device: torch.device, origin: str, options: Options
) -> TrainingLoop:
    """A run's training on a device, at its beginning; origin: as of `TrainingLoop`."""
    model = model_on(device, config, problem)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
    loggers = Loggers(options.loggers, folder, config.spec)
    data = problem.to(device, getattr(torch, config.trainer.dtype))
    return TrainingLoop(config, data, model, folder, origin, options.checkpoint_seconds, loggers)


def _idle_parts(training: TrainingLoop) -> list[str]:
    """List the parts of a trained run's method whose penalty moves nothing, judged on the first batch."""
    batch = training.loader.batch(0)
    return idle_parts(training.objective, training.parameters, batch, training.method_state)


def kind_of(error: Exception) -> str:
    """Of a failure, in one word; see `invbench.sweeps.jobs.Outcome`."""
    if isinstance(error, RunFailed):
        return error.kind
    if out_of_memory(error):
        return "oom"
    if any(os.strerror(number) in str(error) for number in FULL_DISK):  # safetensors' errors have no number
        return "disk_full"
    return "input_output" if isinstance(error, OSError) else "error"


def examples_to_measure(training: TrainingLoop, steps: int) -> int:
    """How many examples a run of so many steps measures, by its settings.

    It goes by numbers of passes, not by the clock: the same run measures the same examples everywhere.
    """
    setting, sampler = training.config.trainer.measure_invariance, training.sampler
    if isinstance(setting, int):
        return setting
    trained = steps * sampler.per_step * sampler.batch_size
    times = max(1, transformations(training.problem))
    return min(EXAMPLES, max(FEWEST, int(SHARE * STEP_COST * trained / times)))
