"""Base classes of adaptive regularisation: the penalty's default settings, and a weight for every parameter."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.core.hooks import WeighsPenalty
from invbench.core.method import Gradients, State
from invbench.core.settings import setting


class AdaptiveRule(WeighsPenalty):
    """A gradient rule that weighs a penalty; beside it IRMv1's has weight 1 from the first step on."""

    penalty_settings: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "irmv1": {"weight": 1.0, "anneal_steps": 0, "reset_optimizer": False}
    }


class ElementwiseWeights(AdaptiveRule):
    """λ changes where the running mean v of squared gradients is below T, element by element; λ = 1 and v = 0 at first.

    v ← β v + (1 - β) g², without bias correction, comes before the comparison; the new λ counts from the next step on.
    """

    threshold: float = setting(1e-5, "T, of the mean squared gradient", ge=0, fusable=True)
    factor: float = setting(10.0, "M, by which the weight changes", ge=1, fusable=True)
    memory: float = setting(0.99, "β, of the running mean of squared gradients", ge=0, lt=1, fusable=True)

    @abstractmethod
    def gradient(self, risk: Tensor, penalty: Tensor, weight: Tensor) -> Tensor:
        """Return g from the gradients of mean risk and penalty and from λ, all of one shape."""

    @abstractmethod
    def changed(self, weight: Tensor) -> Tensor:
        """Return λ after a change."""

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {
            "weight": {name: torch.ones_like(value) for name, value in parameters.items()},
            "second_moment": {name: torch.zeros_like(value) for name, value in parameters.items()},
        }

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        gradients: Gradients = {}
        weights, seconds = {}, {}
        for name, (mean, *_) in moments.items():
            weight = state["weight"][name]
            g = self.gradient(mean, penalty_grad[name], weight)
            v = self.memory * state["second_moment"][name] + (1 - self.memory) * g.square()
            weights[name] = torch.where(v < self.threshold, self.changed(weight), weight)
            gradients[name], seconds[name] = g, v
        return gradients, state | {"weight": weights, "second_moment": seconds}
