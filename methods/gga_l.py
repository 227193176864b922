"""GGA-L: noise in the gradient, the larger the less the environments' gradients agree (Gradient-Guided Annealing).

Ballas, Diou (2025), "Gradient-Guided Annealing for Domain Generalization", CVPR, arXiv 2502.20162. With the gradients
g_e over all parameters, s the mean over pairs of environments of their cosines, and z standard normal in each element:

    g = (1/E) Σ_e g_e + γ (1 - s) z

Default and search range are around the authors' value. Deviations: none; their text has uniform noise, their code
normal noise, as here.
"""

from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.draws import normal
from invbench.core.hooks import RandomDraws
from invbench.core.method import Gradients, Method, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting


@register_method("gga_l")
class GGAL(RandomDraws, Method):
    """Add noise to the gradient where environments disagree."""

    display_name: ClassVar[str] = "GGA-L"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    scale: float = setting(1e-3, "γ", ge=0, search=LogUniform(1e-5, 1e-2), fusable=True)

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        cosines = pairwise_cosines(risk_grads)
        size = self.scale * (1 - cosines.mean())
        sizes = [g[0].numel() for g in risk_grads.values()]
        noise = normal(state, 0, torch.arange(sum(sizes), device=env.device), like=cosines).split(sizes)
        return {
            name: g.mean(0) + penalty_grad[name] + size * z.reshape(g.shape[1:])
            for (name, g), z in zip(risk_grads.items(), noise, strict=True)
        }, state


def pairwise_cosines(gradients: Gradients) -> Tensor:
    """Compute the cosines (pairs,) between the gradients (E, *param) of every two environments, over all parameters."""
    gram = torch.stack([g.flatten(1) @ g.flatten(1).T for g in gradients.values()]).sum(0)
    norms = gram.diagonal().sqrt().clamp(min=1e-8)
    i, j = torch.triu_indices(len(gram), len(gram), 1, device=gram.device)
    cosines: Tensor = (gram / norms[:, None] / norms)[i, j]
    return cosines
