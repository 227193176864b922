"""The optimiser of a single run: the update of `Optimizer.step`, bit by bit, in place and for all parameters at once.

Adam is a dozen elementwise operations. For a small network the calls cost more than the arithmetic, so gradients and
moments of all parameters with the same settings lie in one vector each: a dozen calls in all, not of each parameter.
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from invbench.core.method import Gradients
from invbench.core.settings import is_zero
from invbench.pytree import map_leaves
from invbench.training.optimizers import Optimizer, OptimizerState


class InPlaceOptimizer:
    """Update rule with the parameters that it changes, and their moments.

    Args:
        rule: with its settings.
        parameters: by name.
    """

    def __init__(self, rule: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        kinds: dict[object, list[str]] = {}
        for name, value in parameters.items():
            alike = value.dtype, value.device, rule.decays[name], rule.factors.get(name, 1.0), name in rule.learned
            kinds.setdefault(alike, []).append(name)
        self.groups = [_Group(rule, {name: parameters[name] for name in names}) for names in kinds.values()]
        self._order = list(parameters)

    @property
    def state(self) -> OptimizerState:
        """The moments of every parameter, which updates change."""
        moments = {name: moments for group in self.groups for name, moments in group.moments.items()}
        return {name: moments[name] for name in self._order}

    def load_state(self, state: OptimizerState) -> None:
        """Set the moments of every parameter."""
        for name, moments in self.state.items():
            for moment, value in moments.items():
                value.copy_(state[name][moment])

    def restart(self) -> None:
        """Set the moments of every parameter to zero, as at the start of a run."""
        map_leaves(Tensor.zero_, self.state)

    @torch.no_grad()
    def step(
        self,
        names: set[str],
        gradients: Gradients,
        count: int,
        rate: float | Tensor,
        scale: Tensor | float = 1.0,
    ) -> None:
        """Update the named parameters and their moments; see `Optimizer.step`."""
        for group in self.groups:
            if moving := [name for name in group.parameters if name in names]:
                group.step(moving, gradients, count, rate, scale)


class _Group:
    """Parameters with the same settings; their gradients and moments are parts of vectors."""

    def __init__(self, rule: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        self.rule, self.parameters = rule, dict(parameters)
        first = next(iter(parameters))
        self.decay, self.factor = rule.decays[first], rule.factors.get(first, 1.0)
        self.has_l1 = not is_zero(rule.trainer.l1) and first not in rule.learned
        self.is_adam = rule.trainer.optimizer == "adam"
        names = ("gradient", "work", "first", "second") if self.is_adam else ("gradient", "velocity")
        size = sum(value.numel() for value in parameters.values())
        self.vectors = {name: parameters[first].detach().new_zeros(size) for name in names}
        self.parts = {name: _parts(vector, parameters) for name, vector in self.vectors.items()}
        self.moments = {
            name: {moment: self.parts[moment][name] for moment in names if moment not in ("gradient", "work")}
            for name in parameters
        }

    def step(
        self, names: list[str], gradients: Gradients, count: int, rate: float | Tensor, scale: Tensor | float
    ) -> None:
        """Update the named ones: all in one, or, where some do not move, one by one."""
        parameters, parts = [self.parameters[name] for name in names], self.parts["gradient"]
        torch._foreach_copy_([parts[name] for name in names], [gradients[name] for name in names])
        self._regularise([parts[name] for name in names], parameters)
        is_whole = len(names) == len(self.parameters)
        sets = [self.vectors] if is_whole else [{k: part[name] for k, part in self.parts.items()} for name in names]
        update = self._adam if self.is_adam else self._sgd
        for tensors in sets:
            if isinstance(scale, Tensor) or scale != 1:
                tensors["gradient"] *= scale
            size, change = update(tensors, count, rate * self.factor)
            change *= size
        changes = self.parts["work" if self.is_adam else "gradient"]
        torch._foreach_sub_(parameters, [changes[name] for name in names])
        if self.rule.trainer.weight_decay_order == "after" and not is_zero(self.decay):
            torch._foreach_sub_(parameters, torch._foreach_mul(parameters, size * self.decay))

    def _regularise(self, gradients: list[Tensor], parameters: list[Tensor]) -> None:
        """Add l1 and the weight decay that belongs to the gradient."""
        if self.has_l1:
            torch._foreach_add_(gradients, torch._foreach_mul(torch._foreach_sign(parameters), self.rule.trainer.l1))
        if self.rule.trainer.weight_decay_order == "before" and not is_zero(self.decay):
            torch._foreach_add_(gradients, torch._foreach_mul(parameters, self.decay))

    def _adam(self, tensors: dict[str, Tensor], count: int, rate: float | Tensor) -> tuple[float | Tensor, Tensor]:
        """Change the moments as Adam does. Returns the step size, and `work` with the direction."""
        beta1, beta2 = self.rule.trainer.betas
        gradient, work, first, second = tensors.values()
        first.lerp_(gradient, 1 - beta1)
        torch.mul(gradient, 1 - beta2, out=work).mul_(gradient)
        second.mul_(beta2).add_(work)
        torch.div(second, 1 - beta2 ** (count + 1), out=work).sqrt_().add_(self.rule.trainer.epsilon)
        return rate / (1 - beta1 ** (count + 1)), torch.div(first, work, out=work)

    def _sgd(self, tensors: dict[str, Tensor], count: int, rate: float | Tensor) -> tuple[float | Tensor, Tensor]:
        """Change the velocity as SGD does. Returns the step size, and `gradient` with the direction."""
        gradient, velocity = tensors.values()
        velocity.mul_(self.rule.trainer.momentum).add_(gradient)
        if self.rule.trainer.nesterov:
            return rate, gradient.add_(self.rule.trainer.momentum * velocity)
        return rate, gradient.copy_(velocity)


def _parts(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a vector that belong to tensors: of their shapes and, where they are dense, their strides."""
    starts = accumulate((value.numel() for value in like.values()), initial=0)
    parts = {}
    for (name, value), start in zip(like.items(), starts, strict=False):
        part = vector[start : start + value.numel()]
        is_dense = value.permute(sorted(range(value.ndim), key=lambda axis: -value.stride()[axis])).is_contiguous()
        parts[name] = part.as_strided(value.shape, value.stride()) if is_dense else part.view(value.shape)
    return parts
