"""SelfReg: examples of one class should have alike logits and representations.

Kim, Yoo, Park, Kim, Lee (2021), "SelfReg: Self-supervised Contrastive Regularization for Domain Generalization", arXiv
2104.09841, in DomainBed's form. With the representation φ, the logits z, a projection p = P(φ) that is trained with the
network, two random examples j, k of the same class as each example i, and λ ~ Beta(1/2, 1/2), drawn once a step:

    individual      A = mean (z_i - z_j)² + 0.3 mean (φ_i - p_j)²
    heterogeneous   B = mean (z_i - λ z_j - (1 - λ) z_k)² + 0.3 mean (φ_i - λ p_j - (1 - λ) p_k)²

    objective = R + min(R, 1) (λ A + (1 - λ) B),   R = (1/E) Σ_e R_e,   no gradient through min(R, 1)

P has layers F → H → H → F with batch normalisation after each and ReLU after the first two; H is 2F, and F where F is
2048. Deviations: in DomainBed P keeps its first weights (its optimiser is made ahead of it), the authors train it. j
and k are the next ones in random rings of the class, never i itself where the class has another example; DomainBed's
orders may leave an example where it is.
"""

import math
from typing import ClassVar

from torch import Tensor, nn

from invbench.components.draws import of_examples, partners, uniform
from invbench.components.penalty import representation
from invbench.core.backbone import network_with_head
from invbench.core.data import Batch, Problem
from invbench.core.hooks import MappableNetwork, RandomDraws
from invbench.core.method import Outputs, State, as_outputs
from invbench.core.registry import register_method

FIRST, SECOND, SHARE = range(3)
"""Purposes of the random numbers of a step."""
OF_FEATURES = 0.3


@register_method("selfreg")
class SelfReg(RandomDraws, MappableNetwork):
    """Pull logits and representations of one class together."""

    display_name: ClassVar[str] = "SelfReg"
    requires: ClassVar[tuple[str, ...]] = ("classification",)
    couples_rows: ClassVar[bool] = True

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        _, network = network_with_head(model)
        return Projected(model, network.head.in_features)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi, z = representation(outputs, "selfreg").flatten(0, 1), outputs.prediction.flatten(0, 1)
        projection = outputs.further["projection"].flatten(0, 1)
        label = batch.y.flatten(0, 1).long()
        keys = [of_examples(state, purpose, batch.env, batch.y.shape[1], z).flatten() for purpose in (FIRST, SECOND)]
        j, k = (partners(key, label) for key in keys)
        share = (math.pi / 2 * uniform(state, SHARE, like=z)).sin().square()  # Beta(1/2, 1/2) is the arcsine law

        def mixed(values: Tensor) -> Tensor:
            return share * values[j] + (1 - share) * values[k]

        individual = distance(z, z[j]) + OF_FEATURES * distance(phi, projection[j])
        heterogeneous = distance(z, mixed(z)) + OF_FEATURES * distance(phi, mixed(projection))
        scale = risks.mean().detach().clamp(max=1)
        return scale * (share * individual + (1 - share) * heterogeneous), state


class Projected(nn.Module):
    """A network, and the projection of its representation."""

    def __init__(self, model: nn.Module, features: int) -> None:
        super().__init__()
        hidden = features if features == 2048 else 2 * features
        self.model = model
        self.projection = nn.Sequential(
            *(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
            *(nn.Linear(hidden, features), nn.BatchNorm1d(features)),
        )

    def forward(self, x: Tensor) -> Outputs:
        outputs = as_outputs(self.model(x))
        if outputs.representation is None:  # a network with a head gives one
            raise TypeError("the network returns no representation")
        return outputs._replace(further={**outputs.further, "projection": self.projection(outputs.representation)})


def distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean squared difference of two tensors."""
    return (first - second).square().mean()
