"""CausIRL: match the representation of two random parts of the data, each of which has its own mixture of environments.

Chevalley, Bunne, Krause, Bauer (2022), "Invariant Causal Mechanisms through Distribution Matching", arXiv 2206.11646,
in DomainBed's form. In each step a cut c_e is drawn for every environment from {0, ..., B - 1}: its first c_e
examples are of part P, the others of Q. With d one of two distances between the representations of P and of Q:

    objective = (1/E) Σ_e R_e + λ d(P, Q)
    coral   d = mean_d (μ_P - μ_Q)² + mean_{dd'} (C_P - C_Q)²      means and covariances, of n - 1 in the denominator
    mmd     d = K_PP + K_QQ - 2 K_PQ                               mean kernels, with `mmd`'s kernel

Where a part has less than two examples, d is 0. One pair of parts takes the place of E (E - 1) / 2 pairs of
environments. Default and search range are DomainBed's, where the two distances are two algorithms. Deviations: none.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from invbench.components.draws import uniform
from invbench.components.penalty import PenaltyMethod, representation, squared_distances, sum_of_kernels
from invbench.core.data import Batch
from invbench.core.hooks import RandomDraws
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, setting
from invbench.methods.mmd import GAMMAS


@register_method("causirl")
class CausIRL(RandomDraws, PenaltyMethod):
    """Match the representation over two random parts with different mixtures of environments."""

    display_name: ClassVar[str] = "CausIRL"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1.0, "λ", ge=0, search=LogUniform(1e-1, 10), fusable=True)
    distance: Literal["coral", "mmd"] = setting("coral", "d", search=Choice(("coral", "mmd")))

    @property
    def min_examples(self) -> int:
        return 2

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "causirl")
        cut = uniform(state, 0, batch.env, like=phi) * phi.shape[1]  # (E,)
        is_first = torch.arange(phi.shape[1], device=phi.device) < cut.floor()[:, None]
        distance = moment_distance if self.distance == "coral" else kernel_distance
        first = is_first.flatten().to(phi.dtype)
        second = 1 - first
        is_defined = torch.minimum(first.sum(), second.sum()) > 1
        value = distance(phi.flatten(0, 1), first, second)
        return self.weighted(torch.where(is_defined, value, 0), state), state


def moment_distance(phi: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compare means and covariances of the rows of (N, D) that are in two parts (N,), of zeros and ones.

    With rows less their common mean, C_P - C_Q is one weighted product of them and two of their parts' means.
    """
    counts = first.sum(), second.sum()
    below = [(count - 1).clamp(min=1) for count in counts]
    rows = phi - phi.mean(0)
    means = [rows.T @ part / count.clamp(min=1) for part, count in zip((first, second), counts, strict=True)]
    weight = first / below[0] - second / below[1]
    between = [torch.outer(mean, mean) * (n / m) for mean, n, m in zip(means, counts, below, strict=True)]
    difference = (weight[:, None] * rows).T @ rows - between[0] + between[1]
    distance: Tensor = (means[0] - means[1]).square().mean() + difference.square().mean()
    return distance


def kernel_distance(phi: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Compare by the kernel the rows of (N, D) that are in two parts (N,), of zeros and ones."""
    distances = squared_distances(phi)
    kernel = sum_of_kernels(distances, GAMMAS)
    contrast = first / first.sum().clamp(min=1) - second / second.sum().clamp(min=1)
    distance: Tensor = (contrast * (kernel @ contrast)).sum()
    return distance
