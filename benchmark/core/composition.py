"""Methods compose with `+`: models wrap each other, penalties add up, and only one part may replace a mean."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from invbench.core.data import Batch, Problem
from invbench.core.method import Critic, CriticFn, Gradients, Method, Outputs, State, Turn, overrides
from invbench.errors import UserError
from invbench.seeding import stream, torch_stream

RISK = ("risk",)
GRADIENT = ("moments", "combine_moments", "combine")
WALK = ("interpolate",)
TURN = ("turn",)
NOBODY: Mapping[str, CriticFn] = MappingProxyType({})
PENALTY = ("penalty", "critic_penalty", "gradient_penalty")
APART = {
    "build": "makes or changes the network itself",
    "interpolate": "visits the environments one after another",
    "turn": "moves parts of the network in turns",
    "finished": "may end before its last step",
}
"""Hooks with which a run's step is not one function of tensors, the same for all runs."""


@dataclass(frozen=True)
class Composition:
    """The parts of `a+b+c`, presented to the engine as one method.

    The first part builds on the backbone and each next one on what came before: `steerable+augerino` averages a
    steerable network over augmentations. States are kept apart under the parts' names.
    """

    parts: Mapping[str, Method]

    def __post_init__(self) -> None:
        for name in list(self.parts)[1:]:
            if self.parts[name].replaces_model:
                rest = "+".join(other for other in self.parts if other != name)
                raise UserError(f"{name} makes a network of its own, so it must come first: {name}+{rest}")
        for hooks, what in (
            ((*RISK, *WALK), "the mean of the risks"),
            ((*GRADIENT, *WALK), "the mean of the gradients"),
            ((*TURN, *WALK), "the order of the updates"),
        ):
            replacing = [name for name, part in self.parts.items() if overrides(part, *hooks)]
            if len(replacing) > 1:
                raise UserError(f"{' and '.join(replacing)} both replace {what}; use one of them at a time")
        if self.interpolates:
            walking = next(name for name, part in self.parts.items() if overrides(part, *WALK))
            for name, part in self.parts.items():
                if "environments" in part.requires and overrides(part, *PENALTY):
                    raise UserError(f"{walking} visits one environment at a time, so {name} has none to compare with")

    @property
    def name(self) -> str:
        """As it is typed on the command line."""
        return "+".join(self.parts)

    @property
    def requires(self) -> tuple[str, ...]:
        """What all parts together require of the data."""
        return tuple(dict.fromkeys(need for part in self.parts.values() for need in part.requires))

    @property
    def replaces_model(self) -> bool:
        """Whether the network is the first part's own."""
        return next(iter(self.parts.values())).replaces_model

    @cached_property
    def replaces_risk(self) -> bool:
        """Whether some part weighs the risks otherwise than equally."""
        return any(overrides(part, *RISK) for part in self.parts.values())

    @cached_property
    def has_penalty(self) -> bool:
        """Whether some part adds a penalty, on outputs or on gradients."""
        return any(overrides(part, *PENALTY) for part in self.parts.values())

    @cached_property
    def has_critic(self) -> bool:
        """Whether some part has a second player."""
        return any(overrides(part, "critic") for part in self.parts.values())

    @cached_property
    def has_gradient_penalty(self) -> bool:
        """Whether some part adds a penalty on the environments' gradients."""
        return any(part.penalises_gradients for part in self.parts.values())

    @property
    def uses_moments_only(self) -> bool:
        """Whether no part's penalty needs more of a linear problem than moments."""
        return all(part.uses_moments_only for part in self.parts.values())

    @property
    def min_environments(self) -> int:
        """How many environments a step needs."""
        return max(part.min_environments for part in self.parts.values())

    @property
    def min_examples(self) -> int:
        """How many examples of each environment a step needs."""
        return max(part.min_examples for part in self.parts.values())

    @cached_property
    def interpolates(self) -> bool:
        """Whether a step visits the environments one after another."""
        return any(overrides(part, "interpolate") for part in self.parts.values())

    def interpolate(self, before: Tensor, after: Tensor) -> Tensor:
        """The hook of the part that has it."""
        part = next(part for part in self.parts.values() if overrides(part, "interpolate"))
        return part.interpolate(before, after)

    def turn(self, names: Iterable[str], step: int) -> Turn:
        """The hook of the part that has it, else everybody's turn."""
        part = next((part for part in self.parts.values() if overrides(part, *TURN)), Method())
        return part.turn(names, step)

    def finished(self, state: State) -> bool:
        """Whether some part ends the run here."""
        asked = [(part, state[name]) for name, part in self.parts.items() if overrides(part, "finished")]
        return any(bool(part.finished(own)) for part, own in asked)

    @cached_property
    def restarts(self) -> tuple[int, ...]:
        """Steps ahead of which the optimiser starts afresh, in ascending order."""
        return tuple(sorted({step for part in self.parts.values() for step in part.restarts()}))

    @cached_property
    def rule(self) -> tuple[str, Method]:
        """The part whose gradient rule counts, with its name: the one that replaces the mean, or any."""
        replacing = [(name, part) for name, part in self.parts.items() if overrides(part, *GRADIENT)]
        return replacing[0] if replacing else next(iter(self.parts.items()))

    @cached_property
    def replaces_gradient(self) -> bool:
        """Whether some part has a gradient rule of its own."""
        return overrides(self.rule[1], *GRADIENT)

    @cached_property
    def needs_each_gradient(self) -> bool:
        """Whether the rule looks at the environments' gradients one by one, not only at their mean."""
        return overrides(self.rule[1], "moments", "combine")

    @cached_property
    def needs_all_gradients(self) -> bool:
        """Whether the rule is one that moments cannot express."""
        return overrides(self.rule[1], "combine")

    @cached_property
    def apart(self) -> str:
        """Why its runs cannot be trained together as one; empty where they can."""
        for name, part in self.parts.items():
            for hook, why in APART.items():
                if overrides(part, hook):
                    return f"{name} {why}"
        return ""

    def with_settings(self, values: Mapping[str, Mapping[str, Any]]) -> "Composition":
        """The same parts with some settings replaced, unchecked: tensors of stacked runs are welcome."""
        return replace(
            self, parts={name: part.model_copy(update=dict(values.get(name, {}))) for name, part in self.parts.items()}
        )

    def build(self, model: nn.Module, problem: Problem, seed: int) -> nn.Module:
        """Let each part wrap the model, with a stream of its own for what it initialises."""
        for name, part in self.parts.items():
            with torch_stream(stream(seed, "init", name)):
                model = part.build(model, problem)
        return model

    def critics(self, problem: Problem, outputs: Outputs, seed: int) -> dict[str, Critic]:
        """The second players by part, each initialised from a stream of its own."""
        found: dict[str, Critic | None] = {}
        for name, part in self.parts.items():
            with torch_stream(stream(seed, "init", name, "critic")):
                found[name] = part.critic(problem, outputs)
        return {name: critic for name, critic in found.items() if critic is not None}

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        """Every part's state under its name, with the step counter that the engine advances."""
        device = next((value.device for value in parameters.values()), torch.device("cpu"))
        return {
            name: {"step": torch.zeros((), dtype=torch.int64, device=device)}
            | part.initial_state(parameters, environments)
            for name, part in self.parts.items()
        }

    def advance(self, state: State) -> State:
        """The state with one more finished step."""
        return {name: part | {"step": part["step"] + 1} for name, part in state.items()}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        """The risk hook of the part that replaces it, else the mean."""
        for name, part in self.parts.items():
            if overrides(part, *RISK):
                value, own = part.risk(risks, env, state[name])
                return value, state | {name: own}
        return risks.mean(), state

    def penalty(
        self,
        risks: Tensor,
        outputs: Outputs,
        batch: Batch,
        state: State,
        players: Mapping[str, CriticFn] = NOBODY,
    ) -> tuple[Tensor, State]:
        """The sum of the parts' penalties; players: the critics of those that have one."""
        total = risks.new_zeros(())
        for name, part in self.parts.items():
            if overrides(part, "penalty"):
                value, own = part.penalty(risks, outputs, batch, state[name])
                total, state = total + value, state | {name: own}
            if name in players:
                value, own = part.critic_penalty(players[name], outputs, batch, state[name])
                total, state = total + value, state | {name: own}
        return total, state

    def gradient_penalty(self, risk_grads: Gradients, state: State) -> tuple[Tensor, State]:
        """The sum of the parts' penalties on gradients."""
        total = next(iter(risk_grads.values())).new_zeros(())
        for name, part in self.parts.items():
            if part.penalises_gradients:
                value, own = part.gradient_penalty(risk_grads, state[name])
                total, state = total + value, state | {name: own}
        return total, state

    def scale(self, state: State) -> Tensor | float:
        """The product of the parts' scales; the number 1 where no part has one."""
        product: Tensor | float = 1.0
        for name, part in self.parts.items():
            if overrides(part, "scale"):
                product = part.scale(state[name]) * product
        return product

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        """The gradient rule on mean moments."""
        name, part = self.rule
        gradients, own = part.combine_moments(moments, penalty_grad, state[name])
        return gradients, state | {name: own}

    def combine(self, risk_grads: Gradients, penalty_grad: Gradients, state: State) -> tuple[Gradients, State]:
        """The gradient rule on all environments' gradients."""
        name, part = self.rule
        gradients, own = part.combine(risk_grads, penalty_grad, state[name])
        return gradients, state | {name: own}
