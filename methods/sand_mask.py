"""SAND-mask: a smooth AND-mask that also asks for agreement in size.

Shahtalebi, Gagnon-Audet, Laleh, Faramarzi, Ahuja, Rish (2021), "SAND-mask: An Enhanced Gradient Masking Strategy for
the Discovery of Invariances in Domain Generalization", arXiv 2106.02266. For every parameter tensor apart, with
the gradient g_e of each environment's risk, all operations element-wise:

    a = |(1/E) Σ_e sign(g_e)|,   s² = Var_e(g_e)  (E - 1 in the denominator)
    m = max(0, tanh(k (a - τ) / s²))
    g = m ḡ / (1e-10 + mean(m))                              mean over the tensor's elements

Where s² is 0 the argument is infinite, or nothing at all (0/0) where also a = τ: then m is 1e-17, as in DomainBed. At
τ = 1 no element has a > τ, so the network stands still: DomainBed's default. Here τ is 0.5 unless set otherwise.
Search ranges are DomainBed's. Deviations: none else.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.core.method import Gradients, Method, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, Uniform, setting

TINY, NOTHING = 1e-10, 1e-17


@register_method("sand_mask")
class SANDMask(Method):
    """Weigh gradient elements by the environments' agreement in sign and size."""

    display_name: ClassVar[str] = "SAND-mask"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    threshold: float = setting(
        0.5, "agreement τ from which an element moves", ge=0, le=1, search=Uniform(0, 1), fusable=True
    )
    steepness: float = setting(10.0, "k", gt=0, search=LogUniform(1e-3, 1e5), fusable=True)

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        gradients: Gradients = {}
        for name, g in risk_grads.items():
            agreement = g.sign().mean(0).abs()
            argument = self.steepness * (agreement - self.threshold) / g.var(0)
            mask = torch.nan_to_num(argument.tanh().clamp(min=0), nan=NOTHING)
            gradients[name] = mask * g.mean(0) / (TINY + mask.mean()) + penalty_grad[name]
        return gradients, state
