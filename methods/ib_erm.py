"""IB-ERM: the information bottleneck as a variance.

Ahuja, Caballero, Zhang, Gagnon-Audet, Bengio, Mitliagkas, Rish (2021), "Invariance Principle Meets Information
Bottleneck for Out-of-Distribution Generalization", arXiv 2106.06607. With the variance over the
examples of an environment (B - 1 in the denominator), element by element of the representation φ (D):

    objective = (1/E) Σ_e R_e + λ (1/E) Σ_e mean_d Var(φ_ed)

In the linear unit tests the authors take the prediction for φ: `on: prediction`. Defaults and search ranges are
DomainBed's; λ is 0 before `anneal_steps`. Deviation: on the unit tests the authors' IB-ERM takes the variance over all
environments' examples together.
"""

from typing import ClassVar, Literal

from torch import Tensor

from invbench.components.penalty import ANNEALING, PenaltyMethod, representation
from invbench.core.data import Batch
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting

On = Literal["representation", "prediction"]


@register_method("ib_erm")
class IBERM(PenaltyMethod):
    """Penalise the variance of the representation."""

    display_name: ClassVar[str] = "IB-ERM"
    requires: ClassVar[tuple[str, ...]] = ("environments",)

    weight: float = setting(100.0, "λ", ge=0, search=LogUniform(1e-1, 1e5), fusable=True)
    anneal_steps: int = setting(
        500, "first steps, with `weight_before` in the place of λ", ge=0, search=ANNEALING, fusable=True
    )
    weight_before: float = setting(0.0, "weight of the penalty during these steps", ge=0, fusable=True)
    reset_optimizer: bool = setting(True, "start the optimiser afresh when the weight changes")
    on: On = setting("representation", "whose variance; a linear model's representation is its input")

    @property
    def min_examples(self) -> int:
        return 2

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weighted(mean_variance(outputs, self.on, "ib_erm"), state), state


def mean_variance(outputs: Outputs, on: On, method: str) -> Tensor:
    """Compute the mean over environments and elements of the variance over examples."""
    phi = outputs.prediction if on == "prediction" else representation(outputs, method)
    return phi.var(1).mean()
