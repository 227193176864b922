"""GGA: begin a step where the environments' gradients agree better (Gradient-Guided Annealing).

Ballas, Diou (2025), "Gradient-Guided Annealing for Domain Generalization", CVPR, arXiv 2502.20162. In each step from
`first_step` to before `last_step`, K candidates θ + u are tried one after another, u uniform on (-r, r) in every
parameter of the body. With s(θ) the smallest cosine between the gradients of two environments, and R̄ the mean risk, a
candidate becomes the best one where s is above that of the best so far, and R̄ is not `tolerance` above it:

    s(θ + u) > s(θ_best),   R̄(θ + u) < R̄(θ_best) + 0.1

The step then begins at θ_best. Other steps are ERM. Defaults are the authors', for fine-tuning a pretrained network.
Deviation: their code puts θ back after a candidate was taken only, so that those that are not taken add up to a walk;
their text, and this, try every candidate around θ.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from invbench.components.draws import uniform
from invbench.core.backbone import is_of_head
from invbench.core.data import Batch
from invbench.core.hooks import InnerStep, InnerSteps, RandomDraws, StepFn
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.methods.gga_l import pairwise_cosines


@register_method("gga")
class GGA(RandomDraws, InnerSteps):
    """Search nearby for parameters at which environments agree, then make the step from there."""

    display_name: ClassVar[str] = "GGA"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    one_environment_at_a_time: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {
        "method.candidates": 3,
        "method.first_step": 0,
        "method.last_step": 4,
        "method.radius": 1e-3,
    }

    candidates: int = setting(250, "K, of each step", ge=1)
    radius: float = setting(1e-5, "r", gt=0, search=LogUniform(1e-6, 1e-3), fusable=True)
    tolerance: float = setting(0.1, "by which the risk may be above the best candidate's, in nats", ge=0, fusable=True)
    first_step: int = setting(100, "that searches", ge=0)
    last_step: int = setting(200, "before which the search ends", ge=1)

    @model_validator(mode="after")
    def _ends_after_it_begins(self) -> Self:
        if self.first_step >= self.last_step:
            raise ValueError(f"first_step ({self.first_step}) must be below last_step ({self.last_step})")
        return self

    def is_active(self, step: int) -> bool:
        return self.first_step <= step < self.last_step

    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        body = [name for name in parameters if not is_of_head(name)]
        sizes = [parameters[name].numel() for name in body]
        elements = torch.arange(sum(sizes), device=batch.x.device)
        here = at_all(step, parameters, batch)
        best, agreement, theta = here, smallest_cosine(here), dict(parameters)
        for candidate in range(self.candidates):
            noise = self.radius * (2 * uniform(state, candidate, elements, like=batch.x) - 1)
            moved = dict(parameters)
            for name, part in zip(body, noise.split(sizes), strict=True):
                moved[name] = parameters[name] + part.reshape(parameters[name].shape)
            there = at_all(step, moved, batch)
            cosine = smallest_cosine(there)
            is_better = (cosine > agreement) & (there.objective < best.objective + self.tolerance)
            agreement = torch.where(is_better, cosine, agreement)
            theta = {name: torch.where(is_better, moved[name], value) for name, value in theta.items()}
            best = InnerStep(
                {name: torch.where(is_better, there.gradients[name], g) for name, g in best.gradients.items()},
                torch.where(is_better, there.objective, best.objective),
                torch.where(is_better, there.risks, best.risks),
            )
        means = {name: g.mean(0) for name, g in best.gradients.items()}
        return InnerStep(means, best.objective, best.risks, theta), state


def at_all(step: StepFn, parameters: Mapping[str, Tensor], batch: Batch) -> InnerStep:
    """Return the gradients (E, *param) of all environments, the mean risk, and the risks."""
    each = [step(parameters, batch.environments(slice(e, e + 1))) for e in range(len(batch.env))]
    risks = torch.cat([one.risks for one in each])
    return InnerStep(
        {name: torch.stack([one.gradients[name] for one in each]) for name in parameters}, risks.mean(), risks
    )


def smallest_cosine(steps: InnerStep) -> Tensor:
    """Return the smallest cosine between the gradients of two environments."""
    return pairwise_cosines(steps.gradients).min()
