"""CVaR DRO: minimise the mean of the worst losses ("Large-Scale Methods for Distributionally Robust Optimization").

Levy, Carmon, Duchi, Sidford (2020), arXiv 2010.05893. With the n losses of a step in falling order ℓ_(1) ≥ ℓ_(2) ≥ ...,
the objective is their conditional value at risk at level α, the mean of the share α of them that is largest:

    objective = (1/αn) Σ_i min(1, max(0, αn - i + 1)) ℓ_(i)

α = 1 is empirical risk minimisation. No group need be known. Default and search range of α are SubpopBench's.
"""

from typing import ClassVar

from torch import Tensor

from invbench.core.data import Batch
from invbench.core.hooks import LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("cvar_dro")
class CVaRDRO(LossChange):
    """Train on the worst share of a step's losses."""

    display_name: ClassVar[str] = "CVaR DRO"

    share: float = setting(0.1, "α, of the losses that count", gt=0, le=1, search=LogUniform(1e-2, 1), fusable=True)

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        losses = loss(outputs.prediction, batch.y)
        rank = losses.detach().flatten().argsort(descending=True, stable=True).argsort().to(losses)  # i - 1
        weights = (self.share * rank.shape[0] - rank).clamp(0, 1) / self.share
        return weights.reshape(losses.shape) * losses
