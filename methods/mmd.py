"""MMD: match the distribution of the representation over environments by a kernel.

Li, Pan, Wang, Kot (2018), "Domain Generalization with Adversarial Feature Learning", in DomainBed's form, without
the paper's adversarial autoencoder. With the kernel k(a, b) = Σ_γ exp(-γ ‖a - b‖²), γ = 0.001, 0.01, ...,
1000, and K_ij its mean over the rows of environments i and j:

    objective = (1/E) Σ_e R_e + λ mean_{i<j} (K_ii + K_jj - 2 K_ij)

The estimate is the biased one: K_ii has its diagonal. A step costs memory of (E B)² numbers. Default and search range
are DomainBed's. Deviations from DomainBed: none.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.penalty import PenaltyMethod, gaussian_kernels, representation, squared_distances
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting

GAMMAS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@register_method("mmd")
class MMD(PenaltyMethod):
    """Match over environments the distribution of the representation."""

    display_name: ClassVar[str] = "MMD"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1.0, "λ", ge=0, search=LogUniform(1e-1, 10), fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        means = kernel_means(representation(outputs, "mmd"))
        within = means.diagonal()
        discrepancies = within[:, None] + within - 2 * means
        i, j = torch.triu_indices(len(within), len(within), 1, device=means.device)
        return self.weighted(discrepancies[i, j].mean(), state), state


def kernel_means(phi: Tensor) -> Tensor:
    """Compute the mean kernel between the rows of every two environments: (E, B, D) -> (E, E)."""
    environments, rows, _ = phi.shape
    distances = squared_distances(phi.flatten(0, 1))
    kernel = torch.stack(gaussian_kernels(distances, GAMMAS)).sum(0)
    means: Tensor = kernel.unflatten(0, (environments, rows)).unflatten(2, (environments, rows)).mean((1, 3))
    return means
