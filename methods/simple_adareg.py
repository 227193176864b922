"""Adaptive regularisation with one penalty weight: it grows while the whole gradient is small.

Youbi Idrissi, "Adaptive regularization in invariant risk minimization" (irm_public_adareg); see `adareg` for the idea.
With the gradients E of the mean risk and P of the penalty over all parameters, λ = 1 at first:

    g = E + λ P
    λ ← M λ   if ‖g‖² < T              counts from the next step on

The report writes the norm where the code, and this, takes its square. Alone the penalty is IRMv1's, with weight 1.
Deviations: `largest_weight` can cap λ, which was seen at 1e14; in the author's code, and unless set, nothing does.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.adaptive import AdaptiveRule
from invbench.core.method import Gradients, State
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("simple_adareg")
class SimpleAdaReg(AdaptiveRule):
    """Grow one penalty weight while the gradient is small."""

    display_name: ClassVar[str] = "Simple AdaReg"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    threshold: float = setting(1e-5, "T, of the squared norm of the gradient", ge=0, fusable=True)
    factor: float = setting(10.0, "M, by which the weight grows", ge=1, fusable=True)
    largest_weight: float | None = setting(None, "cap of λ; null for none", gt=0)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"weight": next(iter(parameters.values())).new_ones(())}

    def combine_moments(
        self, moments: Mapping[str, tuple[Tensor, ...]], penalty_grad: Gradients, state: State
    ) -> tuple[Gradients, State]:
        weight = state["weight"]
        gradients = {name: mean + weight * penalty_grad[name] for name, (mean, *_) in moments.items()}
        size = torch.stack([g.square().sum() for g in gradients.values()]).sum()
        grown = torch.where(size < self.threshold, self.factor * weight, weight)
        capped = grown if self.largest_weight is None else grown.clamp(max=self.largest_weight)
        return gradients, state | {"weight": capped}
