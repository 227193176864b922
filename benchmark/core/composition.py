"""Composition of methods with `+`: models wrap each other, penalties add up, only one part may replace a mean."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from invbench.core.data import Batch, Problem, Split
from invbench.core.hooks import (
    Averaging,
    BatchMixing,
    Critic,
    CriticFn,
    EnvironmentContext,
    ExampleChange,
    ExampleCounts,
    FeatureTransform,
    GradientPenalty,
    Head,
    InnerStep,
    InnerSteps,
    InputChange,
    LearningRateChange,
    LossChange,
    LossFn,
    MappableNetwork,
    OptimizerRestarts,
    RandomDraws,
    ScaledObjective,
    SecondBackbone,
    StepFn,
    Update,
    UpdateSchedule,
    Valley,
    WeightAveraging,
    WithCritic,
)
from invbench.core.method import Gradients, Method, Outputs, State, overrides
from invbench.core.stages import SecondStage
from invbench.errors import UserError
from invbench.seeding import as_int, stream, torch_stream

GRADIENT = ("moments", "combine_moments", "combine")
NO_CRITICS: Mapping[str, CriticFn] = MappingProxyType({})
T = TypeVar("T", bound=Method)


@dataclass(frozen=True)
class Composition:
    """Composition of the parts of `a+b+c`, which the engine uses as one method.

    The first part builds on the backbone and each next one on what came before: `steerable+augerino` averages a
    steerable network over augmentations. States are kept apart under the parts' names.
    """

    parts: Mapping[str, Method]

    def __post_init__(self) -> None:
        networks = [name for name, part in self.parts.items() if part.replaces_model]
        if len(networks) == 1 and networks[0] != next(iter(self.parts)):
            rest = "+".join(other for other in self.parts if other != networks[0])
            raise UserError(f"{networks[0]} makes a network of its own, so it must come first: {networks[0]}+{rest}")
        for what, parts in (
            ("the network", networks),
            ("the steps", [*self._all(InnerSteps), *self._one_per_environment]),
            ("the mean of the risks", [*self._with_risk, *self._one_at_a_time]),
            ("the mean of the gradients", [*self._with_rule, *self._one_at_a_time]),
            ("the order of the updates", self._all(UpdateSchedule)),
            ("the learning rate", self._all(LearningRateChange)),
            ("the final weights", self._all(WeightAveraging)),
            ("the batch", self._all(BatchMixing)),
            ("the losses", self._with_losses),
            ("the examples", self._all(ExampleChange)),
            ("the first stage", self._all(SecondStage)),
            ("the representation", self._all(FeatureTransform)),
        ):
            if len(parts) > 1:
                raise UserError(f"{' and '.join(parts)} both replace {what}; use one of them at a time")
        self.check_visits([name for name, part in self.parts.items() if "environments" in part.requires])
        for looking in self._all(EnvironmentContext):
            names = list(self.parts)
            for name in names[names.index(looking) + 1 :]:
                if overrides(self.parts[name], "build"):
                    rest = "+".join(other for other in names if other != looking)
                    raise UserError(f"{looking} must know environments, so it must come last: {rest}+{looking}")
        for mixing in self._all(BatchMixing):
            for name in (*self._all(WithCritic), *self._all(FeatureTransform), *self._with_losses):
                raise UserError(f"{mixing} gives each example two targets, and {name} needs one")

    def check_visits(self, needing: Iterable[str]) -> None:
        """Raise UserError where a part visits one environment at a time, and one of those in need compares them."""
        comparing = {*self._with_penalty, *self._all(BatchMixing)}
        for visiting in self._one_at_a_time:
            for name in needing:
                if name in comparing:
                    raise UserError(f"{visiting} visits one environment at a time, so {name} has none to compare with")

    def _all(self, kind: type[T]) -> dict[str, T]:
        """Return the parts of a kind, by name."""
        return {name: part for name, part in self.parts.items() if isinstance(part, kind)}

    @cached_property
    def _with_risk(self) -> list[str]:
        return [name for name, part in self.parts.items() if overrides(part, "risk")]

    @cached_property
    def _with_losses(self) -> dict[str, LossChange]:
        return {name: part for name, part in self._all(LossChange).items() if part.changes_losses}

    @cached_property
    def _with_rule(self) -> list[str]:
        return [name for name, part in self.parts.items() if overrides(part, *GRADIENT)]

    @cached_property
    def _with_penalty(self) -> list[str]:
        kinds = (GradientPenalty, WithCritic)
        return [name for name, part in self.parts.items() if overrides(part, "penalty") or isinstance(part, kinds)]

    @cached_property
    def _one_per_environment(self) -> list[str]:
        return [name for name, part in self._all(UpdateSchedule).items() if part.one_per_environment]

    @cached_property
    def _one_at_a_time(self) -> list[str]:
        inner = [name for name, part in self._all(InnerSteps).items() if part.one_environment_at_a_time]
        return [*self._one_per_environment, *inner]

    @property
    def name(self) -> str:
        """Name of the composition, as on the command line."""
        return "+".join(self.parts)

    @property
    def requires(self) -> tuple[str, ...]:
        """Requirements of all parts on the data, each once."""
        return tuple(dict.fromkeys(need for part in self.parts.values() for need in part.requires))

    @property
    def second_stage(self) -> SecondStage | None:
        """The part that begins from a finished run, if any."""
        return next(iter(self._all(SecondStage).values()), None)

    @property
    def provides(self) -> tuple[str, ...]:
        """What parts add to the data, in the words of `Dataset.provides`."""
        return tuple(what for part in self._all(SecondStage).values() for what in part.provides)

    @property
    def replaces_model(self) -> bool:
        """Whether the first part makes the network itself."""
        return next(iter(self.parts.values())).replaces_model

    @property
    def couples_rows(self) -> bool:
        """Whether some part makes a network in which the rows of a batch depend on each other."""
        return any(part.couples_rows for part in self.parts.values())

    @property
    def replaces_risk(self) -> bool:
        """Whether some part weighs the risks otherwise than equally."""
        return bool(self._with_risk)

    @property
    def has_penalty(self) -> bool:
        """Whether some part adds a penalty, on outputs or on gradients."""
        return bool(self._with_penalty)

    @property
    def has_critic(self) -> bool:
        """Whether some part trains a critic."""
        return bool(self._all(WithCritic))

    def critic_part(self, name: str) -> WithCritic:
        """Return the part of this name, which trains a critic."""
        return self._all(WithCritic)[name]

    @cached_property
    def has_gradient_penalty(self) -> bool:
        """Whether some part adds a penalty on the environments' gradients."""
        return any(part.penalises_gradients for part in self._all(GradientPenalty).values())

    @cached_property
    def mixes(self) -> bool:
        """Whether some part changes the batch."""
        return bool(self._all(BatchMixing))

    @cached_property
    def transforms_features(self) -> bool:
        """Whether some part changes the representation, from the examples of all environments."""
        return bool(self._all(FeatureTransform))

    @cached_property
    def changes_losses(self) -> bool:
        """Whether some part changes the losses of examples, from all that are in a step."""
        return bool(self._with_losses)

    @property
    def couples_examples(self) -> bool:
        """Whether some part changes representations or losses by the examples of all environments."""
        return self.transforms_features or self.changes_losses

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        """Compute the losses (E, B) of the examples: the task's, unless some part changes them."""
        for name, part in self._with_losses.items():
            return part.losses(loss, outputs, batch, state[name])
        return loss(outputs.prediction, batch.y)

    def examples(self, problem: Problem, seed: int) -> Split:
        """Return the examples that batches are made of: the training split, unless some part changes them."""
        given = problem.splits["train"] if problem.examples is None else problem.examples
        for name, part in self._all(ExampleChange).items():
            given = part.examples(given, problem, np.random.default_rng(stream(seed, "examples", name)))
        return given

    def mix(self, batch: Batch, state: State) -> Batch:
        """Change the batch by the part that does so, if any."""
        for name, part in self._all(BatchMixing).items():
            batch = part.mix(batch, state[name])
        return batch

    def features(self, representation: Tensor, head: Head, batch: Batch, state: State) -> Tensor:
        """Change the representation (E, B, features) by the part that does so, if any."""
        for name, part in self._all(FeatureTransform).items():
            representation = part.features(representation, head, batch, state[name])
        return representation

    @cached_property
    def has_inner_steps(self) -> bool:
        """Whether some part computes steps from others."""
        return bool(self._all(InnerSteps))

    def makes_inner_steps(self, step: int) -> bool:
        """Tell whether some part computes the step with this index from others."""
        return any(part.is_active(step) for part in self._all(InnerSteps).values())

    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        """Compute the step by the part that makes it of others, and that part's state by its name."""
        ((name, part),) = self._all(InnerSteps).items()
        result, part_state = part.outer_step(step, parameters, batch, state[name], rate)
        return result, {name: part_state}

    def learning_rate(self, rate: float | Tensor, state: State) -> float | Tensor:
        """Return the learning rate of this step: the trainer's, unless some part changes it."""
        for name, part in self._all(LearningRateChange).items():
            rate = part.learning_rate(rate, state[name])
        return rate

    @property
    def uses_moments_only(self) -> bool:
        """Whether moments of the data suffice for every part in a linear problem, not the examples themselves."""
        changes_examples = self.has_critic or self.mixes or self.changes_losses
        return not changes_examples and all(part.uses_moments_only for part in self.parts.values())

    @property
    def min_environments(self) -> int:
        """Minimum number of environments of a step."""
        return max(part.min_environments for part in self.parts.values())

    @property
    def min_examples(self) -> int:
        """Minimum number of examples of each environment in a step."""
        return max(part.min_examples for part in self.parts.values())

    @property
    def one_per_environment(self) -> bool:
        """Whether a step makes one update for each environment."""
        return bool(self._one_per_environment)

    def finish_step(self, before: Tensor, after: Tensor) -> Tensor:
        """Return a parameter after a step of several updates."""
        (part,) = self._all(UpdateSchedule).values()
        return part.finish_step(before, after)

    @cached_property
    def compares_environments(self) -> bool:
        """Whether a step needs the examples of all environments, even if it moves parameters by one risk alone."""
        changes_batch = any(
            isinstance(part, BatchMixing | FeatureTransform | LossChange) for part in self.parts.values()
        )
        return self.has_penalty or self.replaces_risk or changes_batch

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        """Return what an update moves: by the part that schedules updates, else all parameters."""
        names = list(names)
        for name, part in self._all(UpdateSchedule).items():
            update = part.update(names, count, step)
            rates = {parameter: float(rate) for parameter, rate in update.rates.items()}
            if wrong := [key for key, rate in rates.items() if key not in names or not math.isfinite(rate)]:
                raise ValueError(f"update of method {name} gives '{wrong[0]}' the rate {rates[wrong[0]]}")
            if not rates:
                raise ValueError(f"update of method {name} moves no parameter")
            number = update.environment
            if number is not None and (type(number) is not int or number < 0):
                raise ValueError(f"update of method {name} gives the environment {number!r}, which is no number from 0")
            return update._replace(rates=rates)
        return Update(dict.fromkeys(names, 1.0), count)

    @cached_property
    def restarts(self) -> tuple[int, ...]:
        """Steps ahead of which the optimiser restarts, in ascending order."""
        steps: set[int] = set()
        for name, part in self._all(OptimizerRestarts).items():
            for step in part.restarts():
                if not isinstance(step, int) or step < 0:
                    raise UserError(f"method {name} restarts the optimiser ahead of step {step}, which is no step")
                steps.add(step)
        return tuple(sorted(steps))

    @cached_property
    def rule(self) -> tuple[str, Method]:
        """Name and part whose gradient rule counts: the one that replaces the mean, or the first."""
        replacing = [(name, part) for name, part in self.parts.items() if overrides(part, *GRADIENT)]
        return replacing[0] if replacing else next(iter(self.parts.items()))

    @cached_property
    def replaces_gradient(self) -> bool:
        """Whether some part replaces the gradient rule."""
        return overrides(self.rule[1], *GRADIENT)

    @cached_property
    def needs_each_gradient(self) -> bool:
        """Whether the rule needs the environments' gradients one by one, not only their mean."""
        return overrides(self.rule[1], "moments", "combine")

    @cached_property
    def needs_all_gradients(self) -> bool:
        """Whether the rule needs all environments' gradients at once, which moments cannot express."""
        return overrides(self.rule[1], "combine")

    @cached_property
    def fuse_obstacle(self) -> str:
        """Reason why runs of the method cannot be trained together; empty where they can."""
        for name, part in self.parts.items():
            if overrides(part, "build") and not isinstance(part, MappableNetwork):
                return f"{name} makes or changes the network itself"
            if isinstance(part, SecondStage):
                return f"{name} begins from another run"
            if isinstance(part, BatchMixing):
                return f"{name} changes batches, which may draw numbers"
            if isinstance(part, InnerSteps) and type(part).is_active is not InnerSteps.is_active:
                return f"{name} makes some steps in another way"
            if isinstance(part, UpdateSchedule):
                how = (
                    "visits the environments one after another"
                    if part.one_per_environment
                    else "moves parts of the network in turns"
                )
                return f"{name} {how}"
        return ""

    def with_settings(self, values: Mapping[str, Mapping[str, Any]]) -> "Composition":
        """Return the composition with some settings replaced, unchecked; they may be tensors of stacked runs."""
        return replace(
            self, parts={name: part.model_copy(update=dict(values.get(name, {}))) for name, part in self.parts.items()}
        )

    @cached_property
    def averaging(self) -> Averaging | Valley | None:
        """Mean of the weights that evaluations have, where some part asks for one."""
        return next((part.averaging() for part in self._all(WeightAveraging).values()), None)

    def inputs(self, problem: Problem) -> Problem:
        """Return a problem with inputs of the shape that the backbone gets."""
        for part in self._all(InputChange).values():
            problem = part.inputs(problem)
        return problem

    def build(
        self, model: nn.Module, problem: Problem, seed: int, backbone: Callable[[], nn.Module] = nn.Identity
    ) -> nn.Module:
        """Let each part wrap the model, each with a separate random stream.

        Args:
            backbone: makes another one, for parts that need a second.
        """
        of_backbone = self.inputs(problem)
        for name, part in self.parts.items():
            given = problem if isinstance(part, InputChange) else of_backbone
            with torch_stream(stream(seed, "init", name)):
                if isinstance(part, SecondBackbone):
                    model = part.build_of_two(model, backbone(), given)
                else:
                    model = part.build(model, given)
        return model

    def critics(self, problem: Problem, outputs: Outputs, seed: int) -> dict[str, Critic]:
        """Make the critics by part, each initialised from a separate random stream."""
        critics: dict[str, Critic | None] = {}
        for name, part in self._all(WithCritic).items():
            with torch_stream(stream(seed, "init", name, "critic")):
                critics[name] = part.critic(problem, outputs)
        return {name: critic for name, critic in critics.items() if critic is not None}

    def initial_state(
        self, parameters: Mapping[str, Tensor], environments: int, seed: int = 0, counts: State | None = None
    ) -> State:
        """Return every part's initial state under its name, with the step counter that the engine advances.

        Args:
            seed: of the run.
            counts: of the training examples, for parts with `ExampleCounts`.
        """
        device = next((value.device for value in parameters.values()), torch.device("cpu"))
        state: State = {}
        for name, part in self.parts.items():
            state[name] = dict(part.initial_state(parameters, environments))
            for taken in ("step", "draws", "counts"):
                if taken in state[name]:
                    raise UserError(f"initial_state of method {name} has '{taken}', which the engine keeps; rename it")
            state[name]["step"] = torch.zeros((), dtype=torch.int64, device=device)
            if isinstance(part, RandomDraws):
                number = as_int(stream(seed, "noise", "draws", name)) % 2**32
                state[name]["draws"] = torch.full((1,), number, dtype=torch.int64, device=device)
            if isinstance(part, ExampleCounts) and counts is not None:
                state[name]["counts"] = {what: value.clone() for what, value in counts.items()}
        return state

    def advance(self, state: State) -> State:
        """Return the state with one more finished step."""
        return {name: part | {"step": part["step"] + 1} for name, part in state.items()}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        """Compute the objective from the risks (E,): by the part that replaces it, else the mean."""
        for name in self._with_risk:
            value, part_state = self.parts[name].risk(risks, env, state[name])
            return value, state | {name: part_state}
        return risks.mean(), state

    def penalty(
        self,
        risks: Tensor,
        outputs: Outputs,
        batch: Batch,
        state: State,
        critics: Mapping[str, CriticFn] = NO_CRITICS,
    ) -> tuple[Tensor, State]:
        """Sum the parts' penalties.

        Args:
            critics: functions of the critics, by part.
        """
        total = risks.new_zeros(())
        for name, part in self.parts.items():
            if overrides(part, "penalty"):
                value, part_state = part.penalty(risks, outputs, batch, state[name])
                total, state = total + value, state | {name: part_state}
            if name in critics and isinstance(part, WithCritic):
                value, part_state = part.critic_penalty(critics[name], outputs, batch, state[name])
                total, state = total + value, state | {name: part_state}
        return total, state

    def gradient_penalty(self, risk_grads: Gradients, state: State) -> tuple[Tensor, State]:
        """Sum the parts' penalties on gradients."""
        total = next(iter(risk_grads.values())).new_zeros(())
        for name, part in self._all(GradientPenalty).items():
            if part.penalises_gradients:
                value, part_state = part.gradient_penalty(risk_grads, state[name])
                total, state = total + value, state | {name: part_state}
        return total, state

    def scale(self, state: State) -> Tensor | float:
        """Multiply the parts' scales; the number 1 where no part has one."""
        product: Tensor | float = 1.0
        for name, part in self._all(ScaledObjective).items():
            product = part.scale(state[name]) * product
        return product

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        """Apply the gradient rule to mean moments."""
        name, part = self.rule
        gradients, part_state = part.combine_moments(moments, penalty_grad, state[name])
        _check_gradients(gradients, penalty_grad, f"combine_moments of method {name}")
        return gradients, state | {name: part_state}

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        """Apply the gradient rule to the gradients of all environments env (E,)."""
        name, part = self.rule
        gradients, part_state = part.combine(risk_grads, penalty_grad, env, state[name])
        _check_gradients(gradients, penalty_grad, f"combine of method {name}")
        return gradients, state | {name: part_state}


def _check_gradients(gradients: Gradients, penalty_grad: Gradients, hook: str) -> None:
    """Raise ValueError unless a hook has returned a gradient of the right shape for each parameter and no other."""
    for name, expected in penalty_grad.items():
        shape = gradients[name].shape if name in gradients else None
        if shape != expected.shape:
            what = "no gradient" if shape is None else f"a gradient of shape {tuple(shape)}"
            raise ValueError(f"{hook} returns {what} for '{name}', whose shape is {tuple(expected.shape)}")
    if more := gradients.keys() - penalty_grad.keys():
        raise ValueError(f"{hook} returns a gradient for '{min(more)}', which is no parameter")
