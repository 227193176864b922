"""Profiles of runs, from some of their steps while all critics learn: `bench run --profile`.

The steps are made in a folder that is thrown away, so the run itself, done or not, stays as it is.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it prints when it begins and ends
from torch.profiler import ProfilerActivity, profile, record_function

from invbench.evaluation.invariance import measure
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.system.device import choose_device, timed
from invbench.system.threads import set_threads, threads_put_back
from invbench.training.attempt import build_training, examples_to_measure
from invbench.training.build import load_problem
from invbench.training.loop import TrainingLoop
from invbench.training.phases import PHASES, Phases
from invbench.training.threads import suitable_threads

WARM_UP, TRACED = 3, 3
"""Number of steps ahead of the timed ones, and of traced steps after them."""
MOST_STEPS, ENOUGH_SECONDS = 100, 3.0
"""Number of steps, and seconds, after which no more steps are timed."""


@dataclass(frozen=True)
class Cost:
    """Cost of a part of a run: mean seconds of a call, and calls in the whole run."""

    name: str
    seconds: float
    calls: int

    @property
    def total(self) -> float:
        """Seconds that the part takes in the whole run."""
        return self.seconds * self.calls


@dataclass(frozen=True)
class Profile:
    """Costs measured from a number of timed steps, and the path of a trace for https://ui.perfetto.dev."""

    steps: int
    costs: list[Cost]
    trace: Path


def profile_run(config: RunConfig, options: Options) -> Profile:
    """Time some steps and evaluations of a run, and write a trace of a few more.

    Raises:
        UserError: the run cannot be begun.
        RunFailed: it diverges at once.
    """
    trace = options.out / f"{config.spec.run_id}.trace.json.gz"
    trace.parent.mkdir(parents=True, exist_ok=True)
    device = choose_device(options.device)
    with threads_put_back(), tempfile.TemporaryDirectory() as folder:
        training = build_training(config, load_problem(config), RunFolder(Path(folder)), device, "", options)
        set_threads(options.threads or suitable_threads(training))
        steps, spare = training.steps(), max(0, training.total - TRACED)
        training.done = min(training.critics.all_active_from, spare)

        def step() -> None:
            next(steps, None)

        with training.noise():
            training.model.train()
            for _ in range(min(WARM_UP, (spare - training.done) // 2)):
                step()
            training.measure(training.eval_splits)
            costs, count = _steps(training, step, min(MOST_STEPS, spare - training.done))
            costs.append(_evaluation(training))
            _trace(training, step, trace)
            costs.append(Cost("last evaluation", timed(lambda: _last(training), device), 1))
    return Profile(count, costs, trace)


def _steps(training: TrainingLoop, step: Callable[[], None], most: int) -> tuple[list[Cost], int]:
    """Measure the mean cost of each phase of a step. Returns also the number of timed steps."""
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


def _evaluation(training: TrainingLoop) -> Cost:
    """Measure the cost of an evaluation between steps."""
    seconds = timed(lambda: training.measure(training.eval_splits), training.device)
    return Cost("evaluation", seconds, max(0, training.total - 1) // training.eval_every)


def _last(training: TrainingLoop) -> None:
    """Evaluate as a run does at its end."""
    training.measure(tuple(training.problem.splits), last=True)
    if training.config.trainer.measure_invariance != "off":
        examples = examples_to_measure(training, training.total)
        measure(training.model, training.problem, training.config.spec.seed, training.done, examples)


def _trace(training: TrainingLoop, step: Callable[[], None], path: Path) -> None:
    """Write torch's trace of a few steps and an evaluation, with the phases' names."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if training.device.type == "cuda" else [])]
    unhurried = Phases(None, named=True)  # of a GPU one wants to see what overlaps
    with profile(activities=activities) as profiler:
        with unhurried.watch():
            for _ in range(TRACED):
                with record_function("step"):
                    step()
        with record_function("evaluation"):
            training.measure(training.eval_splits)
    profiler.export_chrome_trace(str(path))
