"""Transfer: no head near the present one may have very different risks ("Quantifying and Improving Transferability").

Zhang, Zhao, Yu, Poupart (2021), "Quantifying and Improving Transferability in Domain Generalization", arXiv
2106.03632, algorithm 1. With the head h of the network, R_e(h', φ) the risk of another head h' on the same
representation φ, and

    gap(h', φ) = max_e R_e(h', φ) - min_e R_e(h', φ)

h' begins at h and makes d steps of gradient ascent on λ gap, with the rate η; after each it is put back into the ball
‖h' - h‖ ≤ δ over weights and biases together. Then, with h' a constant,

    objective = (1/E) Σ_e R_e + λ gap(h', φ)

Defaults and search ranges are DomainBed's, whose random search has another option (`gda`) on, in which only the other
head is trained: a fault, so its published numbers are not this algorithm's. Deviations: DomainBed makes two updates of
one Adam in a step, by the risk and by the gap, whose h' climbed on the batch before.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import grad

from invbench.components.classes import cross_entropy
from invbench.components.penalty import representation
from invbench.core.data import Batch
from invbench.core.method import Method, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, Uniform, setting


@register_method("transfer")
class Transfer(Method):
    """Penalise the largest gap between risks that a head nearby has."""

    display_name: ClassVar[str] = "Transfer"
    requires: ClassVar[tuple[str, ...]] = ("environments", "classification")
    small: ClassVar[Mapping[str, Any]] = {"method.ascent_steps": 2}

    weight: float = setting(1.0, "λ", ge=0, search=LogUniform(1e-2, 10), fusable=True)
    radius: float = setting(2.0, "δ", gt=0, search=Uniform(0.1, 3), fusable=True)
    ascent_steps: int = setting(10, "d", ge=1, search=Choice((1, 2, 5)))
    ascent_rate: float = setting(1e-3, "η", gt=0, search=LogUniform(10**-4.5, 10**-2.5), fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi, head = representation(outputs, "transfer"), outputs.head
        if head is None:  # a representation is the input of one
            raise ValueError("no head: the engine adds it to what a penalty gets")
        other = self._climbed([part.detach() for part in head if part is not None], phi.detach(), batch.y)
        return self.weight * gap(other, phi, batch.y), state

    def _climbed(self, head: Sequence[Tensor], phi: Tensor, y: Tensor) -> list[Tensor]:
        """Return the head with a large gap."""
        other = list(head)
        for _ in range(self.ascent_steps):
            slopes = grad(gap)(other, phi, y)
            rate = self.ascent_rate * self.weight
            away = [now + rate * slope - first for now, slope, first in zip(other, slopes, head, strict=True)]
            norm = torch.stack([part.square().sum() for part in away]).sum().sqrt()
            factor = torch.where(norm > self.radius, self.radius / norm, 1.0)
            other = [first + factor * part for first, part in zip(head, away, strict=True)]
        return other


def gap(head: Sequence[Tensor], phi: Tensor, y: Tensor) -> Tensor:
    """Compute the largest minus the smallest risk of a head on representations (E, B, features)."""
    weights, *biases = head
    risks = cross_entropy(sum(biases, phi @ weights.T), y).mean(1)
    return risks.max() - risks.min()
