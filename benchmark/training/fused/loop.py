"""Joint training of runs that differ in seed and in numbers only: one step updates them all.

A run's step is a pure function of tensors: `Objective.pure_step`, the optimiser, the updates of critics. It is mapped
over runs by `torch.func.vmap`, and the operations of one such call are recorded and repeated
(`invbench.training.fused.program`).

Every run keeps its own data, order, settings, curves and checkpoints. Its numbers differ by rounding from those that it
has alone. Nothing in a step mixes runs: one that diverges is dropped, and its neighbours do not notice.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import fields, replace
from functools import lru_cache, partial

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from invbench.core.data import Batch
from invbench.core.method import State
from invbench.core.trainer import TrainerConfig
from invbench.errors import CannotFuse, Interrupted, RunFailed
from invbench.pytree import Tree, map_leaves, unflatten
from invbench.system.signals import stop_requests
from invbench.system.stopwatch import Stopwatch
from invbench.training.averaging import mix
from invbench.training.checkpoint_schedule import CheckpointSchedule
from invbench.training.critic_training import CRITIC
from invbench.training.fused.batches import StackedBatchLoader, Tensors
from invbench.training.fused.captured import STEPS, CannotCapture, CapturedSteps, StepBlock
from invbench.training.fused.compatibility import check_can_fuse
from invbench.training.fused.program import Call, Program, StepResult
from invbench.training.gradients import Objective, Step
from invbench.training.loop import TrainingLoop
from invbench.training.optimizers import Optimizer
from invbench.training.progress import Report

REPORT_SECONDS = 0.2
"""Seconds between reports of progress to the runs' leases and logs."""
PATH_SEPARATOR = "/"
"""Separator of the levels of a number's name; names of parameters have dots."""
Result = dict[str, float] | RunFailed | Interrupted
"""Metrics of a run, or the error that stopped it."""
Act = Callable[[int, TrainingLoop, Report], object]
"""Action on one run, called with its index."""


class FusedTraining:
    """Training of several runs as one.

    Args:
        trainings: of runs with one `fusion_key`, at the same step.

    Raises:
        CannotFuse: they cannot be trained together.
    """

    def __init__(self, trainings: Sequence[TrainingLoop]) -> None:
        check_can_fuse(trainings)
        self.trainings, self.first = list(trainings), trainings[0]
        self.left = dict(enumerate(trainings))
        self.loader = StackedBatchLoader([training.sampler for training in trainings])
        self.critic_loaders = {
            name: StackedBatchLoader([training.critics.loaders[name].sampler for training in trainings])
            for name in self.first.critics.loaders
        }
        self.settings = _differing([_numbers(training) for training in trainings], self.first.device)
        self.programs: dict[str, Program] = {}
        self.next_block: StepBlock | None = None
        self.captured: CapturedSteps | None = None  # of this block
        self.can_capture = self.first.average is None  # which counts each step
        self.stack_runs()

    def stack_runs(self) -> None:
        """Stack the runs' present state: parameters, moments, states."""
        self.done, self.objective_steps = self.first.done, self.first.objective_steps
        float64 = partial(torch.tensor, dtype=torch.float64, device=self.first.device)
        runs = [training.state() | {"updates": float64(training.updates)} for training in self.trainings]
        self.leaves, self.treedef = tree_flatten(_stack(runs))
        means = [training.average.running for training in self.trainings if training.average]
        self.means: dict[str, Tensor] = _stack(means) if means else {}
        self.aux: Callable[[], Tree] = dict  # the last step's parts
        self.clock = Clock(self.trainings)

    def unstack_runs(self) -> None:
        """Write the stacked state back to every run."""
        runs, aux = tree_unflatten(self.leaves, self.treedef), self.aux()
        for r, training in self.left.items():
            run = _row(runs, r)
            training.load_state(self.done, self.objective_steps, run)
            if training.average:
                for name, mean in training.average.running.items():
                    mean.copy_(self.means[name][r])
            if aux:
                parts = _row(aux, r)
                training.last_env = parts.pop("env")
                training.last = Step(state={}, **parts)
        self.clock.share(self.left.values())

    def run(self, reports: Sequence[Report], ended: Callable[[int, Result], None]) -> None:
        """Train all runs to the end, from their checkpoints where there are some.

        Args:
            reports: of the runs.
            ended: called with the index of each run that is over, and its metrics or what stopped it.

        Raises:
            CannotFuse: they cannot be trained together; nothing has happened.
        """

        def each(act: Act) -> None:
            """Act on every remaining run; one that raises is dropped."""
            for r, training in list(self.left.items()):
                try:
                    act(r, training, reports[r])
                except (RunFailed, Interrupted) as stopped:
                    del self.left[r]
                    ended(r, stopped)

        with ExitStack() as loggers:
            for training, report in zip(self.trainings, reports, strict=True):
                with training.noise():
                    training.begin(report)
                loggers.enter_context(closing(training.loggers))
                others = len(reports) - 1
                report.say(f"trained together with {others} other {'run' if others == 1 else 'runs'}")
            if len({training.done for training in self.trainings}) > 1:
                raise CannotFuse("they do not go on at the same step")
            self.stack_runs()
            try:
                self._train(each)
            except CannotFuse as reason:
                line = f"trained alone after all: {reason}"
                each(lambda r, training, report: report.say(line))
                raise
            each(lambda r, training, report: ended(r, _finish(training, report)))

    def _train(self, each: Callable[[Act], None]) -> None:
        """Make all remaining steps, with evaluations and checkpoints between them."""
        first, reported, checkpoints = self.first, 0.0, CheckpointSchedule(self.first.checkpoint_seconds)
        with stop_requests() as stop, self.clock.stopwatch.during("training"):
            while self.done < first.total and self.left:
                if not self._captured_steps(each):
                    self.step()
                if time.perf_counter() - reported >= REPORT_SECONDS:
                    reported = time.perf_counter()
                    each(lambda r, training, report: report.step(self.done))
                if self.done < first.total and self.done % first.eval_every == 0:
                    self._pause(each, lambda r, training, report: training.measure_and_report(report))
                if stop.is_set() or checkpoints.due:
                    checkpoints.saved(self._pause(each, lambda r, training, report: _save(training)))
                if stop.is_set():
                    each(lambda r, training, report: training.raise_interrupted())
        self.unstack_runs()

    def _pause(self, each: Callable[[Act], None], act: Act) -> float:
        """Act on every run with its present state. Returns the seconds that it took."""
        began = time.perf_counter()
        with self.clock.stopwatch.during("pause"):
            self.unstack_runs()
            each(act)
            sums = torch.stack([training.objective_sum for training in self.trainings])
            self.leaves = tree_leaves(tree_unflatten(self.leaves, self.treedef) | {"objective_sum": sums})
            self.objective_steps = next((training.objective_steps for training in self.left.values()), 0)
        return time.perf_counter() - began

    @torch.no_grad()
    def step(self) -> None:
        """Make one step of all runs."""
        self.leaves, self.aux = self.advance(self._restarted(), self.done)
        self.done += 1
        self.objective_steps += 1
        self._average()

    def _average(self) -> None:
        """Add the weights after a step to the means that runs have, of which all have the same share."""
        shares = [training.average.count(self.done) for training in self.trainings if training.average]
        if shares:
            mix(self.means, tree_unflatten(self.leaves, self.treedef)["parameters"], shares[0])

    @torch.no_grad()
    def _captured_steps(self, each: Callable[[Act], None]) -> bool:
        """Make the next steps as one CUDA graph, on a GPU and where they are alike. Returns whether they were made."""
        if self.first.device.type != "cuda" or not self.can_capture:
            return False
        if self.next_block is None or not self.next_block.begins_like(self.done):
            self.captured, self.next_block = None, self.block()
        evaluated = self.done - self.done % self.first.eval_every + self.first.eval_every  # ahead of the next step then
        if not self.next_block.fits(self.done, min(self.first.total, evaluated)):
            return False
        try:
            self.captured = self.captured or CapturedSteps(self.next_block, self.leaves, self.done)
        except CannotCapture as reason:
            self.can_capture, line = False, f"steps are launched one by one: {reason}"
            each(lambda r, training, report: report.say(line))
            return False
        self.leaves, self.aux = self.captured(self.leaves, self.done)
        self.done += STEPS
        self.objective_steps += STEPS
        return True

    def block(self) -> StepBlock:
        """Return the next steps as a block."""
        first = self.first
        factors = [first.config.trainer.rate_factor(step, first.sampler.steps_per_epoch) for step in range(first.total)]
        restarts = {step for training in self.trainings for step in training.config.method.restarts}
        return StepBlock(self.calls, self.programs, self.done, factors, restarts, first.device)

    @torch.no_grad()
    def advance(self, leaves: list[Tensor], done: int) -> StepResult:
        """Compute the runs after the step with this index, critics' updates ahead of it included, and its parts."""
        for call in self.calls(done):
            leaves, aux = self._call(call, leaves)
        return leaves, aux

    def calls(self, done: int) -> list[Call]:
        """List the calls that make the step with this index: the critics' updates ahead of it, and the step."""
        critics = self.first.critics
        updates = [
            Call(partial(self._critic_update, name), loader, name, count, {"count": count})
            for name, loader in self.critic_loaders.items()
            for count in critics.update_counts(name, done)
        ]
        factor = self.first.config.trainer.rate_factor(done, self.first.sampler.steps_per_epoch)
        simultaneous = [
            name for name, critic in critics.critics.items() if critic.simultaneous and done >= critic.first_step
        ]
        counts = {name: critics.updates_before(critics.critics[name], done) for name in simultaneous}
        return [*updates, Call(self._step, self.loader, "", done, {"factor": factor, **counts})]

    def _restarted(self) -> list[Tensor]:
        """Zero the moments of the runs whose optimiser restarts ahead of this step. Returns all runs."""
        rows = [r for r, training in enumerate(self.trainings) if self.done in training.config.method.restarts]
        if rows:
            runs = tree_unflatten(self.leaves, self.treedef)
            for value in tree_leaves((runs["optimizer"], runs["updates"])):
                value[rows] = 0
        return self.leaves

    def _call(self, call: Call, leaves: list[Tensor]) -> StepResult:
        """Compute the runs after a call, and its parts; the first time it is traced."""
        batch, key = call.loader.batch(call.number), call.key
        values = {name: _scalar(value) for name, value in call.shared.items()}
        if key in self.programs:
            return self.programs[key](leaves, batch, values)
        facts = call.step, tree_unflatten(leaves, self.treedef), self.settings, batch, values, call.loader.axis
        program = Program(*facts)
        after, aux = program(leaves, batch, values)
        if any(new.shape != old.shape for new, old in zip(after, leaves, strict=True)):
            return after, aux  # states may get their size in the first step
        self.programs[key] = program
        if not self.first.config.trainer.compile:
            return after, aux
        self.programs[key] = Program(*facts, is_compiled=True)
        return self.programs[key](leaves, batch, values)  # the numbers of a run that begins here

    def _step(self, run: Tree, settings: Tensors, tensors: Tensors, shared: Tensors) -> tuple[Tree, Tree]:
        """Make one step of one run, as `TrainingLoop.step` does."""
        objective, optimizer = self._with(settings, run["buffers"])
        theta, state, batch = run["parameters"], run["method"], Batch(**tensors)
        method, critics = objective.method, self.first.critics
        critic_states: State = {}
        for name in shared.keys() - {"factor"}:
            outputs = objective.with_copies().batch_outputs(theta, batch)
            of_critic = self._critic_rate(name, settings)
            after = critics.pure_update(name, objective, outputs, batch, state, shared[name], of_critic)[name]
            critic_states[name] = {part: after[part] for part in CRITIC}
        rate = method.learning_rate(optimizer.trainer.learning_rate, state) * shared["factor"]
        step = objective.pure_step(theta, batch, state, rate)
        new, moments = optimizer.step(
            {**theta, **step.start}, step.gradients, run["optimizer"], run["updates"], rate, method.scale(state)
        )
        after = {
            "parameters": new,
            "buffers": dict(step.buffers) or run["buffers"],
            "optimizer": moments,
            "method": method.advance({name: part | critic_states.get(name, {}) for name, part in step.state.items()}),
            "objective_sum": run["objective_sum"] + step.objective.double(),
            "updates": run["updates"] + 1,
        }
        aux = step._asdict() | {"env": batch.env}
        del aux["state"], aux["buffers"], aux["start"]
        return after, aux

    def _critic_update(
        self, name: str, run: Tree, settings: Tensors, tensors: Tensors, shared: Tensors
    ) -> tuple[Tree, Tree]:
        """Make one update of a critic of one run, as `CriticTrainer.update_before` does."""
        objective, _ = self._with(settings, run["buffers"])
        batch = Batch(**tensors)
        outputs = objective.with_copies().batch_outputs(run["parameters"], batch)
        rate = self._critic_rate(name, settings)
        state = self.first.critics.pure_update(name, objective, outputs, batch, run["method"], shared["count"], rate)
        return run | {"method": state}, {}

    def _critic_rate(self, name: str, settings: Tensors) -> float | Tensor:
        """Return the learning rate of a run's critic."""
        return settings.get(f"critics/{name}", self.first.critics.learning_rate(name))

    def _with(self, settings: Tensors, buffers: Tensors) -> tuple[Objective, Optimizer]:
        """Return objective and optimiser of the first run with the numbers of another."""
        numbers = unflatten(settings, PATH_SEPARATOR)
        first = self.first.objective
        objective = replace(
            first,
            method=first.method.with_settings(numbers.get("method", {})),
            task=replace(first.task, **numbers.get("task", {})),  # type: ignore[type-var]
            buffers=buffers,
        )
        optimizer = self.first.optimizer
        trainer = optimizer.trainer.model_copy(update=numbers.get("trainer", {}))
        return objective, replace(optimizer, trainer=trainer, decays={**optimizer.decays, **numbers.get("decays", {})})


class Clock:
    """Time of the steps of runs that are trained together, of which each run has an equal share."""

    def __init__(self, trainings: Sequence[TrainingLoop]) -> None:
        self.before = {id(training): training.stopwatch.seconds["training"] for training in trainings}
        self.stopwatch, self.runs = Stopwatch(trainings[0].device), len(trainings)

    def share(self, trainings: Iterable[TrainingLoop]) -> None:
        """Set the runs' times to their shares."""
        share = self.stopwatch.read().get("training", 0.0) / self.runs
        for training in trainings:
            training.stopwatch.seconds["training"] = self.before[id(training)] + share


def _numbers(training: TrainingLoop) -> dict[str, float]:
    """Collect the numbers in which runs of one group may differ, by path."""
    numbers: dict[str, float] = {}
    for part, settings in training.config.method.parts.items():
        numbers |= {f"method/{part}/{name}": getattr(settings, name) for name in type(settings).fusable()}
    numbers |= {f"trainer/{name}": getattr(training.config.trainer, name) for name in TrainerConfig.fusable()}
    numbers |= {f"critics/{name}": training.critics.learning_rate(name) for name in training.critics.critics}
    decays = training.optimizer.decays
    numbers |= {f"decays/{name}": value for name, value in decays.items() if isinstance(value, float)}
    task = training.problem.task
    constants = {field.name: getattr(task, field.name) for field in fields(task)}  # type: ignore[arg-type]
    return numbers | {f"task/{name}": value for name, value in constants.items() if isinstance(value, float)}


def _differing(each: Sequence[dict[str, float]], device: torch.device) -> Tensors:
    """Stack the numbers that are not the same in all runs (runs,)."""
    first = each[0]
    names = [name for name in first if any(numbers[name] != first[name] for numbers in each)]
    kinds = {name: torch.int64 if isinstance(first[name], int) else torch.float64 for name in names}
    return {name: torch.tensor([numbers[name] for numbers in each], dtype=kinds[name], device=device) for name in names}


@lru_cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def _stack(trees: Sequence[Tree]) -> Tree:
    """Stack equal trees of tensors, with an axis of runs in front."""
    stacked: Tree = tree_map(lambda *leaves: torch.stack(leaves), *trees)
    return stacked


def _save(training: TrainingLoop) -> None:
    """Write a checkpoint, with the generator's state at the beginning of its stream."""
    with training.noise():
        training.save()


def _finish(training: TrainingLoop, report: Report) -> dict[str, float]:
    with training.noise():
        return training.finish(report)


def _row(stacked: Tree, r: int) -> Tree:
    """Return one of the stacked runs."""
    return map_leaves(lambda value: value[r].clone(), stacked)
