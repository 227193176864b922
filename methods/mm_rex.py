"""MM-REx: a worst case over affine combinations of the risks.

Krueger et al. (2021), "Out-of-Distribution Generalization via Risk Extrapolation", arXiv 2003.00688, equation 7. Of
all weights that sum to 1 and are at least λ_min (which may be negative) the worst give

    max_w Σ_e w_e R_e = (1 - E λ_min) max_e R_e + λ_min Σ_e R_e = (1/E) Σ_e R_e + β (max_e R_e - (1/E) Σ_e R_e)

with β = 1 - E λ_min: 0 is ERM, 1 the largest risk, more than 1 extrapolates. For two environments the penalty is
β |R_1 - R_2| / 2, so this is half of the authors' R_1 + R_2 + β |R_1 - R_2|, with the same β. Defaults are those of
their coloured-MNIST code; its division by β is `convention: rescaled`. Deviations: none else.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.penalty import ANNEALING, Convention, PenaltyMethod
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("mm_rex")
class MMREx(PenaltyMethod):
    """Penalise how far the largest risk is above the mean."""

    display_name: ClassVar[str] = "MM-REx"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1e4, "β", ge=0, search=LogUniform(1e-1, 1e5), fusable=True)
    anneal_steps: int = setting(
        100, "first steps, with `weight_before` in the place of β", ge=0, search=ANNEALING, fusable=True
    )
    convention: Convention = setting(
        "rescaled", "plain: R + βP; rescaled: that over max(β, 1); divided: over β; convex: (1-β)R + βP"
    )

    @property
    def uses_moments_only(self) -> bool:
        return True

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weighted(risks.max() - risks.mean(), state), state
