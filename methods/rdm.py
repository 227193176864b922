"""RDM: match the distribution of the losses in the worst environment to that over all ("Risk Distribution Matching").

Nguyen, Do, Nguyen, Duong, Nguyen, Le (2024), arXiv 2310.18598. With the losses ℓ_ei of the examples, w the environment
with the largest risk, k(a, b) = Σ_γ exp(-γ (a - b)²) for γ = 0.0001, 0.001, ..., 1000, and K_ij the mean kernel between
the losses of two sets, of environment w and of all:

    objective = (1/E) Σ_e R_e + λ (K_ww + K_aa - 2 K_wa) + λ_v [Var(all ℓ) + Var(ℓ_w)]     n - 1 in the denominators

Both weights are 0 in the first `anneal_steps`; then the optimiser starts afresh with `learning_rate_after`. Defaults
and search ranges are DomainBed's. A step costs memory of (E B)² numbers. Deviations: none.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.penalty import PenaltyMethod, annealed, annealed_rate, squared_distances, sum_of_kernels
from invbench.core.data import Batch
from invbench.core.hooks import LearningRateChange
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import ShareOfSteps, Uniform, setting
from invbench.core.task import one_hot

GAMMAS = (0.0001, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)


@register_method("rdm")
class RDM(LearningRateChange, PenaltyMethod):
    """Match the losses of the worst environment to those of all, as distributions."""

    display_name: ClassVar[str] = "RDM"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(5.0, "λ", ge=0, search=Uniform(0.1, 10), fusable=True)
    variance_weight: float = setting(0.004, "λ_v", ge=0, search=Uniform(0.001, 0.007), fusable=True)
    anneal_steps: int = setting(
        1500, "first steps, without penalty", ge=0, search=ShareOfSteps(Uniform(800 / 5001, 2700 / 5001)), fusable=True
    )
    weight_before: float = setting(0.0, "weight of the first penalty during these steps", ge=0, fusable=True)
    learning_rate_after: float = setting(
        1.5e-5, "step size from then on", gt=0, search=Uniform(8e-6, 2e-5), fusable=True
    )
    reset_optimizer: bool = setting(True, "start the optimiser afresh when the weight changes")

    @property
    def min_examples(self) -> int:
        return 2

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        losses = example_losses(outputs)
        is_worst = one_hot(risks.argmax(), len(risks), losses.dtype)  # (E,)
        worst = (is_worst[:, None] * losses).sum(0)
        variance_weight = annealed(state["step"], self.anneal_steps, 0.0, self.variance_weight, losses)
        variances = losses.flatten().var() + worst.var()
        return self.weighted(discrepancy(losses, is_worst), state) + variance_weight * variances, state

    def learning_rate(self, rate: float | Tensor, state: State) -> float | Tensor:
        return annealed_rate(state, self.anneal_steps, rate, self.learning_rate_after)


def discrepancy(losses: Tensor, is_worst: Tensor) -> Tensor:
    """Compare by the kernel the losses (E, B) of one environment, of which (E,) is 1, with those of all."""
    environments, examples = losses.shape
    distances = squared_distances(losses.reshape(-1, 1))
    kernel = sum_of_kernels(distances, GAMMAS)
    contrast = (is_worst - 1 / environments)[:, None].expand_as(losses).flatten() / examples
    return (contrast * (kernel @ contrast)).sum()


def example_losses(outputs: Outputs) -> Tensor:
    """Return the loss of each example (E, B)."""
    if outputs.losses is None:
        raise ValueError("no losses: the engine adds them to what a penalty gets")
    return outputs.losses
