"""Focal loss: let examples that are predicted well count less ("Focal Loss for Dense Object Detection").

Lin, Goyal, Girshick, He, Dollár (2017), arXiv 1708.02002, equation 4. With the probability p_y of the label,

    ℓ' = (1 - p_y)^γ ℓ,   ℓ = -log p_y

γ = 0 is empirical risk minimisation. Default and search range are SubpopBench's.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.core.data import Batch
from invbench.core.hooks import LossChange, LossFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting

LEAST = 1e-12
"""Least 1 - p_y: the derivative of its power has no bound at 0."""


@register_method("focal")
class Focal(LossChange):
    """Multiply each loss by a power of the probability of the other classes."""

    display_name: ClassVar[str] = "Focal"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    gamma: float = setting(
        1.0, "γ, how much less examples count that are predicted well", ge=0, search=LogUniform(0.5, 5), fusable=True
    )

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        losses = loss(outputs.prediction, batch.y)
        return torch.pow(-torch.expm1(-losses).clamp(max=-LEAST), self.gamma) * losses
