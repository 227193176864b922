"""An attempt at one run: its training, and the record of its success or failure."""

import os
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch

from invbench.core.backbone import first_weights
from invbench.core.data import Problem
from invbench.errors import Interrupted, RunFailed
from invbench.evaluation.invariance import affordable_examples, measure, transformations
from invbench.files import FULL_DISK
from invbench.runs.curves import write_rows
from invbench.runs.folder import RunFolder, unwritable
from invbench.runs.options import Options
from invbench.runs.record import Record, now
from invbench.runs.resolve import RunConfig
from invbench.system.device import forget_peak_memory, out_of_memory, peak_memory
from invbench.system.provenance import describe
from invbench.system.threads import set_threads
from invbench.training.build import model_on, problem_on
from invbench.training.curve_columns import best_by, best_validation
from invbench.training.inactive import idle_parts, never_reached, why_inactive
from invbench.training.loggers import Loggers
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report
from invbench.training.restored import begun_in
from invbench.training.threads import suitable_threads

Metrics = dict[str, float]
SILENT_SECONDS = 10
"""Seconds for which the measurement of invariance may report nothing."""


class Attempt:
    """Attempt at a run whose folder this process holds.

    Args:
        config: the run.
        problem: its data.
        folder: its folder, with this process's lease.
        device: where it is trained.
        code: the version of the code, for the record.
        options: how it is carried out.
    """

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
        self.provenance = problem.provenance
        origin = f"{code['sources']}-{problem.fingerprint}"
        self.training = build_training(config, problem, folder, device, origin, options)
        if options.threads is None:
            set_threads(suitable_threads(self.training))

    def carry_out(self) -> Record:
        """Train, and write the record.

        Raises:
            RunFailed: it failed; the record of the failure is written.
            Interrupted: it was stopped; the checkpoint is written.
        """
        with self.begin() as report:
            if first := self.training.first_stage:
                words = (f"{name} {value}" for name, value in first.items() if name != "weights_sha256")
                report.say(f"first stage: {', '.join(words)}")
            try:
                return self.conclude(self.training.run(report), report)
            except (Interrupted, KeyboardInterrupt):
                raise
            except Exception as error:
                raise self.record_failure(error, report) from error

    def begin(self) -> Report:
        """Set an earlier record aside. Returns the report of the run's progress.

        Raises:
            UserError, RunFailed: the folder cannot be written to.
        """
        try:
            self.folder.set_aside()
        except OSError as error:
            raise unwritable(self.folder.path, error) from None
        forget_peak_memory(self.device)
        return Report(self.config.title, self.training.total, self.folder.log, self.options.quiet, self.folder.lease)

    def conclude(self, metrics: Metrics, report: Report, fused: int = 0) -> Record:
        """Write the record of a run whose training is over.

        Args:
            metrics: of its last step.
            report: of its progress.
            fused: number of runs that were trained together, this one included; 0 where it was trained alone.
        """
        invariance = self._invariance(report)
        training = self.training
        method, total = training.config.method, training.total
        inactive = why_inactive(method, total, training.rows, lambda: _idle_parts(training))
        if inactive and not never_reached(method, total):  # which was said at the beginning
            report.say(f"warning: {inactive}")
        if training.average and training.done:
            report.say(training.average.summary(training.done))
        return self._write("done", metrics, invariance, fused, inactive)

    def record_failure(self, error: Exception, report: Report) -> RunFailed:
        """Write the record of a failure. Returns the error to raise.

        A full disk leaves no record: the run stays open, and continues once there is room.
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
        return failure_of(self.config, self.folder, error)

    def _invariance(self, report: Report) -> dict[str, Any]:
        """Measure how much transformations of the inputs change the predictions; empty where that is off."""
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
        """Write the record of this attempt."""
        training = self.training
        weights, mean = first_weights(training.model), training.average
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
            best_by=best_by(training.rows, metrics) if status == "done" else {},
            invariance=invariance,
            data=self.provenance,
            engine={
                "strategy": training.objective.strategy,
                "steps": training.done,
                "steps_per_epoch": training.sampler.steps_per_epoch,
                "parameters": sum(p.numel() for p in training.model.parameters() if p.requires_grad),
                "condensed": training.is_condensed,
                **({"weights": weights} if weights else {}),
                **({"first_stage": training.first_stage} if training.first_stage else {}),
                **({"fused": fused} if fused else {}),
                **({"inactive": inactive} if inactive else {}),
                **({"mean_of_steps": list(mean.steps(training.done))} if mean and status == "done" else {}),
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
    """Build the training of a run on a device, at its beginning; for `origin` see `TrainingLoop`.

    A checkpoint of other first weights is not taken up either.
    """
    began = time.perf_counter()
    first: dict[str, Any] = {}
    if config.method.second_stage:
        problem, model, first = begun_in(config, problem, device, options.out)
        origin = f"{origin}-{problem.fingerprint}-{first['weights_sha256']}"
    else:
        model = model_on(device, config, problem)
    built = time.perf_counter() - began
    if weights := first_weights(model):
        origin = f"{origin}-{weights['sha256']}"
    loggers = Loggers(options.loggers, folder, config.spec)
    data = problem_on(device, config, problem)
    training = TrainingLoop(config, data, model, folder, origin, options.checkpoint_seconds, loggers)
    training.first_stage = first
    if not any(part.trains for part in config.method.parts.values()):  # all that such a method does
        training.stopwatch.seconds["training"] += built
    return training


def _idle_parts(training: TrainingLoop) -> list[str]:
    """List the parts of a trained run's method whose penalty moves nothing, judged on the first batch."""
    batch = training.loader.batch(0)
    return idle_parts(training.objective, training.parameters, batch, training.method_state)


def record_unbuilt(config: RunConfig, folder: RunFolder, code: dict[str, Any], error: Exception) -> RunFailed:
    """Write the record of a run whose data or network could not be made. Returns the error to raise.

    A full disk leaves no record, as in `Attempt.record_failure`.
    """
    if kind_of(error) != "disk_full":
        record = Record.of_failure(config.spec, kind_of(error), str(error))
        trace = "".join(traceback.format_exception(error))
        with suppress(OSError):
            folder.set_aside()
            folder.write_record(record.model_copy(update={"traceback": trace, "code": code}))
    return failure_of(config, folder, error)


def failure_of(config: RunConfig, folder: RunFolder, error: Exception) -> RunFailed:
    """Make the error that says how a run failed, and where its details are."""
    kind = kind_of(error)
    what = f"{type(error).__name__}: {error}{_raised_at(error)}" if kind == "error" else str(error)
    return RunFailed(kind, f"{config.title} failed ({kind}): {what}; details in {folder.path}")


def _raised_at(error: Exception) -> str:
    """Say which line raised an error: the last one that is not of another installed package."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if "site-packages" not in frame.filename or "/invbench/" in frame.filename]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


def kind_of(error: Exception) -> str:
    """Return the kind of a failure, in one word; see `invbench.sweeps.jobs.Outcome`."""
    if isinstance(error, RunFailed):
        return error.kind
    if out_of_memory(error):
        return "oom"
    if any(os.strerror(number) in str(error) for number in FULL_DISK):  # safetensors' errors have no number
        return "disk_full"
    return "input_output" if isinstance(error, OSError) else "error"


def examples_to_measure(training: TrainingLoop, steps: int) -> int:
    """Return the number of examples on which a run of so many steps measures invariance."""
    setting, sampler = training.config.trainer.measure_invariance, training.sampler
    if isinstance(setting, int):
        return setting
    return affordable_examples(training.problem, steps * sampler.per_step * sampler.batch_size)
