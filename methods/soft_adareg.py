"""Soft adaptive regularisation: every parameter's penalty gradient is divided by the size of its recent gradients.

Youbi Idrissi, "Adaptive regularization in invariant risk minimization" (irm_public_adareg); see `adareg` for the idea.
With the gradients E of the mean risk and P of the penalty, v = 0 at first, all operations element-wise:

    g = E + P / (√v + ε)               v of the step before
    v ← β v + (1 - β) g²               no bias correction

In the first step v = 0, so P is divided by ε alone: with 1e-15 a huge gradient, which only Adam tames; facts of the
source, kept. Alone the penalty is IRMv1's, with weight 1. Deviations: `largest_weight` can cap 1 / (√v + ε); in the
author's code, and unless set, nothing does.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.components.adaptive import AdaptiveRule
from invbench.core.method import Gradients, State
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("soft_adareg")
class SoftAdaReg(AdaptiveRule):
    """Divide the penalty's gradient by the size of recent gradients."""

    display_name: ClassVar[str] = "Soft AdaReg"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    # without it its first step is huge
    small: ClassVar[Mapping[str, Any]] = {"method.largest_weight": 10.0}

    memory: float = setting(0.99, "β, of the running mean of squared gradients", ge=0, lt=1, fusable=True)
    epsilon: float = setting(1e-15, "ε, added to the root", gt=0, fusable=True)
    largest_weight: float | None = setting(None, "cap of 1 / (√v + ε); null for none", gt=0)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"second_moment": {name: torch.zeros_like(value) for name, value in parameters.items()}}

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        gradients: Gradients = {}
        seconds = {}
        for name, (mean, *_) in moments.items():
            old = state["second_moment"][name]
            weight = 1 / (old.sqrt() + self.epsilon)
            capped = weight if self.largest_weight is None else weight.clamp(max=self.largest_weight)
            gradients[name] = mean + capped * penalty_grad[name]
            seconds[name] = self.memory * old + (1 - self.memory) * gradients[name].square()
        return gradients, state | {"second_moment": seconds}
