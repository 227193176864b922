"""CORAL: match means and covariances of the representation over environments ("Deep CORAL").

Sun, Saenko (2016), arXiv 1607.01719, in DomainBed's form for several environments, with the mean μ_e (D) and the
covariance C_e (D, D), of B - 1 in the denominator, of the representation φ in environment e:

    objective = (1/E) Σ_e R_e + λ mean_{i<j} [ mean_d (μ_i - μ_j)² + mean_{dd'} (C_i - C_j)² ]

The mean over pairs of (a_i - a_j)² is twice the unbiased variance of a over environments, which is how it is computed.
Default and search range are DomainBed's. Deviation: like DomainBed it takes means over elements and matches the means
as well; the paper has Σ (C_i - C_j)² / 4D².
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.penalty import PenaltyMethod, representation
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("coral")
class CORAL(PenaltyMethod):
    """Match over environments the first and second moments of the representation."""

    display_name: ClassVar[str] = "CORAL"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1.0, "λ", ge=0, search=LogUniform(1e-1, 10), fusable=True)

    @property
    def min_examples(self) -> int:
        return 2

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "coral")
        mean = phi.mean(1)
        centred = phi - mean[:, None]
        covariance = torch.einsum("ebi,ebj->eij", centred, centred) / (phi.shape[1] - 1)
        return self.weighted(2 * (variance(mean).mean() + variance(covariance).mean()), state), state


def variance(values: Tensor) -> Tensor:
    """Compute the unbiased variance over the first axis; torch.var takes four times as long for few large matrices."""
    return (values - values.mean(0)).square().sum(0) / (len(values) - 1)
