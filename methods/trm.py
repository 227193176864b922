"""TRM: each environment's best head should do well on the others ("Transfer Risk Minimization").

Xu, Jaakkola (2022), "Learning Representations that Support Robust Transfer of Predictors", arXiv 2110.09940, in
DomainBed's form. Every environment Q has a linear head w_Q on the representation φ, to which each step adds
`inner_steps` of gradient descent on R_Q(w_Q, φ), from where the last step left it. With weights α_QP whose rows,
without P = Q, sum to 1, H_Q the second derivative of R_Q by the weights of w_Q, and all w_Q and v_Q constants:

    L_Q = Σ_{P≠Q} α_QP R_P(w_Q, φ),      v_Q = Σ_{k≤10} (1 - H_Q)^k ∇L_Q ≈ H_Q⁻¹ ∇L_Q
    objective = (1/E) Σ_e R_e + (1/E) Σ_Q [L_Q - c v_Q·∇R_Q(w_Q, φ)]
    α_QP ← α_QP exp(η R_P(w_Q, φ))

The second term carries how w_Q follows φ. The series of v_Q ends once an element exceeds 10. The first `warm_up`
steps are ERM. Defaults and search ranges are DomainBed's. Deviations: heads begin at 0 (the problem is convex). In
DomainBed's code α grows by α R instead of R, and the gradient is taken with the α that has grown already; its series
changes terms in place, so that it sums 2 (1 - H) ∇L and the terms from k = 2 on. None of the three is in the paper.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.components.classes import cross_entropy
from invbench.components.penalty import representation
from invbench.core.data import Batch
from invbench.core.method import Method, Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, ShareOfSteps, setting
from invbench.core.task import one_hot

TERMS, LARGEST = 10, 10.0
"""Terms of the series beside the first, and the size at which it ends."""


@register_method("trm")
class TRM(Method):
    """Penalise the risk of each environment's head on the others."""

    display_name: ClassVar[str] = "TRM"
    requires: ClassVar[tuple[str, ...]] = ("environments", "classification")
    small: ClassVar[Mapping[str, Any]] = {"method.inner_steps": 3, "method.warm_up": 1}

    follow_weight: float = setting(1e-4, "c", ge=0, search=LogUniform(1e-5, 1), fusable=True)
    group_rate: float = setting(1e-2, "η", ge=0, search=LogUniform(1e-3, 1e-1), fusable=True)
    warm_up: int = setting(200, "first steps, of ERM", ge=0, search=ShareOfSteps(LogUniform(1 / 5001, 1)), fusable=True)
    inner_steps: int = setting(30, "of each head in a step of training", ge=1)
    head_rate: float = setting(0.1, "step size of the heads", gt=0, fusable=True)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        like = next(iter(parameters.values())).detach()
        others = 1 - torch.eye(environments, dtype=like.dtype, device=like.device)
        return {
            "weights": like.new_zeros(environments, 1, 1),  # they get their size in the first step
            "biases": like.new_zeros(environments, 1),
            "shares": others,
        }

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "trm")
        present = one_hot(batch.env, len(state["shares"]), phi.dtype)  # (E, all environments)
        of_class = class_targets(batch.y, outputs.prediction)
        heads = self._fitted(phi.detach(), of_class, present, state)
        shares = present @ state["shares"] @ present.T
        shares = shares / shares.sum(1, keepdim=True)
        logits = crossed_logits(heads, phi)
        crossed = cross_entropy(logits, batch.y.expand(logits.shape[:-1])).mean(2)  # (E heads, E environments)
        loss = (shares * crossed).sum(1)
        follow = (
            self._followers(heads, phi.detach(), logits.detach(), of_class, shares) * slopes(heads, phi, of_class)
        ).sum((1, 2))
        crossing = (loss - self.follow_weight * follow).mean()
        has_begun = state["step"] >= self.warm_up
        grown = (self.group_rate * crossed.detach()).exp()
        rows = present @ state["shares"] * (grown @ present + 1 - present.sum(0))  # those of absent environments stay
        rows = rows / rows.sum(1, keepdim=True)
        after = {"weights": heads[0], "biases": heads[1], "shares": rows}
        kept = {
            name: torch.where(has_begun, _put(present, new, state[name]), state[name]) for name, new in after.items()
        }
        return torch.where(has_begun, crossing, 0), state | kept

    def _fitted(self, phi: Tensor, of_class: Tensor, present: Tensor, state: State) -> tuple[Tensor, Tensor]:
        """Return weights (E, outputs, features) and biases (E, outputs) after this step's descent."""
        sizes = len(phi), of_class.shape[-1], phi.shape[-1]
        weights = phi.new_zeros(sizes) + torch.einsum("ea,acf->ecf", present, state["weights"])
        biases = phi.new_zeros(sizes[:2]) + present @ state["biases"]
        for _ in range(self.inner_steps):
            delta = residual(predictions((weights, biases), phi), of_class) / phi.shape[1]
            weights = weights - self.head_rate * torch.einsum("ebc,ebf->ecf", delta, phi)
            biases = biases - self.head_rate * delta.sum(1)
        return weights, biases

    @staticmethod
    def _followers(
        heads: tuple[Tensor, Tensor], phi: Tensor, logits: Tensor, of_class: Tensor, shares: Tensor
    ) -> Tensor:
        """Return v_Q (E, outputs, features), from the logits of every head on every environment."""
        delta = residual(logits, of_class) / phi.shape[1]
        term = torch.einsum("qp,qpbc,pbf->qcf", shares, delta, phi)
        p = probabilities(predictions((heads[0].detach(), heads[1].detach()), phi))
        total, goes_on = term, torch.ones_like(term[:, :1, :1], dtype=torch.bool)
        for _ in range(TERMS):
            change = p * torch.einsum("qbf,qcf->qbc", phi, term)
            rest = p * change.sum(-1, keepdim=True)
            curved = torch.einsum("qbc,qbf->qcf", change - rest, phi) / phi.shape[1]
            term = term - curved
            total = torch.where(goes_on, total + term, total)
            goes_on = goes_on & (total.abs().amax((1, 2), keepdim=True) <= LARGEST)
        return total


def predictions(heads: tuple[Tensor, Tensor], phi: Tensor) -> Tensor:
    """Return each environment's logits (E, B, outputs) by its own head."""
    return torch.einsum("ebf,ecf->ebc", phi, heads[0]) + heads[1][:, None]


def crossed_logits(heads: tuple[Tensor, Tensor], phi: Tensor) -> Tensor:
    """Return logits (E heads, E environments, B, outputs) of every head on every environment; heads are constants."""
    weights, biases = (part.detach() for part in heads)
    return torch.einsum("pbf,qcf->qpbc", phi, weights) + biases[:, None, None]


def slopes(heads: tuple[Tensor, Tensor], phi: Tensor, of_class: Tensor) -> Tensor:
    """Return the gradient (E, outputs, features) of each environment's risk by the weights of its head."""
    delta = residual(predictions((heads[0].detach(), heads[1].detach()), phi), of_class)
    return torch.einsum("ebc,ebf->ecf", delta, phi) / phi.shape[1]


def class_targets(y: Tensor, prediction: Tensor) -> Tensor:
    """Return what probabilities should be: (E, B, classes), or (E, B, 1) of class 1."""
    outputs = prediction.shape[-1]
    return y[..., None].to(prediction.dtype) if outputs == 1 else one_hot(y, outputs, prediction.dtype)


def probabilities(logits: Tensor) -> Tensor:
    """Return the probabilities (..., classes), or (..., 1) of class 1."""
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


def residual(logits: Tensor, of_class: Tensor) -> Tensor:
    """Return the derivative of each example's loss by its logits."""
    return probabilities(logits) - of_class


def _put(present: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Put the rows of the present environments (E, ...) in the place of those of all (all, ...)."""
    spread = torch.einsum("ea,e...->a...", present, new.detach())
    rest = (1 - present.sum(0)).reshape(-1, *[1] * (new.ndim - 1))
    return spread + rest * old
