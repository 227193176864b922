"""SAM: minimise the largest objective near the parameters ("Sharpness-Aware Minimization").

Foret, Kleiner, Mobahi, Neyshabur (2021), arXiv 2010.01412, algorithm 1. With the objective L of all other parts of
the method, and its gradient over all parameters together:

    ε = ρ ∇L(θ) / ‖∇L(θ)‖,   g = ∇L(θ + ε)

As a method it composes with others: `sam+vrex` takes V-REx's objective at both places, `sam+and_mask` the masked
gradients. ρ = 0 is ERM bit for bit. The default is the authors', the search range that of the SWAD and GGA codes.
Deviations: none; batch normalisation learns from both passes, as where nothing is done about it.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.core.data import Batch
from invbench.core.hooks import InnerStep, InnerSteps, StepFn
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting


@register_method("sam")
class SAM(InnerSteps):
    """Follow the gradient at the worst place nearby."""

    display_name: ClassVar[str] = "SAM"

    radius: float = setting(0.05, "ρ", ge=0, search=Choice((0.01, 0.02, 0.05, 0.1)), fusable=True)

    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        here = step(parameters, batch)
        norm = torch.stack([g.square().sum() for g in here.gradients.values()]).sum().sqrt()
        factor = self.radius / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        worst = step({name: value + factor * here.gradients[name] for name, value in parameters.items()}, batch)
        return here._replace(gradients=worst.gradients), state
