"""Adaptive regularisation: every parameter's penalty weight grows while its gradient is small.

Youbi Idrissi, "Adaptive regularization in invariant risk minimization" (course report and code, irm_public_adareg).
IRM with a large fixed λ falls into the null solution; this lets λ grow where training has come to rest, element by
element. With the gradients E of the mean risk and P of the penalty, λ = 1 and v = 0 at first, all operations
element-wise:

    g = E + λ P
    v ← β v + (1 - β) g²               no bias correction
    λ ← M λ   where v < T              counts from the next step on; every step, as long as v < T

The penalty is that of the other parts of the method, with their weights in it: `vrex+adareg`. Alone it is IRMv1's, with
weight 1, as in the author's code: `adareg` is short for `irmv1+adareg`. λ comes to 1e7 and more, so use
trainer.dtype=float64. Deviations: `largest_weight` can cap λ; in the author's code, and unless set, nothing does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.method import Gradients, Method, State
from invbench.registry import register_method
from invbench.settings import setting


@register_method("adareg")
class AdaReg(Method):
    """Grow a penalty weight for every parameter while its gradient is small."""

    requires: ClassVar[tuple[str, ...]] = ("environments",)
    companion: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "irmv1": {"weight": 1.0, "anneal_steps": 0, "reset_optimizer": False}
    }

    threshold: float = setting(1e-5, "T, of the mean squared gradient", ge=0, fusable=True)
    factor: float = setting(10.0, "M, by which the weight grows", ge=1, fusable=True)
    memory: float = setting(0.99, "β, of the running mean of squared gradients", ge=0, lt=1, fusable=True)
    largest_weight: float | None = setting(None, "cap of λ; null for none", gt=0)

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
            g = mean + weight * penalty_grad[name]
            v = self.memory * state["second_moment"][name] + (1 - self.memory) * g.square()
            grown = torch.where(v < self.threshold, self.factor * weight, weight)
            gradients[name], seconds[name] = g, v
            weights[name] = grown if self.largest_weight is None else grown.clamp(max=self.largest_weight)
        return gradients, state | {"weight": weights, "second_moment": seconds}
