"""Base of objectives "risk plus weight times penalty": the weight, its schedule, and common terms.

    objective(step) = s (mean_e R_e + μ P),        λ(step) = `weight_before` for the first `anneal_steps`, then `weight`

    convention    μ            s               used by
    plain         λ            1               DomainBed
    rescaled      λ            1 / max(λ, 1)   the coloured-MNIST code of IRM and V-REx (weight decay is rescaled too)
    divided       λ            1 / λ           R / λ + P: adaptive regularisation's err_strength = 1 / λ
    convex        λ / (1 - λ)  1 - λ           (1 - λ) R + λ P: the linear unit tests

With Adam, s matters only through its ε and where λ jumps: a smaller s then keeps the size of the moments.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor

from invbench.core.hooks import OptimizerRestarts, ScaledObjective
from invbench.core.method import Outputs, State
from invbench.core.settings import LogUniform, ShareOfSteps, is_zero, setting
from invbench.errors import UserError
from invbench.tensors import scalar

Convention = Literal["plain", "rescaled", "divided", "convex"]
ANNEALING = ShareOfSteps(LogUniform(1 / 5001, 1.0))
"""Search range of `anneal_steps`: DomainBed's 10^U(0, 4) of 5,001 steps, without what is beyond the run."""


class PenaltyMethod(ScaledObjective, OptimizerRestarts):
    """Mean risk plus weight times penalty. A subclass gives the penalty P, `weighted`, in one of two hooks."""

    weight: float = setting(1.0, "λ", ge=0, fusable=True)
    anneal_steps: int = setting(0, "first steps, with `weight_before` in the place of λ", ge=0, fusable=True)
    weight_before: float = setting(1.0, "weight of the penalty during these steps", ge=0, fusable=True)
    convention: Convention = setting(
        "plain", "R + λP; rescaled: that over max(λ, 1); divided: over λ; convex: (1-λ)R + λP"
    )
    reset_optimizer: bool = setting(False, "start the optimiser afresh when the weight changes")

    @model_validator(mode="after")
    def _weights_fit_the_convention(self) -> Self:
        lambdas = (self.weight, self.weight_before) if self.anneal_steps else (self.weight,)
        if self.convention == "convex" and max(lambdas) >= 1:
            raise ValueError("with convention convex the weights must be below 1")
        if self.convention == "divided" and min(lambdas) <= 0:
            raise ValueError("with convention divided the weights must be above 0")
        return self

    def weighted(self, penalty: Tensor, state: State) -> Tensor:
        """Return μ P with the weight of this step."""
        weight = self._weight(state, penalty)
        return (weight / (1 - weight) if self.convention == "convex" else weight) * penalty

    def scale(self, state: State) -> Tensor | float:
        if self.convention == "plain":
            return 1.0
        weight = self._weight(state, torch.zeros((), dtype=torch.float64, device=state["step"].device))
        if self.convention == "convex":
            return 1 - weight
        return 1 / (weight.clamp(min=1) if self.convention == "rescaled" else weight)

    def restarts(self) -> tuple[int, ...]:
        return (self.anneal_steps,) if self.reset_optimizer and self.anneal_steps else ()

    def _weight(self, state: State, like: Tensor) -> Tensor:
        return annealed(state["step"], self.anneal_steps, self.weight_before, self.weight, like)


def annealed(step: Tensor, steps: int, before: float | Tensor, after: float | Tensor, like: Tensor) -> Tensor:
    """Return `before` in the first `steps` steps, `after` from then on, in the type and on the device of `like`."""
    final = scalar(after, like)
    return final if is_zero(steps) else torch.where(step < steps, scalar(before, like), final)


def annealed_rate(state: State, steps: int, before: float | Tensor, after: float | Tensor) -> Tensor:
    """Return the learning rate of a step, one in the first `steps` steps and another from then on (float64)."""
    like = torch.zeros((), dtype=torch.float64, device=state["step"].device)
    return annealed(state["step"], steps, before, after, like)


def squared_distances(rows: Tensor) -> Tensor:
    """Compute the squared distances between every two rows of (N, D): (N, N)."""
    squares = rows.square().sum(1)
    return (squares[:, None] + squares - 2 * rows @ rows.T).clamp(min=0)


def gaussian_kernels(distances: Tensor, gammas: Iterable[float]) -> list[Tensor]:
    """Compute exp(-γ d) of squared distances d for each γ, not below the smallest number with full precision.

    A processor takes fifty times as long for numbers below that.
    """
    return [(-gamma * distances).clamp(min=least_exponent(distances)).exp() for gamma in gammas]


def least_exponent(like: Tensor) -> int:
    """Return the least whole number whose exponential has full precision in the type of `like`."""
    return math.ceil(math.log(torch.finfo(like.dtype).tiny))


def sum_of_kernels(distances: Tensor, gammas: Sequence[float]) -> Tensor:
    """Compute Σ_γ exp(-γ d) of squared distances d, with its first derivative alone.

    The derivative is computed with the values, so that backward passes keep one matrix, not one for each γ.
    """
    with torch.no_grad():
        constant = distances.detach()
        value, slope = torch.zeros_like(constant), torch.zeros_like(constant)
        for gamma, kernel in zip(gammas, gaussian_kernels(constant, gammas), strict=True):
            value, slope = value + kernel, torch.add(slope, kernel, alpha=-gamma)
    return value + slope * (distances - constant)


def loss_gradients(outputs: Outputs) -> Tensor:
    """Return the derivatives of each example's loss by its prediction (E, B, outputs)."""
    if outputs.loss_gradients is None:
        raise ValueError("no loss_gradients: the engine adds them to what a penalty gets")
    return outputs.loss_gradients


def representation(outputs: Outputs, method: str) -> Tensor:
    """Return the input (E, B, features) of the last linear layer. Raises UserError where the network gives none."""
    if outputs.representation is None:
        raise UserError(
            f"{method} needs the representation, which this network does not return; choose another backbone"
        )
    return outputs.representation.flatten(2)
