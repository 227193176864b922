"""EQRM: minimise a high quantile of the risk over environments, as if these were drawn from a distribution.

Eastwood, Robey, Singh, von Kügelgen, Hassani, Pappas, Schölkopf (2022), "Probable Domain Generalization via Quantile
Risk Minimization", arXiv 2207.09944, algorithm 1. With the risks R_e of E environments, Φ the standard normal's
distribution function:

    F(t) = (1/E) Σ_e Φ((t - R_e) / h),   h = 1.06 s E^(-1/5),   s² = Var_e(R_e)  (E - 1 in the denominator)
    objective = F⁻¹(α)

α = 1/2 is near the mean, α → 1 the worst environment. `estimate: empirical` takes the quantile of the risks themselves,
interpolated linearly. In the first `burn_in` steps the objective is the mean; then the optimiser starts afresh with
`learning_rate_after`, as in DomainBed, whose defaults and search ranges these are.

F⁻¹ is found by search, and its gradient by the implicit function theorem. Deviations: DomainBed differentiates the
halvings of its search, which gives another gradient: by the smallest risk, the largest one and h alone. Equal risks are
divided by 0 there; here they are their own quantile.
"""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.special import ndtr

from invbench.components.penalty import annealed_rate
from invbench.core.hooks import LearningRateChange, OptimizerRestarts
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, ShareOfSteps, Uniform, setting
from invbench.tensors import scalar

TINY = 1e-20
"""Added to the variance of the risks, so that equal ones have a gradient."""
ROUNDS, POINTS = 4, 257
"""Each round of the search divides the interval by POINTS - 1."""


@register_method("eqrm")
class EQRM(LearningRateChange, OptimizerRestarts):
    """Minimise a quantile of the environments' risks."""

    display_name: ClassVar[str] = "EQRM"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    quantile: float = setting(0.75, "α", gt=0, lt=1, search=Uniform(0.5, 0.99), fusable=True)
    burn_in: int = setting(
        2500,
        "first steps, of the mean risk",
        ge=0,
        search=ShareOfSteps(LogUniform(10**2.5 / 5001, 10**3.5 / 5001)),
        fusable=True,
    )
    learning_rate_after: float = setting(
        1e-6, "step size from then on", gt=0, search=LogUniform(1e-7, 1e-5), fusable=True
    )
    estimate: Literal["kernel", "empirical"] = setting("kernel", "of the distribution of risks")

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        quantile = kernel_quantile(risks, self.quantile) if self.estimate == "kernel" else self._empirical(risks)
        return torch.where(state["step"] < self.burn_in, risks.mean(), quantile), state

    def restarts(self) -> tuple[int, ...]:
        return (self.burn_in,) if self.burn_in else ()

    def learning_rate(self, rate: float | Tensor, state: State) -> float | Tensor:
        return annealed_rate(state, self.burn_in, rate, self.learning_rate_after)

    def _empirical(self, risks: Tensor) -> Tensor:
        ordered = risks.sort().values
        position = scalar(self.quantile * (len(risks) - 1), risks)
        weights = (1 - (torch.arange(len(risks), device=risks.device) - position).abs()).clamp(min=0)
        return weights @ ordered


def kernel_quantile(risks: Tensor, alpha: float | Tensor) -> Tensor:
    """Compute the quantile of risks (E,) by a kernel estimate of their distribution."""
    count = len(risks)
    mean = risks.mean()
    deviation = ((risks - mean).square().sum() / max(count - 1, 1) + TINY).sqrt()
    width = 1.06 * deviation * count**-0.2
    away = (risks - mean) / width  # in widths, which are bounded whatever the risks are
    near = _search(away.detach(), scalar(alpha, risks))
    density = (-(near - away.detach()).square() / 2).exp().mean() / math.sqrt(2 * math.pi)
    # Newton's step is of rounding's size, and has the gradient of the implicit function.
    position = near - (ndtr(near - away).mean() - alpha) / density
    quantile: Tensor = mean + width * position
    return quantile


@torch.no_grad()
def _search(away: Tensor, alpha: Tensor) -> Tensor:
    """Find where the mean of Φ(t - away) is alpha, for away (E,)."""
    reach = torch.special.ndtri(alpha)
    low, high = away.min() + reach, away.max() + reach
    grid = torch.arange(POINTS, dtype=away.dtype, device=away.device) / (POINTS - 1)
    for _ in range(ROUNDS):
        points = low + (high - low) * grid
        below = (ndtr(points[:, None] - away).mean(1) < alpha).sum().clamp(1, POINTS - 1)
        step = (high - low) / (POINTS - 1)
        low = low + (below - 1) * step
        high = low + step
    middle: Tensor = (low + high) / 2
    return middle
