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

from typing import ClassVar

from torch import Tensor

from invbench.components.adaptive import ElementwiseWeights
from invbench.core.registry import register_method
from invbench.core.settings import setting


@register_method("adareg")
class AdaReg(ElementwiseWeights):
    """Grow a penalty weight for every parameter while its gradient is small."""

    display_name: ClassVar[str] = "AdaReg"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    largest_weight: float | None = setting(None, "cap of λ; null for none", gt=0)

    def gradient(self, risk: Tensor, penalty: Tensor, weight: Tensor) -> Tensor:
        return risk + weight * penalty

    def changed(self, weight: Tensor) -> Tensor:
        return (self.factor * weight).clamp(max=self.largest_weight) if self.largest_weight else self.factor * weight
