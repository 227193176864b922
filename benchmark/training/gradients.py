"""From a batch to the step's gradient: the method's hooks, fed with environment gradients by one of three strategies.

joint: one graph over all environments; where the rule is the mean, one backward pass, else one per environment. The
       only strategy in which batch normalisation sees all environments together, as in the AND-mask authors' code.
       A penalty on gradients gets a graph for each environment, unless something couples them.
loop:  a graph per environment: the least memory.
vmap:  `vmap(grad)` over chunks of environments: the fastest (scripts/benchmark_gradients.py), and made of pure
       functions, so whole runs can be mapped over it.

Environment gradients are added up as the method's moments while they appear: memory is O(parameters), unless the rule
is one that moments cannot express.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vjp, vmap
from torch.nn.modules.conv import _ConvNd

from invbench.core.backbone import EnvironmentNetwork, couples_rows, network_with_head
from invbench.core.composition import Composition
from invbench.core.data import Batch, PairedTargets
from invbench.core.hooks import CriticFn, InnerStep
from invbench.core.method import Gradients, Outputs, State, as_outputs
from invbench.core.task import Task
from invbench.core.trainer import Strategy, TrainerConfig
from invbench.errors import UserError
from invbench.pytree import map_leaves
from invbench.tensors import scalar
from invbench.training.flat_module import FlatModule
from invbench.training.phases import timed_phase

CHUNK_BYTES = 64 * 2**20
"""Maximum number of bytes of the gradients of environments that are mapped together."""
SEPARATE_PASSES_FROM = 16
"""Examples of an environment from which on the gradient of a gradient through convolutions is slower mapped."""


class Step(NamedTuple):
    """Result of one step: the gradient per parameter, the objective, the method's new state, the objective's parts.

    objective and penalty are 0-dimensional; risks (E,) are in the order of the batch. buffers: the network's after the
    step, where it does not change them in place. start: parameters for the update to begin from, where the step moves
    them.
    """

    gradients: Gradients
    objective: Tensor
    state: State
    risks: Tensor
    penalty: Tensor
    buffers: Mapping[str, Tensor] = {}
    start: Mapping[str, Tensor] = {}


class Moments:
    """Running sums over environments of the moments that the method's rule needs."""

    def __init__(self, method: Composition) -> None:
        self.method_name, self.rule = method.rule
        self.keep_all = method.needs_all_gradients
        self.sums: dict[str, tuple[Tensor, ...]] = {}
        self.kept: dict[str, list[Tensor]] = {}
        self.count = 0

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients (E', *param) of some environments."""
        self.count += len(next(iter(gradients.values())))
        with timed_phase("gradient rule"):
            for name, value in gradients.items():
                if self.keep_all:
                    self.kept.setdefault(name, []).append(value)
                    continue
                moments = self.rule.moments(value)
                if not isinstance(moments, tuple):
                    raise ValueError(f"moments of method {self.method_name} returns no tuple of tensors")
                new = tuple(moment.sum(0) for moment in moments)
                old = self.sums.get(name)
                self.sums[name] = new if old is None else tuple(a + b for a, b in zip(old, new, strict=True))

    def combine(
        self, method: Composition, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        """Apply the method's rule to the means of the moments."""
        with timed_phase("gradient rule"):
            if self.keep_all:
                return method.combine({k: torch.cat(v) for k, v in self.kept.items()}, penalty_grad, env, state)
            means = {name: tuple(total / self.count for total in totals) for name, totals in self.sums.items()}
            return method.combine_moments(means, penalty_grad, state)


@dataclass(frozen=True)
class Objective:
    """Objective that one run minimises, and its gradient.

    Args:
        model: the network; its parameters are passed to every call.
        autocast: compute the network's forward pass in bfloat16.
        critics: the networks of critics, by part of the method; their tensors come with the state.
        buffers: tensors in place of the network's buffers.
    """

    method: Composition
    task: Task
    model: nn.Module
    strategy: Strategy
    autocast: bool = False
    critics: Mapping[str, FlatModule] = field(default_factory=dict)
    buffers: Mapping[str, Tensor] = field(default_factory=dict)

    def outputs(self, parameters: Mapping[str, Tensor], x: Tensor, env: Tensor | None = None) -> Outputs:
        """Apply the network to inputs (N, ...), of environments env (E,) one after another: outputs (N, ...)."""
        inputs = (x, env) if isinstance(self.model, EnvironmentNetwork) else (x,)
        with timed_phase("forward"), torch.autocast(x.device.type, torch.bfloat16, enabled=self.autocast):
            value = as_outputs(functional_call(self.model, {**self.buffers, **parameters}, inputs))
            return value.map(lambda part: part.to(x.dtype))

    def risk(self, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor | PairedTargets) -> Tensor:
        """Compute the risk of one environment's examples x (B, ...), y (B,)."""
        outputs = self.outputs(parameters, x)
        with timed_phase("objective"):
            return self._losses(outputs.prediction, y).mean()

    def _losses(self, prediction: Tensor, y: Tensor | PairedTargets) -> Tensor:
        """Compute the loss of each example (...); with two targets, the weighted sum of both losses."""
        if isinstance(y, PairedTargets):
            first, second = self.task.losses(prediction, y.first), self.task.losses(prediction, y.second)
            return y.share * first + (1 - y.share) * second
        return self.task.losses(prediction, y)

    def _loss_gradients(self, prediction: Tensor, y: Tensor | PairedTargets) -> Tensor:
        """Compute the derivative of each loss by its prediction (..., outputs)."""
        if isinstance(y, PairedTargets):
            first, second = (self.task.loss_gradients(prediction, target) for target in (y.first, y.second))
            return y.share[..., None] * first + (1 - y.share[..., None]) * second
        return self.task.loss_gradients(prediction, y)

    def batch_outputs(self, parameters: Mapping[str, Tensor], batch: Batch) -> Outputs:
        """Compute outputs (E, B, ...) in one pass over all environments' examples."""
        flat = self.outputs(parameters, batch.x.flatten(0, 1), batch.env)
        return flat.map(lambda part: part.unflatten(0, batch.x.shape[:2]))

    def joint(self, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> tuple[Tensor, Outputs]:
        """Compute risks (E,) and outputs (E, B, ...) in one pass over all environments' examples."""
        outputs = self.batch_outputs(parameters, batch)
        with timed_phase("objective"):
            if self.method.transforms_features:
                outputs = self._transformed(parameters, outputs, batch, state)
            losses = self.method.losses(self._losses, outputs, batch, state)
            if self.method.has_penalty:
                slopes = self._slopes(outputs, batch, state)
                outputs = outputs._replace(loss_gradients=slopes, losses=losses, head=self._head(parameters))
            return losses.mean(1), outputs

    def _slopes(self, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        """Compute the derivative of each loss by its prediction (E, B, outputs)."""
        if not self.method.changes_losses:
            return self._loss_gradients(outputs.prediction, batch.y)

        def total(prediction: Tensor) -> Tensor:
            changed = self.method.losses(self._losses, outputs._replace(prediction=prediction), batch, state)
            return changed.sum()

        slopes: Tensor = grad(total)(outputs.prediction)
        return slopes

    def _transformed(self, parameters: Mapping[str, Tensor], outputs: Outputs, batch: Batch, state: State) -> Outputs:
        """Replace the representation by what the method makes of it, and the predictions by those that follow."""
        name, network = network_with_head(self.model)
        name, layer = f"{name}.head".removeprefix("."), network.head
        head_parameters = {k.removeprefix(f"{name}."): v for k, v in parameters.items() if k.startswith(f"{name}.")}

        def head(features: Tensor) -> Tensor:
            prediction: Tensor = functional_call(layer, head_parameters, (features,))
            return prediction

        body = outputs.representation
        if body is None:  # such a network gives one
            raise TypeError("the network returns no representation")
        features = self.method.features(body, head, batch, state)
        return outputs._replace(representation=features, prediction=head(features), body=body)

    def _head(self, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None] | None:
        """Return weights and biases by which the last linear layer computes, where the network has one."""
        if self.head_name is None:
            return None
        name, layer = self.head_name, self.model.get_submodule(self.head_name)
        values = {**dict(layer.named_parameters(prefix=name)), **self.buffers, **parameters}
        weight, bias = values[f"{name}.weight"], values.get(f"{name}.bias")
        if type(layer) is nn.Linear:
            return weight, bias
        # One that scales, for example: what it makes of each feature, less what it makes of none.
        tensors = {key: values[f"{name}.{key}"] for key, _ in layer.named_parameters()}
        basis = torch.cat([weight.new_zeros(1, weight.shape[1]), torch.eye(weight.shape[1]).to(weight)])
        outputs: Tensor = functional_call(layer, tensors, (basis,))
        return (outputs[1:] - outputs[0]).T, None if bias is None else outputs[0]

    @property
    def _couples_rows(self) -> bool:
        return couples_rows(self.model) or self.method.couples_rows

    @cached_property
    def head_name(self) -> str | None:
        """Name of the last linear layer, where the network has one."""
        try:
            return f"{network_with_head(self.model)[0]}.head".removeprefix(".")
        except UserError:
            return None

    def with_copies(self) -> "Objective":
        """Return the objective with copies of its buffers, which passes in training may change."""
        return replace(self, buffers={name: value.clone() for name, value in self.buffers.items()})

    def critic_functions(self, state: State) -> dict[str, CriticFn]:
        """Return the critics as functions, with the tensors that the state holds."""
        return {name: network.bind(state[name]["critic"]) for name, network in self.critics.items()}

    def step(
        self, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: float | Tensor | None = 1e-3
    ) -> Step:
        """Compute the gradient of one step. With strategy vmap this is a pure function of its tensors.

        Args:
            rate: the learning rate, for methods that make a step of inner ones; None makes it without them.
        """
        return self._outer_step(self._plain_step, parameters, self.method.mix(batch, state), state, rate)

    def _plain_step(self, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> Step:
        """Compute the gradient of one step of a mixed batch, without inner ones."""
        if self.strategy == "joint":
            return self._joint_step(parameters, batch, state)
        if self.strategy == "vmap" and self.method.has_gradient_penalty and not self.method.needs_each_gradient:
            return self._pure_step(parameters, batch, state)
        return self._separate_step(parameters, batch, state)

    def pure_step(
        self, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: float | Tensor | None = 1e-3
    ) -> Step:
        """Compute the gradient of one step as a pure function of tensors that can be mapped over runs."""
        is_separate = self.method.needs_each_gradient
        plain = replace(self, strategy="vmap")._separate_step if is_separate else self._pure_step
        return self._outer_step(plain, parameters, self.method.mix(batch, state), state, rate)

    def _outer_step(
        self,
        plain: Callable[[Mapping[str, Tensor], Batch, State], Step],
        parameters: Mapping[str, Tensor],
        batch: Batch,
        state: State,
        rate: float | Tensor | None,
    ) -> Step:
        """Let a method make a step of inner ones, which `plain` computes."""
        if rate is None or not self.method.has_inner_steps:
            return plain(parameters, batch, state)
        steps: list[Step] = []
        is_pure = plain != self._plain_step or self.strategy == "vmap"

        def inner(theta: Mapping[str, Tensor], some: Batch) -> InnerStep:
            values = theta if is_pure else {name: value.detach().requires_grad_() for name, value in theta.items()}
            steps.append(plain(values, some, state))
            return InnerStep(steps[-1].gradients, steps[-1].objective, steps[-1].risks)

        rate = rate if isinstance(rate, Tensor) else scalar(rate, batch.x)
        result, part_state = self.method.outer_step(inner, _values(parameters), batch, state, rate)
        first = steps[0]
        changed = result._asdict() | {"start": dict(result.start), "state": first.state | detached(part_state)}
        return first._replace(**changed)

    def _pure_step(self, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> Step:
        """Compute the gradient of one step from one pass, where the rule needs no environment's gradient alone."""

        def terms(theta: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, State, Mapping[str, Tensor]]]:
            objective = self.with_copies()
            risks, outputs = objective.joint(theta, batch, state)
            risk, after = self.method.risk(risks, batch.env, state)
            penalty, after = objective._penalty(theta, risks, outputs, batch, after)
            return (risk, penalty), (risks, after, objective.buffers)

        result: Any = vjp(terms, _values(parameters), has_aux=True)
        (risk, penalty), pullback, (risks, after, buffers) = result
        one, zero = torch.ones_like(risk), torch.zeros_like(risk)
        if not self.method.replaces_gradient:
            return Step(pullback((one, one))[0], risk + penalty, after, risks, penalty, buffers)
        moments = Moments(self.method)
        moments.add({name: g[None] for name, g in pullback((one, zero))[0].items()})
        penalty_grad = pullback((zero, one))[0] if self.method.has_penalty else _zeros(parameters)
        gradients, after = moments.combine(self.method, penalty_grad, batch.env, after)
        return Step(gradients, risk + penalty, after, risks, penalty, buffers)

    def _joint_step(self, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> Step:
        risks, each, outputs = self._risks(parameters, batch, state)
        leaves = list(parameters.values())
        with timed_phase("objective"):
            risk, state = self.method.risk(risks, batch.env, state)
            penalty, state = self.method.penalty(risks, outputs, batch, state, self.critic_functions(state))
            if self.method.has_gradient_penalty:
                value, state = self.method.gradient_penalty(_differentiable(each, parameters), state)
                penalty = penalty + value
        objective, parts = (risk + penalty).detach(), (risks.detach(), penalty.detach())
        if not self.method.replaces_gradient:
            with timed_phase("backward"):
                grads = torch.autograd.grad(risk + penalty, leaves, allow_unused=True)
            gradients = _zero_where_unused(grads, parameters)
            return Step(gradients, objective, detached(state), *parts)
        penalty_grad = _zeros(parameters)
        if penalty.requires_grad:
            with timed_phase("backward"):
                grads = torch.autograd.grad(penalty, leaves, retain_graph=True, allow_unused=True)
            penalty_grad = _zero_where_unused(grads, parameters)
        moments = Moments(self.method)
        for value, weight in self._weighted(risk, risks):
            with timed_phase("backward"):
                grads = torch.autograd.grad(value, leaves, weight, retain_graph=True, allow_unused=True)
            moments.add({name: g[None] for name, g in _zero_where_unused(grads, parameters).items()})
        gradients, state = moments.combine(self.method, penalty_grad, batch.env, detached(state))
        return Step(gradients, objective, state, *parts)

    def _risks(
        self, parameters: Mapping[str, Tensor], batch: Batch, state: State
    ) -> tuple[Tensor, Iterable[Tensor], Outputs]:
        """Compute risks (E,), each of them once more for a gradient of its own, and outputs (E, B, ...).

        Environments have passes of their own where a penalty needs all their gradients, and nothing couples them.
        """
        method = self.method
        is_separate = method.has_gradient_penalty and not (method.needs_each_gradient or method.couples_examples)
        if not is_separate or not isinstance(batch.y, Tensor) or self._couples_rows:
            risks, outputs = self.joint(parameters, batch, state)
            return risks, risks, outputs
        rows = (batch.environments(slice(index, index + 1)) for index in range(len(batch.x)))
        passes = [self.joint(parameters, environment, state) for environment in rows]
        each = [risks for risks, _ in passes]
        return torch.cat(each), [risk[0] for risk in each], _concatenated([outputs for _, outputs in passes])

    def _weighted(self, risk: Tensor, risks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what to differentiate for the rule, with weights.

        With ∇risk = Σ_e w_e ∇R_e the rule gets E w_e ∇R_e of each environment. Their mean is ∇risk, so a rule that
        needs the mean only gets that alone (w_e = 1/E for ERM).
        """
        if not self.method.needs_each_gradient:
            yield risk, torch.ones_like(risk)
            return
        weights = torch.autograd.grad(risk, risks, retain_graph=True)[0] * len(risks)
        yield from zip(risks, weights, strict=True)

    def _separate_step(self, parameters: Mapping[str, Tensor], batch: Batch, state: State) -> Step:
        environments = len(batch.x)
        penalty_grad, weights, coupled, penalty = _zeros(parameters), None, None, batch.x.new_zeros(())
        if self.method.has_penalty or self.method.replaces_risk:
            with timed_phase("backward"):
                penalty_grad, weights, coupled, penalty, state = self._coupled_terms(_values(parameters), batch, state)
        size = 1 if self.strategy == "loop" else _chunk(parameters, environments)
        gradients_of = self._autograd if self.strategy == "loop" else self._mapped
        moments, risks = Moments(self.method), []
        for start in range(0, environments, size):
            with timed_phase("backward"):
                gradients, values = gradients_of(
                    parameters, batch.x[start : start + size], rows_of(batch.y, slice(start, start + size))
                )
            if weights is not None:
                gradients = {k: _scaled(g, weights[start : start + size]) for k, g in gradients.items()}
            moments.add(gradients)
            risks.append(values)
        objective = torch.cat(risks).mean() if coupled is None else coupled
        gradients, state = moments.combine(self.method, penalty_grad, batch.env, state)
        return Step(gradients, objective, state, torch.cat(risks), penalty)

    def _coupled_terms(
        self, parameters: dict[str, Tensor], batch: Batch, state: State
    ) -> tuple[Gradients, Tensor, Tensor, Tensor, State]:
        """Compute what couples environments.

        Returns:
            The penalty's gradient, weights E ∂risk/∂R_e (E,), objective, penalty, new state.
        """

        def penalty(theta: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, State]]:
            risks, outputs = self.joint(theta, batch, state)
            value, after = self._penalty(theta, risks, outputs, batch, state)
            return value, (value, risks, after)

        gradients, (value, risks, state) = grad(penalty, has_aux=True)(parameters)
        weights, (risk, state) = grad(lambda r: _twice(self.method.risk(r, batch.env, state)), has_aux=True)(risks)
        return gradients, weights * len(risks), risk + value, value, state

    def _penalty(
        self, theta: dict[str, Tensor], risks: Tensor, outputs: Outputs, batch: Batch, state: State
    ) -> tuple[Tensor, State]:
        """Sum all penalties, those on gradients too, for functional transforms."""
        with timed_phase("objective"):
            value, state = self.method.penalty(risks, outputs, batch, state, self.critic_functions(state))
        if self.method.has_gradient_penalty:
            each = vmap(grad(self.risk), in_dims=(None, 0, 0), randomness="different")
            more, state = self.method.gradient_penalty(each(theta, batch.x, batch.y), state)
            value = value + more
        return value, state

    def _mapped(
        self, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor | PairedTargets
    ) -> tuple[Gradients, Tensor]:
        """Compute gradients (E', *param) and risks (E',) by vmap."""
        each = vmap(grad_and_value(self.risk), in_dims=(None, 0, 0), randomness="different")
        return each(_values(parameters), x, y)

    def _autograd(
        self, parameters: Mapping[str, Tensor], x: Tensor, y: Tensor | PairedTargets
    ) -> tuple[Gradients, Tensor]:
        """Compute gradients (1, *param) and risk (1,) of one environment, from a separate graph."""
        risk = self.risk(parameters, x[0], rows_of(y, 0))
        grads = torch.autograd.grad(risk, list(parameters.values()), allow_unused=True)
        gradients = _zero_where_unused(grads, parameters)
        return {name: g[None] for name, g in gradients.items()}, risk.detach()[None]


def choose_strategy(method: Composition, model: nn.Module, trainer: TrainerConfig) -> Strategy:
    """Return the strategy that `auto` stands for, or the given one.

    Raises:
        UserError: batch normalisation couples the rows of a batch, so only `joint` gives its gradient.
    """
    coupled = couples_rows(model) or method.couples_rows
    if method.couples_examples:
        if method.transforms_features:
            network_with_head(model)
        if trainer.strategy in ("loop", "vmap"):
            what = "representations" if method.transforms_features else "losses"
            raise UserError(
                f"trainer.strategy={trainer.strategy} sees one environment at a time, but {method.name} changes "
                f"{what} by the examples of all; use trainer.strategy=joint"
            )
        return "joint"
    if trainer.strategy in ("loop", "vmap") and coupled:
        raise UserError(
            f"trainer.strategy={trainer.strategy} sees one environment at a time, but "
            f"{method.name if method.couples_rows else 'batch normalisation'} couples all rows of a batch; use "
            "trainer.strategy=joint"
            f"{'' if method.couples_rows else ' or a backbone without batch normalisation'}"
        )
    if trainer.strategy != "auto":
        return trainer.strategy
    if coupled or not (method.needs_each_gradient or method.has_gradient_penalty):
        return "joint"
    has_convolutions = any(isinstance(module, _ConvNd) for module in model.modules())
    is_large = has_convolutions and (trainer.batch_size is None or trainer.batch_size >= SEPARATE_PASSES_FROM)
    return "joint" if is_large and not method.needs_each_gradient else "vmap"


def rows_of(y: Tensor | PairedTargets, index: int | slice) -> Any:
    """Return the targets of some environments."""
    return y.rows(index) if isinstance(y, PairedTargets) else y[index]


def detached(state: State) -> State:
    """Detach the state from the graph of the step that made it."""
    return map_leaves(Tensor.detach, state)


def _chunk(parameters: Mapping[str, Tensor], environments: int) -> int:
    size = sum(value.numel() * value.element_size() for value in parameters.values())
    return max(1, min(environments, CHUNK_BYTES // size))


def _values(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detach the parameters, since functional transforms differentiate by themselves."""
    return {name: value.detach() for name, value in parameters.items()}


def _zeros(parameters: Mapping[str, Tensor]) -> Gradients:
    return {name: torch.zeros_like(value, requires_grad=False) for name, value in parameters.items()}


def _zero_where_unused(grads: tuple[Tensor | None, ...], parameters: Mapping[str, Tensor]) -> Gradients:
    """Name the gradients; a parameter that the objective does not depend on has gradient zero."""
    pairs = zip(parameters.items(), grads, strict=True)
    return {name: torch.zeros_like(value) if g is None else g for (name, value), g in pairs}


def _concatenated(each: Sequence[Outputs]) -> Outputs:
    """Concatenate outputs (1, B, ...) of environments."""

    def joined(name: str) -> Any:
        parts = [getattr(outputs, name) for outputs in each]
        return None if parts[0] is None else torch.cat(parts)

    return each[0]._replace(
        prediction=joined("prediction"),
        representation=joined("representation"),
        loss_gradients=joined("loss_gradients"),
        losses=joined("losses"),
        body=joined("body"),
        further={name: torch.cat([outputs.further[name] for outputs in each]) for name in each[0].further},
    )


def _differentiable(risks: Iterable[Tensor], parameters: Mapping[str, Tensor]) -> Gradients:
    """Compute the gradient (E, *param) of each of E risks, itself part of the graph."""
    leaves = list(parameters.values())
    each = [torch.autograd.grad(risk, leaves, create_graph=True, allow_unused=True) for risk in risks]
    rows = [_zero_where_unused(grads, parameters) for grads in each]
    return {name: torch.stack([row[name] for row in rows]) for name in parameters}


def _scaled(gradients: Tensor, weights: Tensor) -> Tensor:
    return gradients * weights.reshape(-1, *([1] * (gradients.ndim - 1)))


def _twice(pair: tuple[Tensor, State]) -> tuple[Tensor, tuple[Tensor, State]]:
    value, state = pair
    return value, (value, state)
