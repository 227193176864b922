"""Spectral decoupling: penalise large logits ("Gradient Starvation: A Learning Proclivity in Neural Networks").

Pezeshki, Kaba, Bengio, Courville, Precup, Lajoie (2021), arXiv 2011.09468, equation 17, in DomainBed's form, with the
C logits z_i of B examples of each of E environments:

    objective = (1/E) Σ_e R_e + λ (1/EBC) Σ z²

Default and search range are DomainBed's. Deviation: the authors' own code has an offset γ and a weight for each class,
λ/2 (z - γ)²; like DomainBed, this has γ = 0 and one λ.
"""

from typing import ClassVar

from torch import Tensor

from invbench.core.data import Batch
from invbench.core.method import Method, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("sd")
class SpectralDecoupling(Method):
    """Penalise the squared logits."""

    display_name: ClassVar[str] = "SD"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    weight: float = setting(0.1, "λ", ge=0, search=LogUniform(1e-5, 1e-1), fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weight * outputs.prediction.square().mean(), state
