"""LfF: weigh examples by how hard a network that learns what is easy finds them ("Learning from Failure").

Nam, Cha, Ahn, Lee, Shin (2020), arXiv 2007.02561. A biased network b is trained beside the network f, with the
generalised cross-entropy, whose gradient is that of the cross-entropy ℓ times p_y^q, so that it follows examples which
it finds easy; f is trained on those that b finds hard:

    biased:     mean q p_y(b)^q ℓ(b(x), y)    no gradient through the factor
    debiased:   mean w ℓ(f(x), y)             w = ℓ(b(x), y) / (ℓ(b(x), y) + ℓ(f(x), y) + 1e-8), a constant

Only f predicts. The factor q, the default and the search range are SubpopBench's. Deviation, as there: losses in w are
those of the step, where the authors take their moving means divided by the largest of each class. A step trains two
networks.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from invbench.core.data import Batch, Problem
from invbench.core.hooks import LossChange, LossFn, MappableNetwork, SecondBackbone
from invbench.core.method import Outputs, State, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import Uniform, setting

LEAST = 1e-8


@register_method("lff")
class LfF(LossChange, MappableNetwork, SecondBackbone):
    """Train on what a network beside this one, which follows what is easy, gets wrong."""

    display_name: ClassVar[str] = "LfF"
    requires: ClassVar[tuple[str, ...]] = ("classification",)

    exponent: float = setting(
        0.7,
        "q, how much more easy examples count for the biased network",
        gt=0,
        le=1,
        search=Uniform(0.05, 0.95),
        fusable=True,
    )

    def build_of_two(self, model: nn.Module, second: nn.Module, problem: Problem) -> nn.Module:
        return Beside(model, second)

    def losses(self, loss: LossFn, outputs: Outputs, batch: Batch, state: State) -> Tensor:
        biased, debiased = loss(outputs.further["biased"], batch.y), loss(outputs.prediction, batch.y)
        weights = (biased / (biased + debiased + LEAST)).detach()
        easy = torch.exp(-self.exponent * biased).detach()
        # Its parameters are in no other term, so that the sum trains both.
        return weights * debiased + self.exponent * easy * biased


class Beside(nn.Module):
    """A network, and a biased one beside it that is left out in evaluation."""

    def __init__(self, network: nn.Module, biased: nn.Module) -> None:
        super().__init__()
        self.network, self.biased = network, biased

    def forward(self, x: Tensor) -> Outputs:
        outputs = as_outputs(self.network(x))
        if not (self.training or torch.is_grad_enabled()):
            return outputs
        return outputs._replace(further={**outputs.further, "biased": as_outputs(self.biased(x)).prediction})
