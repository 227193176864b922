"""CAD: a representation from which a contrastive critic cannot tell the environment ("Optimal Representations").

Ruan, Dubois, Maddison (2022), "Optimal Representations for Covariate Shift", arXiv 2201.00057, in DomainBed's form.
With all examples of a step in one list, φ_i the representation, d_i the environment, y_i the label, and

    p_ij = exp(φ_i·φ_j / T) / Σ_{k≠i} exp(φ_i·φ_k / T),   j ≠ i

    objective = (1/E) Σ_e R_e - λ (T / 0.07) mean_i log Σ_{j: d_j≠d_i} p_ij

The mean is over examples of whose label there is another one in the step, and where the sum is not empty. `conditional`
(CondCAD, CIDM in the paper's terms) compares examples of one label only: the sum below the line runs over k with
y_k = y_i, that above over j with y_j = y_i and d_j ≠ d_i. `flipped: false` is the paper's first form, which adds λ (T /
0.07) mean_i log Σ_{j: d_j=d_i} p_ij instead; both have the same optima. Defaults and search ranges are DomainBed's,
where the two are two algorithms. Deviations: DomainBed's projection is left out (its code for it does not run); with
`flipped: false` its upper sum has j = i in it, with a similarity of 0.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.penalty import PenaltyMethod, least_exponent, representation
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting

BASE_TEMPERATURE = 0.07


@register_method("cad")
class CAD(PenaltyMethod):
    """Keep a contrastive critic from telling environments by the representation."""

    display_name: ClassVar[str] = "CAD"
    requires: ClassVar[tuple[str, ...]] = ("environments", "classification")

    weight: float = setting(0.1, "λ", ge=0, search=Choice((1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)), fusable=True)
    temperature: float = setting(0.1, "T", gt=0, search=Choice((0.05, 0.1)), fusable=True)
    conditional: bool = setting(False, "compare examples of one label only", search=Choice((False, True)))
    flipped: bool = setting(True, "reward examples of other environments; else punish those of the same")
    normalised: bool = setting(False, "divide each representation by its norm")

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "cad").flatten(0, 1)
        label = batch.y.flatten(0, 1)
        environment = batch.env[:, None].expand(batch.y.shape).flatten(0, 1)
        if self.normalised:
            phi = torch.nn.functional.normalize(phi, dim=1)
        return self.weighted(self._bottleneck(phi, label, environment), state), state

    def _bottleneck(self, phi: Tensor, label: Tensor, environment: Tensor) -> Tensor:
        others = ~torch.eye(len(phi), dtype=torch.bool, device=phi.device)
        same_label = (label[:, None] == label) & others
        same_environment = environment[:, None] == environment
        compared = same_label if self.conditional else others
        counted = compared & (~same_environment if self.flipped else same_environment)
        similarity = phi @ phi.T / self.temperature
        logs = _log_sum_exp(similarity, counted) - _log_sum_exp(similarity, compared)
        counts = same_label.any(1) & counted.any(1)
        sign = -1 if self.flipped else 1
        mean = torch.where(counts, logs, 0).sum() / counts.sum().clamp(min=1)
        return sign * self.temperature / BASE_TEMPERATURE * mean


def _log_sum_exp(values: Tensor, included: Tensor) -> Tensor:
    """Compute log Σ exp of the included elements of each row (N,); 0 where there are none.

    Terms that are less than the smallest full number beside the largest one do not count: they would take long.
    """
    is_empty = ~included.any(1, keepdim=True)
    chosen = torch.where(included | is_empty, values, -torch.inf)
    largest = chosen.detach().amax(1, keepdim=True)
    terms = (values - largest).clamp(least_exponent(values), 0).exp() * (included | is_empty)
    return torch.where(is_empty[:, 0], 0, terms.sum(1).log() + largest[:, 0])
