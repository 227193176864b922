"""Inverse adaptive regularisation: every parameter's risk weight shrinks while its gradient is small.

Youbi Idrissi, "Adaptive regularization in invariant risk minimization" (irm_public_adareg); see `adareg` for the idea.
With the gradients E of the mean risk and P of the penalty, λ = 1 and v = 0 at first, all operations element-wise:

    g = λ E + P
    v ← β v + (1 - β) g²               no bias correction
    λ ← λ / M   where v < T            counts from the next step on

Alone the penalty is IRMv1's, with weight 1. Deviations: `smallest_weight` can keep λ above a floor; in the author's
code, and unless set, nothing does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.method import Gradients, Method, State
from invbench.registry import register_method
from invbench.settings import setting


@register_method("inverse_adareg")
class InverseAdaReg(Method):
    """Shrink a risk weight for every parameter while its gradient is small."""

    requires: ClassVar[tuple[str, ...]] = ("environments",)
    companion: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "irmv1": {"weight": 1.0, "anneal_steps": 0, "reset_optimizer": False}
    }

    threshold: float = setting(1e-5, "T, of the mean squared gradient", ge=0, fusable=True)
    factor: float = setting(10.0, "M, by which the weight shrinks", ge=1, fusable=True)
    memory: float = setting(0.99, "β, of the running mean of squared gradients", ge=0, lt=1, fusable=True)
    smallest_weight: float | None = setting(None, "floor of λ; null for none", gt=0)

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
            g = weight * mean + penalty_grad[name]
            v = self.memory * state["second_moment"][name] + (1 - self.memory) * g.square()
            shrunk = torch.where(v < self.threshold, weight / self.factor, weight)
            gradients[name], seconds[name] = g, v
            weights[name] = shrunk if self.smallest_weight is None else shrunk.clamp(min=self.smallest_weight)
        return gradients, state | {"weight": weights, "second_moment": seconds}
