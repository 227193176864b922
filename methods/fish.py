"""Fish: align the environments' gradients by walking through them ("Gradient Matching for Domain Generalization").

Shi, Seely, Torr, Siddharth, Hannun, Usunier, Synnaeve (2021), arXiv 2104.09937, algorithm 1. A step is one update of
the trainer's optimiser per environment, one after another, and then a move of a part of the way:

    θ̃ ← θ;   for every environment e: θ̃ ← update(θ̃, ∇R_e(θ̃));   θ ← θ + ε (θ̃ - θ)

To first order this maximises the inner products Σ_{i≠j} ∇R_i·∇R_j beside minimising the risks. ε = 1 is ERM by turns.
The optimiser keeps its moments from step to step, as in DomainBed, whose default and search range these are.
Deviations: the authors divide ε by the number of environments in some of their code (`rate` is theirs times that), and
their pre-training by ERM is not part of this.
"""

from typing import ClassVar

from torch import Tensor

from invbench.core.hooks import UpdateSchedule
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting


@register_method("fish")
class Fish(UpdateSchedule):
    """Follow the environments one after another, then go a part of the way."""

    display_name: ClassVar[str] = "Fish"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    one_per_environment: ClassVar[bool] = True

    rate: float = setting(0.5, "ε, part of the way", gt=0, le=1, search=Choice((0.05, 0.1, 0.5)), fusable=True)

    def finish_step(self, before: Tensor, after: Tensor) -> Tensor:
        return before + self.rate * (after - before)
