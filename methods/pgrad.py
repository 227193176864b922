"""PGrad: follow the principal directions of a walk through the environments ("Learning Principal Gradients").

Wang, Grigsby, Sekhon, Qi (2023), "PGrad: Learning Principal Gradients for Domain Generalization", ICLR, arXiv
2305.01134. A copy of the network visits all environments three times, in random order, each time with another third
of their examples, by updates of an Adam whose moments last from step to step. With its parameters θ_0, ..., θ_n on the
way, n = 3E, as rows of Θ, centred, v_k the unit directions in parameter space of the largest singular values, and λ_k
the eigenvalues of Θ Θᵀ, in descending order:

    d = θ_0 - θ_n;   v_k ← v_k ‖d‖ sign(v_k·d)
    g = Σ_{k≤4} v_k λ_k / ‖(λ_1, ..., λ_4)‖

The optimiser follows g: the authors' is SGD with a step size of 0.1. Deviations: none.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from invbench.components.draws import uniform
from invbench.core.data import Batch
from invbench.core.hooks import InnerStep, InnerSteps, RandomDraws, StepFn
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting

ROUNDS, DIRECTIONS = 3, 4
BETAS, EPSILON = (0.9, 0.999), 1e-8


@register_method("pgrad")
class PGrad(RandomDraws, InnerSteps):
    """Follow the principal directions of a walk through the environments."""

    display_name: ClassVar[str] = "PGrad"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    one_environment_at_a_time: ClassVar[bool] = True

    inner_learning_rate: float = setting(
        1e-3, "step size of the walk", gt=0, search=LogUniform(10**-4.5, 10**-2.5), fusable=True
    )

    @property
    def min_examples(self) -> int:
        return ROUNDS

    @property
    def uses_moments_only(self) -> bool:
        return False  # thirds of examples have moments of their own

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        size = sum(value.numel() for value in parameters.values())
        zeros = next(iter(parameters.values())).detach().new_zeros(size)
        return {"first": zeros, "second": zeros.clone()}

    def outer_step(
        self, step: StepFn, parameters: Mapping[str, Tensor], batch: Batch, state: State, rate: Tensor
    ) -> tuple[InnerStep, State]:
        environments = len(batch.env)
        first, second = state["first"], state["second"]
        theta = flat(parameters)
        walk, losses = [theta], []
        updates = state["step"] * ROUNDS * environments
        for turn in range(ROUNDS):
            order = uniform(state, turn, batch.env, like=theta).argsort()
            part = third(batch, turn)
            for position in range(environments):
                here = step(shaped(theta, parameters), part.at(order[position : position + 1]))
                losses.append(here.risks)
                g, updates = flat(here.gradients), updates + 1
                first = BETAS[0] * first + (1 - BETAS[0]) * g
                second = BETAS[1] * second + (1 - BETAS[1]) * g * g
                size = self.inner_learning_rate / (1 - BETAS[0] ** updates.double())
                scale = (second / (1 - BETAS[1] ** updates.double()).to(theta)).sqrt() + EPSILON
                theta = theta - size.to(theta) * first / scale
                walk.append(theta)
            if not turn:
                risks = torch.cat(losses).index_select(0, order.argsort())
        gradient = principal_gradient(torch.stack(walk))
        after = {"first": first, "second": second}
        return InnerStep(shaped(gradient, parameters), torch.cat(losses).mean(), risks), state | after


def principal_gradient(walk: Tensor) -> Tensor:
    """Compute g (parameters,) from the parameters on the way (n + 1, parameters)."""
    centred = walk - walk.mean(0)
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values.flip(0)[:DIRECTIONS].clamp(min=0), vectors.flip(1)[:, :DIRECTIONS]
    directions = centred.T @ vectors  # (parameters, directions)
    directions = directions / directions.norm(dim=0).clamp(min=torch.finfo(walk.dtype).tiny)
    way = walk[0] - walk[-1]
    signs = torch.where(way @ directions > 0, 1.0, -1.0).to(walk)
    gradient: Tensor = (
        way.norm() * directions @ (signs * values / values.norm().clamp(min=torch.finfo(walk.dtype).tiny))
    )
    return gradient


def third(batch: Batch, turn: int) -> Batch:
    """Select a third of the examples of every environment."""
    examples = batch.x.shape[1]
    rows = slice(turn * examples // ROUNDS, (turn + 1) * examples // ROUNDS)
    nuisance = None if batch.nuisance is None else batch.nuisance[:, rows]
    return Batch(batch.x[:, rows], batch.y[:, rows], batch.env, nuisance)


def flat(parameters: Mapping[str, Tensor]) -> Tensor:
    """Return all parameters in one vector."""
    return torch.cat([value.flatten() for value in parameters.values()])


def shaped(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut a vector into tensors with the names and shapes of others."""
    parts = vector.split([value.numel() for value in like.values()])
    return {name: part.reshape(value.shape) for (name, value), part in zip(like.items(), parts, strict=True)}
