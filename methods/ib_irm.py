"""IB-IRM: IRMv1 with an information bottleneck.

Ahuja, Caballero, Zhang, Gagnon-Audet, Bengio, Mitliagkas, Rish (2021), "Invariance Principle Meets Information
Bottleneck for Out-of-Distribution Generalization", arXiv 2106.06607:

    objective = (1/E) Σ_e R_e + λ (1/E) Σ_e (∂R_e(w·f)/∂w at w = 1)² + λ_b (1/E) Σ_e mean_d Var(φ_ed)

The terms are those of `irmv1` and `ib_erm`, each with a weight of its own until its number of steps is over: 1 and 0.
Defaults and search ranges are DomainBed's. Deviation: DomainBed estimates the first penalty by a product of halves;
here `estimate` is biased unless set otherwise.
"""

from typing import ClassVar

from torch import Tensor

from invbench.components.penalty import ANNEALING, annealed
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.methods.ib_erm import On, mean_variance
from invbench.methods.irmv1 import IRMv1


@register_method("ib_irm")
class IBIRM(IRMv1):
    """Penalise the gradient by a dummy classifier, and the variance of the representation."""

    display_name: ClassVar[str] = "IB-IRM"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    bottleneck_weight: float = setting(100.0, "λ_b", ge=0, search=LogUniform(1e-1, 1e5), fusable=True)
    bottleneck_anneal_steps: int = setting(500, "first steps, without λ_b", ge=0, search=ANNEALING, fusable=True)
    on: On = setting("representation", "whose variance; a linear model's representation is its input")

    @property
    def min_examples(self) -> int:
        return 2

    @property
    def uses_moments_only(self) -> bool:
        return False

    def restarts(self) -> tuple[int, ...]:
        steps = (self.anneal_steps, self.bottleneck_anneal_steps)
        return tuple(step for step in steps if step) if self.reset_optimizer else ()

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        invariance, state = super().penalty(risks, outputs, batch, state)
        variance = mean_variance(outputs, self.on, "ib_irm")
        weight = annealed(state["step"], self.bottleneck_anneal_steps, 0.0, self.bottleneck_weight, variance)
        return invariance + weight * variance, state
