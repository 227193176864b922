"""Fishr: match the variances of the gradients.

Rame, Dancette, Cord (2022), "Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization", arXiv
2109.02934. With g_i the gradient of example i's loss by the weights and biases of
the last linear layer, and v_e its element-wise population variance over the examples of environment e:

    v̂_e ← γ v̂_e + (1 - γ) v_e,  v̂_e = 0 at first, no gradient through the old one
    objective = (1/E) Σ_e R_e + λ (1/E) Σ_e mean_k (u_ek - ū_k)²,    u_e = v̂_e / (1 - γ),  ū = (1/E) Σ_e u_e

The gradients are known in closed form, δ_i φ_iᵀ and δ_i, with δ the loss gradient and φ the representation, so nothing
has to be extended or hooked: v = mean_i δ² φ² - (mean_i δ φ)². Defaults and search ranges are DomainBed's; λ is 0
before `anneal_steps`. Deviation: the last layer counts as having biases, whether or not it has.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.penalty import PenaltyMethod, loss_gradients, representation
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, ShareOfSteps, Uniform, setting
from invbench.core.task import one_hot


@register_method("fishr")
class Fishr(PenaltyMethod):
    """Match over environments the variance of the last layer's gradients."""

    display_name: ClassVar[str] = "Fishr"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(1000.0, "λ", ge=0, search=LogUniform(10, 1e4), fusable=True)
    anneal_steps: int = setting(
        1500,
        "first steps, with `weight_before` in the place of λ",
        ge=0,
        search=ShareOfSteps(Uniform(0, 1)),
        fusable=True,
    )
    weight_before: float = setting(0.0, "weight of the penalty during these steps", ge=0, fusable=True)
    reset_optimizer: bool = setting(True, "start the optimiser afresh when the weight changes")
    memory: float = setting(
        0.95, "γ, of the running mean of the variances", ge=0, lt=1, search=Uniform(0.9, 0.99), fusable=True
    )

    @property
    def min_examples(self) -> int:
        return 2

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"variances": next(iter(parameters.values())).new_zeros(environments, 1)}

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        new, old = gradient_variances(outputs), state["variances"]
        present = one_hot(batch.env, len(old), new.dtype)  # (E, all environments)
        running = self.memory * (present @ old) + (1 - self.memory) * new
        unbiased = running / (1 - self.memory)
        penalty = (unbiased - unbiased.mean(0)).square().mean()
        kept = old * (1 - present.sum(0))[:, None] + present.T @ running.detach()
        return self.weighted(penalty, state), state | {"variances": kept}


def gradient_variances(outputs: Outputs) -> Tensor:
    """Compute the variance over examples of the loss's gradient by the last layer: (E, weights + biases)."""
    phi = representation(outputs, "fishr")
    delta, phi = loss_gradients(outputs), torch.cat([phi, torch.ones_like(phi[..., :1])], -1)
    count = delta.shape[1]
    mean = torch.einsum("ebc,ebf->ecf", delta, phi) / count
    mean_square = torch.einsum("ebc,ebf->ecf", delta.square(), phi.square()) / count
    return (mean_square - mean.square()).flatten(1)
