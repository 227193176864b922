"""Inverse adaptive regularisation: every parameter's risk weight shrinks while its gradient is small.

Youbi Idrissi, "Adaptive regularization in invariant risk minimization" (irm_public_adareg); see `adareg` for the idea.
With the gradients E of the mean risk and P of the penalty, λ = 1 and v = 0 at first, all operations element-wise:

    g = λ E + P
    v ← β v + (1 - β) g²               no bias correction
    λ ← λ / M   where v < T            counts from the next step on

Alone the penalty is IRMv1's, with weight 1. Deviations: `smallest_weight` can keep λ above a floor; in the author's
code, and unless set, nothing does.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.adaptive import ElementwiseWeights
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("inverse_adareg")
class InverseAdaReg(ElementwiseWeights):
    """Shrink a risk weight for every parameter while its gradient is small."""

    display_name: ClassVar[str] = "Inverse AdaReg"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    smallest_weight: float | None = setting(None, "floor of λ; null for none", gt=0)

    def gradient(self, risk: Tensor, penalty: Tensor, weight: Tensor) -> Tensor:
        return weight * risk + penalty

    def changed(self, weight: Tensor) -> Tensor:
        return (weight / self.factor).clamp(min=self.smallest_weight) if self.smallest_weight else weight / self.factor
