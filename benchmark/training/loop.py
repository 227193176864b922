"""The training loop of one run: batches, steps, evaluations, checkpoints."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from invbench.components.eval_mode import eval_mode
from invbench.components.learned import learned_parameters
from invbench.core.backbone import features_rates
from invbench.core.data import Batch, Problem, Split
from invbench.core.hooks import Averaging, Valley
from invbench.core.method import Outputs
from invbench.core.task import Regression
from invbench.errors import Interrupted, RunFailed, Unusable, UserError
from invbench.evaluation.metrics import evaluate, watched_splits
from invbench.pytree import Tree, map_leaves
from invbench.runs.checkpoint import Checkpoint, Position, check_fit, match_layout, random_state, restore_random_state
from invbench.runs.curves import Row, digest, read_rows, write_rows
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig
from invbench.seeding import stream, torch_stream
from invbench.system.signals import stop_requests
from invbench.system.stopwatch import Stopwatch
from invbench.tensors import to_host
from invbench.training.averaging import AveragedWeights, RunningMean
from invbench.training.checkpoint_schedule import CheckpointSchedule
from invbench.training.critic_training import CriticTrainer, find_critics, with_critics
from invbench.training.curve_columns import SECONDS, learned_columns, state_columns, step_columns
from invbench.training.examples import counts_of
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective, Step, choose_strategy
from invbench.training.in_place_optimizer import InPlaceOptimizer
from invbench.training.inactive import never_reached
from invbench.training.loggers import Loggers
from invbench.training.optimizers import Optimizer
from invbench.training.phases import timed_phase
from invbench.training.progress import Report
from invbench.training.recorded_step import RecordedStep, Recording, only_computes
from invbench.training.sampling import Sampler, check_sizes, loader_of
from invbench.training.sufficient_statistics import training_examples
from invbench.training.valley import ValleyWeights

LEARNED_ROWS = 200
"""Number of rows of the curves for what a method learns besides the weights."""
RECORDED_FROM = 100
"""Smallest number of steps of a run whose steps are recorded."""
EVALUATIONS = 10
"""Number of evaluations of a run when nothing else is asked for."""
PARTS = ("training", "evaluation", "checkpoint", "invariance")
"""Parts that the time of a run is spent on: its steps, and what is done between and after them."""


class TrainingLoop:
    """Training of one run, from a fresh model to the last evaluation.

    Args:
        config: what to train.
        problem: the data, on the device that trains.
        model: freshly built, on the same device; it is changed in place.
        folder: where curves and checkpoints go.
        origin: hash of code and data; a checkpoint of another origin is not taken up.
        checkpoint_seconds: time between checkpoints; 0 makes one after every step.
        loggers: where else the curves go.
    """

    def __init__(
        self,
        config: RunConfig,
        problem: Problem,
        model: nn.Module,
        folder: RunFolder,
        origin: str,
        checkpoint_seconds: float,
        loggers: Loggers | None = None,
    ) -> None:
        given = config.method.examples(problem, config.spec.seed)
        if problem.examples is not None or config.method.provides:
            config = _with_batch_that_fits(config, given)
        trainer = config.trainer
        self.config, self.problem, self.model, self.folder, self.origin = config, problem, model, folder, origin
        self.checkpoint_seconds = checkpoint_seconds
        self.loggers = loggers or Loggers((), folder, config.spec)
        self.examples = training_examples(given, problem, config.method, model, trainer)
        self.device = self.examples.x.device
        self.is_condensed = self.examples is not given
        whole = trainer.model_copy(update={"batch_size": None}) if self.is_condensed else trainer
        self.sampler = Sampler.of(self.examples, whole, config.spec.seed)
        self.loader = loader_of(self.sampler)
        check_sizes(config.method, self.sampler)
        if trainer.stop_below is not None and isinstance(problem.task, Regression):
            raise UserError("trainer.stop_below is an accuracy, and this dataset is a regression; leave it out")
        self.eval_splits = watched_splits(problem, trainer.evaluate_splits)
        strategy = choose_strategy(config.method, model, trainer)
        critics = find_critics(config, problem, model)
        networks = {name: FlatModule(critic.network) for name, critic in critics.items()}
        self.objective = Objective(config.method, problem.task, model, strategy, trainer.autocast, networks)
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.total = trainer.total_steps(self.sampler.steps_per_epoch) if self.parameters else 0
        parts = [*config.method.parts.values(), *model.modules(), *(critic.network for critic in critics.values())]
        recording = Recording.REPEATED if self.total >= RECORDED_FROM and only_computes(*parts) else Recording.NONE
        recording = Recording.COMPILED if trainer.compile else recording
        self.recorded_step = RecordedStep(self.objective, recording)
        self.critics = CriticTrainer(critics, self.objective, config, self.examples, self._augmented, recording)
        self.eval_every = trainer.evaluate_every or max(1, math.ceil(self.total / EVALUATIONS))
        self.learned = learned_parameters(model)
        rates = {name: part.learning_rate for name, part in self.learned.items()}
        self.optimizer = Optimizer.of(trainer, self.parameters, rates, features_rates(model))
        self.done = 0  # finished steps
        self.in_place_optimizer = InPlaceOptimizer(self.optimizer, self.parameters)
        self.average = self._averaged_weights()
        counts = counts_of(given, problem)
        fresh = config.method.initial_state(self.parameters, self.sampler.environments, config.spec.seed, counts)
        self.method_state = with_critics(fresh, critics)
        self.objective_sum = torch.zeros((), dtype=torch.float64, device=self.device)  # since the last row of curves
        self.objective_steps = 0  # number of steps that it is the sum of
        self.rows: list[Row] = []
        self.last: Step | None = None  # the last update
        self.last_env = torch.zeros(0)  # indices of its environments (E,)
        self.environment_numbers = torch.arange(self.sampler.environments, device=self.device)
        self.learned_every = max(1, self.total // LEARNED_ROWS)
        self._last_check = (-1, False)  # a step, and whether the accuracy there ends the run
        self.first_stage: dict[str, object] = {}  # the run that this one begins from, and the sum of its weights
        self.stopwatch = Stopwatch(self.device)  # of this run, earlier attempts included

    @property
    def cost(self) -> dict[str, float]:
        """Seconds until now, earlier attempts included: in all, of each part, of the mean step."""
        seconds = self.stopwatch.read()
        return {
            "wall_seconds": sum(seconds.values()),
            "seconds_per_step": seconds.get("training", 0.0) / max(self.done, 1),
            **{f"{part}_seconds": seconds.get(part, 0.0) for part in PARTS},
        }

    def run(self, report: Report) -> dict[str, float]:
        """Train to the end, from the checkpoint where there is one.

        Returns:
            The metrics of every split, and what was learned besides the weights.

        Raises:
            RunFailed: kind `diverged`, when the objective or a metric is not finite.
            Interrupted: after SIGINT or SIGTERM, with a checkpoint written.
        """
        with self.noise():
            self.begin(report)
            with closing(self.loggers):
                self._train(report)
                return self.finish(report)

    def noise(self) -> AbstractContextManager[None]:
        """Seed torch's generators in a block by the stream for random draws in training, from its beginning."""
        return torch_stream(stream(self.config.spec.seed, "noise"), self.device)

    @property
    def checkpoint_step(self) -> int:
        """Step to resume from; 0 without a usable checkpoint."""
        try:
            kept = self._load_checkpoint()
        except Unusable:
            return 0
        return kept[1].step if kept else 0

    def begin(self, report: Report) -> None:
        """Load the checkpoint and the curves so far, warn of settings that never act, and open the loggers."""
        try:
            self._resume(report)
        except Unusable as reason:
            report.say(f"{reason}; starting afresh")
        if self.config.trainer.compile:
            report.say("the first step is compiled, in seconds to minutes; Ctrl-C stops the run after that")
        for line in never_reached(self.config.method, self.total):
            report.say(f"warning: {line}")
        self.loggers.begin(self.rows)

    def measure_and_report(self, report: Report) -> None:
        """Evaluate between steps, and report the metrics."""
        report.evaluated(self.done, self.measure(self.eval_splits))

    def raise_interrupted(self) -> None:
        """Raise Interrupted; the checkpoint must have been written."""
        raise Interrupted(f"stopped at step {self.done} of {self.total}; the same command continues there")

    def finish(self, report: Report) -> dict[str, float]:
        """Evaluate every split and write the last checkpoint. Returns the metrics."""
        splits = tuple(self.problem.splits)
        if self.rows and not self.objective_steps:  # resumed after the last measurement
            metrics = self._evaluate(splits, last=True)
        else:
            metrics = self.measure(splits, last=True)
            report.evaluated(self.done, metrics)
            self.save()
        if self.average:
            self.average.put()
        return metrics | to_host(learned_columns(self.learned, None))

    @property
    def over(self) -> bool:
        """Whether no step is left."""
        return self.done == self.total or self._below_accuracy(self.done)

    def _train(self, report: Report) -> None:
        """Make all remaining steps, with evaluations and checkpoints between them."""
        self.model.train()
        checkpoints = CheckpointSchedule(self.checkpoint_seconds)
        with stop_requests() as stop, self.stopwatch.during("training"):
            for _ in self.steps():
                report.step(self.done)
                if self.over:
                    break
                if self.done % self.eval_every == 0:
                    self.measure_and_report(report)
                elif self.learned and self.done % self.learned_every == 0:
                    self._add_row({})
                if stop.is_set() or checkpoints.due:
                    checkpoints.saved(self.save())
                if stop.is_set():
                    self.raise_interrupted()

    def _below_accuracy(self, done: int) -> bool:
        """Tell whether the run ends early, by the accuracy in evaluation mode on the batch of the last step."""
        bound, task = self.config.trainer.stop_below, self.problem.task
        if bound is None or done < max(1, self.config.trainer.stop_after):
            return False
        if self._last_check[0] != done:
            batch = self.loader.batch(done - 1)
            with eval_mode(self.model), torch.no_grad(), torch.random.fork_rng():
                predictions = self.objective.batch_outputs(self.parameters, batch).prediction
            accuracy = task.scores(predictions, batch.y)["accuracy"].mean().item()
            self._last_check = done, accuracy < bound
        return self._last_check[1]

    def steps(self) -> Iterator[None]:
        """Make the remaining steps, one for each iteration."""
        while not self.over:
            self.step(self.next_batch())
            yield

    def next_batch(self) -> Batch:
        """Return the batch of the next step, augmented."""
        with timed_phase("data"):
            return self._augmented(self.loader.batch(self.done))

    @property
    def updates(self) -> int:
        """Number of steps since the optimiser's last restart."""
        return self.done - max((step for step in self.config.method.restarts if step <= self.done), default=0)

    def state(self) -> Tree:
        """Collect the tensors that steps change, without copying them."""
        return {
            "parameters": {name: value.detach() for name, value in self.parameters.items()},
            "buffers": dict(self.model.named_buffers()),
            "optimizer": self.in_place_optimizer.state,
            "method": self.method_state,
            "objective_sum": self.objective_sum,
        }

    def load_state(self, done: int, objective_steps: int, state: Tree) -> None:
        """Set what `state` collects, the number of finished steps, and of those that the objective is summed over."""
        self._set(state["parameters"])
        for name, value in self.model.named_buffers():
            value.copy_(state["buffers"][name])
        self.in_place_optimizer.load_state(state["optimizer"])
        self.method_state = state["method"]
        self.done, self.objective_sum, self.objective_steps = done, state["objective_sum"], objective_steps

    def step(self, batch: Batch) -> None:
        """Make one step from a batch of E environments: one update, or one for each environment."""
        method = self.config.method
        if self.done in method.restarts:
            self.in_place_optimizer.restart()
        updates = self.updates
        self.method_state = self.critics.update_before(self.parameters, self.method_state, self.done)
        critic_states = self.critics.update_beside(self.parameters, batch, self.method_state, self.done)
        if not method.one_per_environment:
            self._update(batch, updates)
        else:
            before = {name: value.detach().clone() for name, value in self.parameters.items()}
            environments = len(batch.env)
            for e in range(environments):
                self._update(batch.environments(slice(e, e + 1)), updates * environments + e)
            self._set({name: method.finish_step(before[name], value) for name, value in self.parameters.items()})
        self.method_state = method.advance(
            {name: part_state | critic_states.get(name, {}) for name, part_state in self.method_state.items()}
        )
        self.done += 1
        if self.average:
            self.average.add(self.done)

    def _averaged_weights(self) -> AveragedWeights | None:
        """Make the mean of weights that the run has, if any."""
        rule, values = averaging_of(self.config), (self.model, self.parameters, self._pass_first_batches)
        if rule is None:
            return None
        if not isinstance(rule, Valley):
            if self.config.trainer.average != "none" and 0 < self.total <= rule.first_step:
                raise UserError(
                    f"trainer.average_from is {rule.first_step}, but the run ends with step {self.total}, so there is "
                    "no mean; make it smaller"
                )
            return RunningMean(rule, *values)
        if "validation" not in self.eval_splits:
            absent = "validation" not in self.problem.splits
            wrong = (
                "these data have no validation split; set" if absent else "trainer.evaluate_splits leaves it out; set"
            )
            name = "dataset.validation_share=0.2" if absent else "it to null"
            raise UserError(f"{self.config.method.name} goes by the validation loss, but {wrong} {name}")
        return ValleyWeights(rule, *values, max(1, math.ceil(self.total / self.eval_every)))

    def _pass_first_batches(self, most: int) -> None:
        """Make forward passes of the batches of the first epoch, at most so many, unchanged."""
        for number in range(min(most, self.sampler.steps_per_epoch)):
            self.objective.batch_outputs(self.parameters, self.loader.batch(number))

    def _update(self, batch: Batch, count: int) -> None:
        """Make one update, the optimiser's `count`-th from 0."""
        trainer = self.config.trainer
        scale = self.config.method.scale(self.method_state)
        update = self.config.method.update(self.parameters, count, self.done)
        if update.environment is not None:
            batch = self._of_environment(batch, update.environment)
        moving = {name: value for name, value in self.parameters.items() if name in update.rates}
        others = {name: value for name, value in self.parameters.items() if name not in update.rates}
        factor = trainer.rate_factor(self.done, self.sampler.steps_per_epoch)
        learning_rate = self.config.method.learning_rate(trainer.learning_rate, self.method_state) * factor
        rate = learning_rate if self.config.method.makes_inner_steps(self.done) else None
        step = self.recorded_step.step(moving, others, batch, self.method_state, rate)
        self._set(step.start)
        with timed_phase("optimiser"):
            for multiple in sorted(set(update.rates.values())):
                names = {name for name, rate in update.rates.items() if rate == multiple}
                self.in_place_optimizer.step(names, step.gradients, update.updates, learning_rate * multiple, scale)
        self.last, self.last_env, self.method_state = step, batch.env, step.state
        self.objective_sum += step.objective.double()
        self.objective_steps += 1

    def _of_environment(self, batch: Batch, number: int) -> Batch:
        """Leave the other environments out of a batch, where nothing needs them and all are in it."""
        method, environments = self.config.method, self.sampler.environments
        if number >= environments:
            raise ValueError(f"update of method {method.name} gives the environment {number}; there are {environments}")
        if method.compares_environments or self.sampler.per_step < environments:
            return batch
        return batch.environment(self.environment_numbers[number])

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.parameters[name].copy_(value)

    def measure(self, splits: tuple[str, ...], last: bool = False) -> dict[str, float]:
        """Evaluate, and add a row to the curves: mean objective since the last row, metrics, the method's scalars."""
        with self.stopwatch.during("evaluation"):
            valley = self.average if isinstance(self.average, ValleyWeights) else None
            if valley and last:
                valley.end_window(self._evaluate(("validation",), last=False)["validation_loss"])
            metrics = self._evaluate(splits, last)
            if valley and not last:
                valley.end_window(metrics["validation_loss"])
            progress: Row = {}
            if self.last is not None and self.objective_steps:
                objective = self.objective_sum / self.objective_steps
                progress = to_host({"objective": objective, **step_columns(self.last, self.last_env)})
            _check_finite(progress | metrics, self.done)
            seconds = {SECONDS: self.stopwatch.seconds["training"]}
            self._add_row({**seconds, **progress, **metrics, **state_columns(self.method_state)})
            self.objective_sum, self.objective_steps = torch.zeros_like(self.objective_sum), 0
        return metrics

    def _add_row(self, measured: Mapping[str, Tensor | float]) -> None:
        """Add a row to the curves, with what the method has learned besides the weights."""
        when: Row = {"step": self.done, "epoch": self.done / self.sampler.steps_per_epoch}
        self.rows.append(to_host({**when, **learned_columns(self.learned, self.last), **measured}))
        self.loggers.row(self.rows[-1])

    def save(self) -> float:
        """Write the curves, then the checkpoint. Rows of later steps than the checkpoint's are dropped on resuming.

        Returns the seconds that it took.
        """
        _check_finite({"objective": self.objective_sum.item()}, self.done)
        began = time.perf_counter()
        with self.stopwatch.during("checkpoint"):
            with self.folder.replacing(self.folder.curves) as temporary:
                write_rows(self.rows, temporary)
            position = Position(
                run_id=self.config.spec.run_id,
                origin=self.origin,
                step=self.done,
                objective_steps=self.objective_steps,
                curves=digest(self.rows),
                seconds=self.stopwatch.read(),
            )
            checkpoint = Checkpoint(self._checkpoint_tensors(), position.model_dump())
            checkpoint.save(self.folder.replacing(self.folder.checkpoint))
        return time.perf_counter() - began

    def _checkpoint_tensors(self) -> Tree:
        """Collect the tensors of a checkpoint: as `state`, with the whole model and torch's generators."""
        state = self.state()
        del state["parameters"], state["buffers"]  # parts of the model
        if self.average:
            state["average"] = self.average.tensors
        return state | {"model": dict(self.model.state_dict()), "random": random_state(self.device)}

    def _load_checkpoint(self) -> tuple[Tree, Position, list[Row]] | None:
        """Load the state, position and curves to resume from; None where there are none.

        Raises:
            Unusable: they are damaged, of other code or other data, or not this run's.
        """
        checkpoint = Checkpoint.load(self.folder.checkpoint)
        if checkpoint is None:
            return None
        position = Position.of(checkpoint)
        if (position.run_id, position.origin) != (self.config.spec.run_id, self.origin):
            raise Unusable("the checkpoint was made by other code or from other data")
        if position.step > self.total:
            raise Unusable(f"the checkpoint is of step {position.step}, beyond the end")
        fresh = self._checkpoint_tensors()
        state = match_layout(fresh, checkpoint.tensors)
        check_fit(fresh, state, growing=("method", "random"))
        rows = read_rows(self.folder.curves, position.step)
        if rows is None or digest(rows) != position.curves:
            raise Unusable("the curves cannot be read, or are not those of the checkpoint")
        return state, position, rows

    def _resume(self, report: Report) -> None:
        """Resume from the checkpoint, if any. Raises Unusable as `_load_checkpoint` does; then nothing has changed."""
        kept = self._load_checkpoint()
        if kept is None:
            return
        state, position, rows = kept
        restore_random_state(state["random"], self.device)
        tensors = map_leaves(lambda value: value.to(self.device), state)
        self.model.load_state_dict(tensors["model"])
        self.in_place_optimizer.load_state(tensors["optimizer"])
        if self.average:
            self.average.load(tensors["average"])
        self.method_state = tensors["method"]
        self.objective_sum, self.objective_steps = tensors["objective_sum"], position.objective_steps
        self.done = position.step
        self.stopwatch.seconds.update(position.seconds)
        self.rows = rows
        report.say(f"continuing at step {self.done}/{self.total}")

    def _augmented(self, batch: Batch) -> Batch:
        """Apply the dataset's random change of training inputs, if any."""
        if self.problem.augment is None:
            return batch
        return batch._replace(x=self.problem.augment(batch.x.flatten(0, 1)).unflatten(0, batch.x.shape[:2]))

    def _evaluate(self, splits: tuple[str, ...], last: bool) -> dict[str, float]:
        """Compute all metrics; dependence on a nuisance only at the end, and not on the training split."""

        def further(outputs: Outputs, split: Split) -> Mapping[str, Tensor | float]:
            more: dict[str, Tensor | float] = {**self.critics.losses(outputs, split, self.method_state)}
            if last and split.nuisance is not None and split is not self.problem.splits["train"]:
                from invbench.evaluation.dependence import dependence_metrics  # its packages take a second to import

                more |= dependence_metrics(outputs, self.problem.task, split)
            return more

        has_nuisance = any(self.problem.splits[name].nuisance is not None for name in splits)
        is_needed = self.critics.critics or (last and has_nuisance)
        needed = further if is_needed else None  # else no representation is kept
        average = self.average if last or not isinstance(self.average, ValleyWeights) else None
        with average.in_place() if average else nullcontext():
            seed = self.config.spec.seed
            return evaluate(self.model, self.problem, splits, seed, self.done, last=last, further=needed)


def _with_batch_that_fits(config: RunConfig, examples: Split) -> RunConfig:
    """Return a run whose batches are as large as the settings say, or as the smallest environment of a second stage.

    How many examples a first stage leaves to the second, nobody can know ahead.
    """
    batch_size = config.trainer.batch_size
    smallest = len(examples) if examples.env is None else int(torch.bincount(examples.env).min())
    if batch_size is None or batch_size <= smallest or not smallest:
        return config
    return replace(config, trainer=config.trainer.model_copy(update={"batch_size": smallest}))


def averaging_of(config: RunConfig) -> Averaging | Valley | None:
    """Return which mean of the weights a run has, if any. Raises UserError where two are asked for."""
    trainer, of_method = config.trainer, config.method.averaging
    if trainer.average == "none":
        return of_method
    if of_method:
        raise UserError(f"{config.method.name} averages weights by itself; leave trainer.average out")
    return Averaging(trainer.average_from, trainer.average_decay if trainer.average == "exponential" else None)


def _check_finite(values: dict[str, float], step: int) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunFailed("diverged", f"{name} is {value} at step {step}; a smaller learning rate may help")
