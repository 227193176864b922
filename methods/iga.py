"""IGA: penalise the variance of the environments' gradients (inter-environmental gradient alignment).

Koyama, Yamaguchi (2020), "Out-of-Distribution Generalization with Maximal Invariant Predictor", arXiv 2008.01883, with
g_e the gradient of R_e by all parameters:

    objective = (1/E) Σ_e R_e + λ Σ_e ‖g_e - ḡ‖²,    ḡ = (1/E) Σ_e g_e

Default and search range are those of DomainBed and the linear unit tests. DomainBed sends no gradient through ḡ, the
unit tests do: since Σ_e (g_e - ḡ) = 0 both give the same gradient. Deviations: none.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.penalty import PenaltyMethod
from invbench.core.hooks import GradientPenalty
from invbench.core.method import Gradients, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("iga")
class IGA(GradientPenalty, PenaltyMethod):
    """Penalise the variance over environments of the gradient."""

    display_name: ClassVar[str] = "IGA"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1000.0, "λ", ge=0, search=LogUniform(10, 1e5), fusable=True)

    def gradient_penalty(self, risk_grads: Gradients, state: State) -> tuple[Tensor, State]:
        spreads = [(g - g.mean(0, keepdim=True)).square().sum() for g in risk_grads.values()]
        return self.weighted(torch.stack(spreads).sum(), state), state
