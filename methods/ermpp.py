"""ERM++: ERM that trains the head first, and predicts with the mean of all later weights.

Teterwak, Saito, Tsiligkaridis, Saenko, Plummer (2023), "ERM++: An Improved Baseline for Domain Generalization", arXiv
2304.01973, in DomainBed's form. In the first `head_steps` only the last linear layer learns, with a learning rate of
its own; then everything does, by an optimiser that starts afresh. With the weights θ_t after step t:

    prediction by θ̄_T = mean of θ_t over average_from ≤ t ≤ T

In networks with batch normalisation its statistics are taken anew for θ̄. Defaults and the search range are DomainBed's.
Deviations: its learning rate that falls by the validation loss, with a second run that repeats the course on training
and validation data, is left out; DomainBed takes statistics from a running mean over batches.
"""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor

from invbench.components.penalty import annealed_rate
from invbench.core.backbone import is_of_head
from invbench.core.hooks import (
    Averaging,
    LearningRateChange,
    OptimizerRestarts,
    Update,
    UpdateSchedule,
    WeightAveraging,
)
from invbench.core.method import State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import UserError


@register_method("ermpp")
class ERMPlusPlus(LearningRateChange, OptimizerRestarts, WeightAveraging, UpdateSchedule):
    """Train the head first, then everything, and predict with the mean of the weights."""

    display_name: ClassVar[str] = "ERM++"

    head_steps: int = setting(500, "first steps, of the last linear layer alone", ge=0)
    head_learning_rate: float = setting(
        5e-5, "step size in these steps", gt=0, search=LogUniform(1e-5, 10**-3.5), fusable=True
    )
    average_from: int = setting(599, "step after which the weights are the first to count in the mean", ge=1)

    def averaging(self) -> Averaging:
        return Averaging(self.average_from)

    def restarts(self) -> tuple[int, ...]:
        return (self.head_steps,) if self.head_steps else ()

    def learning_rate(self, rate: float | Tensor, state: State) -> float | Tensor:
        return annealed_rate(state, self.head_steps, self.head_learning_rate, rate)

    def update(self, names: Iterable[str], count: int, step: int) -> Update:
        moving = list(names)
        if step < self.head_steps:
            moving = [name for name in moving if is_of_head(name)]
            if not moving:
                raise UserError("ermpp needs a network with a linear head; choose another backbone")
        return Update(dict.fromkeys(moving, 1.0), count)
