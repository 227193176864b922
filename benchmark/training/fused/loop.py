"""Runs that differ in seed and in numbers only, trained together: one step moves them all.

A run's step is a pure function of tensors: `Objective.pure_step`, the optimiser, the updates of critics. It is mapped
over runs by `torch.func.vmap`, and what one call of that amounts to is written down and repeated
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
from invbench.training.critic_training import CRITIC
from invbench.training.fused.batches import StackedBatchLoader
from invbench.training.fused.compatibility import check_can_fuse
from invbench.training.fused.program import After, Program, RunStep, Tensors
from invbench.training.gradients import Objective, Step
from invbench.training.loop import CHECKPOINT_SHARE, TrainingLoop
from invbench.training.optimizers import Optimizer
from invbench.training.progress import Report
from invbench.training.sampling import BatchLoader

TELL_SECONDS = 0.2
"""How often the runs' claims and logs hear how far they are."""
LEVEL = "/"
"""Between the levels of a number's name; parameters have dots in theirs."""
Ended = dict[str, float] | RunFailed | Interrupted
"""A run's metrics, or what stopped it."""
Act = Callable[[int, TrainingLoop, Report], object]
"""Something that is done for one run, by its place."""


class FusedTraining:
    """The training of several runs as one.

    Args:
        trainings: of runs with one `fusion_key`, at the same step.

    Raises:
        CannotFuse: they cannot be trained together.
    """

    def __init__(self, trainings: Sequence[TrainingLoop]) -> None:
        check_can_fuse(trainings)
        self.trainings, self.first = list(trainings), trainings[0]
        self.left = dict(enumerate(trainings))
        self.feed = StackedBatchLoader([BatchLoader(training.sampler) for training in trainings])
        feeds = [training.critics.feeds for training in trainings]
        self.critic_feeds = {name: StackedBatchLoader([own[name] for own in feeds]) for name in feeds[0]}
        self.settings = _differing([_numbers(training) for training in trainings], self.first.device)
        self.programs: dict[str, Program] = {}
        self.stack_runs()

    def stack_runs(self) -> None:
        """Take up what the runs are: parameters, moments, states."""
        self.done, self.loss_steps = self.first.done, self.first.loss_steps
        runs = [
            {
                "parameters": {name: value.detach() for name, value in training.parameters.items()},
                "buffers": dict(training.model.named_buffers()),
                "moments": training.optimizer_state,
                "state": training.method_state,
                "loss": training.loss,
                "count": torch.tensor(float(training.updates), dtype=torch.float64, device=training.device),
            }
            for training in self.trainings
        ]
        self.leaves, self.form = tree_flatten(_stack(runs))
        self.told: Callable[[], Tree] = dict  # the last step's parts
        self.clock = Clock(self.trainings)

    def unstack_runs(self) -> None:
        """Give every run what it has become."""
        runs, parts = tree_unflatten(self.leaves, self.form), self.told()
        for r, training in self.left.items():
            own = _row(runs, r)
            training.load_state(self.done, own["parameters"], own["buffers"], own["moments"], own["state"])
            training.loss, training.loss_steps = own["loss"], self.loss_steps
            if parts:
                told = _row(parts, r)
                training.last_env = told.pop("env")
                training.last = Step(state={}, **told)
        self.clock.tell(self.left.values())

    def run(self, reports: Sequence[Report], ended: Callable[[int, Ended], None]) -> None:
        """Train all to the end, from their checkpoints where there are some.

        Args:
            reports: of the runs.
            ended: called with the place of each run that is over, and its metrics or what stopped it.

        Raises:
            CannotFuse: they cannot be trained together; nothing has happened.
        """

        def each(act: Act) -> None:
            """Do something for every run that is left; one that it stops is dropped."""
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
                report.say(f"trained together with {len(reports) - 1} other runs")
            if len({training.done for training in self.trainings}) > 1:
                raise CannotFuse("they do not go on at the same step")
            self.stack_runs()
            self._train(each)
            each(lambda r, training, report: ended(r, _finish(training, report)))

    def _train(self, each: Callable[[Act], None]) -> None:
        """All steps that are left, with evaluations and checkpoints between them."""
        first, told, saved = self.first, 0.0, time.perf_counter()
        pause = first.checkpoint_seconds
        with stop_requests() as stop, self.clock.stopwatch.during("training"):
            while self.done < first.total and self.left:
                self.step()
                if time.perf_counter() - told >= TELL_SECONDS:
                    told = time.perf_counter()
                    each(lambda r, training, report: report.step(self.done))
                if self.done < first.total and self.done % first.eval_every == 0:
                    self._pause(each, lambda r, training, report: training.watch(report))
                if stop.is_set() or time.perf_counter() - saved >= pause:
                    took = self._pause(each, lambda r, training, report: _save(training))
                    saved = time.perf_counter()
                    pause = max(first.checkpoint_seconds, took / CHECKPOINT_SHARE) if first.checkpoint_seconds else 0
                if stop.is_set():
                    each(lambda r, training, report: training.stop())
        self.unstack_runs()

    def _pause(self, each: Callable[[Act], None], act: Act) -> float:
        """Do something for every run with what it has become. Returns the seconds that it took."""
        began = time.perf_counter()
        with self.clock.stopwatch.during("pause"):
            self.unstack_runs()
            each(act)
            losses = [training.loss for training in self.trainings]
            self.leaves = tree_leaves(tree_unflatten(self.leaves, self.form) | {"loss": torch.stack(losses)})
            self.loss_steps = next((training.loss_steps for training in self.left.values()), 0)
        return time.perf_counter() - began

    @torch.no_grad()
    def step(self) -> None:
        """One step of all runs."""
        self.leaves, self.told = self.stepped(self._restarted(), self.done)
        self.done += 1
        self.loss_steps += 1

    @torch.no_grad()
    def stepped(self, leaves: list[Tensor], done: int) -> "After":
        """The runs after the step with this index, with the updates of critics ahead of it, and the step's parts."""
        players = self.first.critics
        for name, feed in self.critic_feeds.items():
            for number in players.numbers(name, done):
                leaves, _ = self._call(partial(self._critic_update, name), leaves, feed.batch(number), count=number)
        factor = self.first.cell.trainer.rate_factor(done, self.first.sampler.steps_per_epoch)
        beside = [name for name, one in players.critics.items() if one.simultaneous and done >= one.first_step]
        counts = {name: players.had(players.critics[name], done) for name in beside}
        return self._call(self._step, leaves, self.feed.batch(done), factor=factor, **counts)

    def _restarted(self) -> list[Tensor]:
        """The runs, without the moments of those whose optimiser starts afresh ahead of this step."""
        rows = [r for r, training in enumerate(self.trainings) if self.done in training.cell.method.restarts]
        if rows:
            runs = tree_unflatten(self.leaves, self.form)
            for value in tree_leaves((runs["moments"], runs["count"])):
                value[rows] = 0
        return self.leaves

    def _call(self, step: "RunStep", leaves: list[Tensor], batch: Tensors, **shared: float) -> "After":
        """The runs after a step, and what it tells beside; it is traced when it is made for the first time."""
        values = {name: _scalar(value) for name, value in shared.items()}
        key = "/".join(shared) + str(getattr(step, "args", ""))
        if key in self.programs:
            return self.programs[key](leaves, batch, values)
        program = Program(step, tree_unflatten(leaves, self.form), self.settings, batch, values)
        after, told = program(leaves, batch, values)
        if all(new.shape == old.shape for new, old in zip(after, leaves, strict=True)):
            self.programs[key] = program  # states may get their size in the first step
        return after, told

    def _step(self, run: Tree, settings: Tensors, tensors: Tensors, shared: Tensors) -> tuple[Tree, Tree]:
        """One step of one run; as `TrainingLoop.step`."""
        objective, optimizer = self._with(settings, run["buffers"])
        theta, state, batch = run["parameters"], run["state"], Batch(**tensors)
        method, rate, players = objective.method, optimizer.trainer.learning_rate, self.first.critics
        answers: State = {}
        for name in shared.keys() - {"factor"}:
            outputs = objective.with_copies().batch_outputs(theta, batch)
            after = players.pure_update(name, objective, outputs, batch, state, shared[name])[name]
            answers[name] = {part: after[part] for part in CRITIC}
        step = objective.pure_step(theta, batch, state)
        new, moments = optimizer.step(
            theta, step.gradients, run["moments"], run["count"], rate * shared["factor"], method.scale(state)
        )
        after = {
            "parameters": new,
            "buffers": dict(step.buffers) or run["buffers"],
            "moments": moments,
            "state": method.advance({name: own | answers.get(name, {}) for name, own in step.state.items()}),
            "loss": run["loss"] + step.objective.double(),
            "count": run["count"] + 1,
        }
        told = step._asdict() | {"env": batch.env}
        del told["state"], told["buffers"]
        return after, told

    def _critic_update(
        self, name: str, run: Tree, settings: Tensors, tensors: Tensors, shared: Tensors
    ) -> tuple[Tree, Tree]:
        """One update of a critic of one run; as `CriticTrainer.ahead` makes it."""
        objective, _ = self._with(settings, run["buffers"])
        batch = Batch(**tensors)
        outputs = objective.with_copies().batch_outputs(run["parameters"], batch)
        state = self.first.critics.pure_update(name, objective, outputs, batch, run["state"], shared["count"])
        return run | {"state": state}, {}

    def _with(self, settings: Tensors, buffers: Tensors) -> tuple[Objective, Optimizer]:
        """Objective and optimiser of the first run with the numbers of one."""
        own = unflatten(settings, LEVEL)
        first = self.first.objective
        objective = replace(
            first,
            method=first.method.with_settings(own.get("method", {})),
            task=replace(first.task, **own.get("task", {})),  # type: ignore[type-var]
            buffers=buffers,
        )
        optimizer = self.first.optimizer
        trainer = optimizer.trainer.model_copy(update=own.get("trainer", {}))
        return objective, replace(optimizer, trainer=trainer, decays={**optimizer.decays, **own.get("decays", {})})


class Clock:
    """The time of the steps of runs that are trained together: each has an equal share of it."""

    def __init__(self, trainings: Sequence[TrainingLoop]) -> None:
        self.before = {id(training): training.stopwatch.seconds["training"] for training in trainings}
        self.stopwatch, self.runs = Stopwatch(trainings[0].device), len(trainings)

    def tell(self, trainings: Iterable[TrainingLoop]) -> None:
        """Set the runs' times by it."""
        share = self.stopwatch.read().get("training", 0.0) / self.runs
        for training in trainings:
            training.stopwatch.seconds["training"] = self.before[id(training)] + share


def _numbers(training: TrainingLoop) -> dict[str, float]:
    """Every number of a run that may be another one's in the same group, by where it belongs."""
    found: dict[str, float] = {}
    for part, settings in training.cell.method.parts.items():
        found |= {f"method/{part}/{name}": getattr(settings, name) for name in type(settings).fusable()}
    found |= {f"trainer/{name}": getattr(training.cell.trainer, name) for name in TrainerConfig.fusable()}
    found |= {f"decays/{name}": value for name, value in training.optimizer.decays.items() if isinstance(value, float)}
    task = training.problem.task
    constants = {field.name: getattr(task, field.name) for field in fields(task)}  # type: ignore[arg-type]
    return found | {f"task/{name}": value for name, value in constants.items() if isinstance(value, float)}


def _differing(each: Sequence[dict[str, float]], device: torch.device) -> Tensors:
    """The numbers that are not the same in all runs (runs,)."""
    first = each[0]
    names = [name for name in first if any(one[name] != first[name] for one in each)]
    kinds = {name: torch.int64 if isinstance(first[name], int) else torch.float64 for name in names}
    return {name: torch.tensor([one[name] for one in each], dtype=kinds[name], device=device) for name in names}


@lru_cache
def _scalar(value: float) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)


def _stack(trees: Sequence[Tree]) -> Tree:
    """Equal trees of tensors, with an axis of runs in front."""
    stacked: Tree = tree_map(lambda *leaves: torch.stack(leaves), *trees)
    return stacked


def _save(training: TrainingLoop) -> None:
    """Keep a checkpoint: with the generator's state, from which nothing has been drawn."""
    with training.noise():
        training.save()


def _finish(training: TrainingLoop, report: Report) -> dict[str, float]:
    with training.noise():
        return training.finish(report)


def _row(stacked: Tree, r: int) -> Tree:
    """What belongs to one of the runs."""
    return map_leaves(lambda value: value[r].clone(), stacked)
