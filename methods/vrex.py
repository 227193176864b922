"""V-REx: penalise the variance of the risks ("Out-of-Distribution Generalization via Risk Extrapolation").

Krueger et al. (2021), arXiv 2003.00688, equation 8, with the risks R_e of E environments:

    objective = (1/E) Σ_e R_e + λ Var_e(R_e),    Var the population variance

Defaults and search ranges are DomainBed's. Deviation: the authors add the risks up where this takes their mean, and
their two-environment code has β (R_1 - R_2)², so that λ here is 2β; the rest is theirs with `convention: rescaled`.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.penalty import ANNEALING, PenaltyMethod
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("vrex")
class VREx(PenaltyMethod):
    """Penalise the variance of the environments' risks."""

    display_name: ClassVar[str] = "V-REx"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(10.0, "λ", ge=0, search=LogUniform(1e-1, 1e5), fusable=True)
    anneal_steps: int = setting(
        500, "first steps, with `weight_before` in the place of λ", ge=0, search=ANNEALING, fusable=True
    )
    reset_optimizer: bool = setting(True, "start the optimiser afresh when the weight changes")

    @property
    def uses_moments_only(self) -> bool:
        return True

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weighted(risks.var(correction=0), state), state
