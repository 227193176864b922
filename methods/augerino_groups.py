"""Augerino with generators that nobody named: the matrices themselves are learned, by Augerino's loss.

The baseline of LieGAN (Yang et al. 2023, arXiv 2302.00236, "Augerino+"), after Benton et al. (2020), arXiv 2010.11882.
With matrices L_k and z_k ~ U(-1, 1) of every input and copy j:

    g_j = exp(Σ_k z_k L_k)        h(x) = (1/J) Σ_j f(g_j x)
    objective = risk - λ ‖L‖ 1[‖L‖ < c]

‖L‖ is the norm of all entries. Generators that hurt the risk shrink, the others grow up to c: the distribution says how
far the data may be moved as well as along which directions. `block` looks for matrices that act on every n inputs
alike. Deviation: the authors bound the norm from above by nothing.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invbench.components.algebra import LearnedAlgebra, draw_coefficients
from invbench.components.augmentation import AugmentationMethod
from invbench.core.data import Batch, Problem
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("augerino_groups")
class AugerinoGroups(AugmentationMethod):
    """Average over exponentials of matrices that are learned."""

    display_name: ClassVar[str] = "Augerino, free generators"
    requires: ClassVar[tuple[str, ...]] = ("vector",)
    small: ClassVar[Mapping[str, Any]] = {"method.test_copies": 2}
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vector": {"method.train_copies": 0}}

    generators: int = setting(1, "K, number of matrices", ge=1, le=64)
    block: int | None = setting(None, "n: the matrices act on every n inputs alike; null is all inputs at once", ge=1)
    regularisation: float = setting(0.01, "λ", ge=0, search=LogUniform(1e-3, 1), fusable=True)
    cutoff: float | None = setting(math.pi, "norm c from which on the regulariser is off; null for never", gt=0)
    first_deviation: float = setting(0.1, "deviation of the first entries", ge=0)
    learning_rate: float | None = setting(None, "of the entries; null takes the trainer's", gt=0)

    def transformation(self, problem: Problem) -> nn.Module:
        return RandomElements(
            LearnedAlgebra(problem, self.generators, self.block, self.first_deviation, self.learning_rate)
        )

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        entries = outputs.learned["generator"]
        norm = (entries.square().sum() + 1e-12).sqrt()  # its slope at 0 is 0
        return -self.regularisation * torch.where(norm < (self.cutoff or math.inf), norm, 0), state


class RandomElements(nn.Module):
    """x -> exp(Σ_k z_k L_k) x with z_k ~ U(-1, 1), independently for every input."""

    def __init__(self, algebra: LearnedAlgebra) -> None:
        super().__init__()
        self.algebra = algebra

    def forward(self, x: Tensor) -> Tensor:
        return self.algebra.within_one(x, draw_coefficients(x, self.algebra.shape[0], "uniform", 1.0))
