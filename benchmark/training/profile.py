"""Where the time of a run goes, from some of its steps, made when all second players learn: `bench run --profile`.

The steps are made in a folder that is thrown away, so the run itself, done or not, stays as it is.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of its beginning and end
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from invbench.evaluation.invariance import measure
from invbench.runs.record import RunFolder
from invbench.runs.resolve import Cell
from invbench.system.device import choose_device, timed
from invbench.system.threads import threads_put_back
from invbench.training.build import load_problem
from invbench.training.loop import TrainingLoop
from invbench.training.phases import PHASES, Phases
from invbench.training.runner import Options, build_training, examples_to_measure
from invbench.training.threads import suitable_threads

WARM_UP, TRACED = 3, 3
"""Steps ahead of the timed ones, and after them."""
MOST_STEPS, ENOUGH_SECONDS = 100, 3.0
"""Steps are timed until there are so many, or they have taken so long."""


@dataclass(frozen=True)
class Cost:
    """A part of a run: mean seconds of a call, and calls in the whole run."""

    name: str
    seconds: float
    calls: int

    @property
    def total(self) -> float:
        """Seconds in the whole run."""
        return self.seconds * self.calls


@dataclass(frozen=True)
class Profile:
    """What was found, from so many timed steps; trace: for https://ui.perfetto.dev or chrome://tracing."""

    steps: int
    costs: list[Cost]
    trace: Path


def profile_cell(cell: Cell, options: Options) -> Profile:
    """Time some steps and evaluations of a run, and write a trace of a few more.

    Raises:
        UserError: the run cannot be begun.
        RunFailed: it diverges at once.
    """
    trace = options.out / f"{cell.spec.run_id}.trace.json.gz"
    trace.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    with threads_put_back(), tempfile.TemporaryDirectory() as folder:
        training = build_training(cell, load_problem(cell), RunFolder(Path(folder)), device, "", options)
        torch.set_num_threads(options.threads or suitable_threads(training))
        steps, spare = training.steps(), max(0, training.total - TRACED)
        training.done = min(training.critics.all_learn, spare)

        def step() -> None:
            next(steps, None)

        with training.noise():
            training.model.train()
            for _ in range(min(WARM_UP, (spare - training.done) // 2)):
                step()
            training.measure(training.eval_splits)
            costs, count = _steps(training, step, min(MOST_STEPS, spare - training.done))
            costs.append(_watching(training))
            _trace(training, step, trace)
            costs.append(Cost("last evaluation", timed(lambda: _last(training), device), 1))
    return Profile(count, costs, trace)


def _steps(training: TrainingLoop, step: Callable[[], None], most: int) -> tuple[list[Cost], int]:
    """What the phases of a step cost, in their order, and of how many steps that is the mean."""
    phases, count, seconds = Phases(training.device), 0, 0.0
    with phases.watch():
        while count < most and seconds < ENOUGH_SECONDS and not training.over:
            seconds += timed(step, training.device)
            count += 1
    if not count:
        return [], 0
    named = {name: phases.seconds[name] for name in PHASES if name in phases.seconds}
    each = named | {"other": seconds - sum(named.values())}
    return [Cost(name, spent / count, training.total) for name, spent in each.items()], count


def _watching(training: TrainingLoop) -> Cost:
    """What it costs to measure the run on its way."""
    seconds = timed(lambda: training.measure(training.eval_splits), training.device)
    return Cost("evaluation", seconds, max(0, training.total - 1) // training.eval_every)


def _last(training: TrainingLoop) -> None:
    """What a run does when it is trained."""
    training.measure(tuple(training.problem.splits), last=True)
    if training.cell.trainer.measure_invariance != "off":
        examples = examples_to_measure(training, training.total)
        measure(training.model, training.problem, training.cell.spec.seed, training.done, examples)


def _trace(training: TrainingLoop, step: Callable[[], None], path: Path) -> None:
    """A few steps and an evaluation as torch's profiler sees them, with the phases' names."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if training.device.type == "cuda" else [])]
    unhurried = Phases(None, named=True)  # of a GPU one wants to see what overlaps
    with profile(activities=activities) as found:
        with unhurried.watch():
            for _ in range(TRACED):
                with record_function("step"):
                    step()
        with record_function("evaluation"):
            training.measure(training.eval_splits)
    found.export_chrome_trace(str(path))
