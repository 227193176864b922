"""Deep Sets: a network on point clouds that does not care for the order of the points."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from invbench.components.point_clouds import CHARGE_FEATURES, charge_features, points
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import Choice, setting


@register_backbone("deep_sets")
class DeepSets(Backbone):
    """ρ(Σ φ(point) / √n), the sum over the n points that are there (Zaheer et al. 2017, arXiv 1703.06114).

    A point is its position relative to the mean position and one-hot(species) ⊗ (1, q/9, (q/9)²), q its charge
    (Cormorant's features). φ and ρ have two hidden layers each. Shifts and the order of the points change nothing;
    rotations do: the plain baseline that invariance methods start from.
    """

    accepts: ClassVar[tuple[str, ...]] = ("point_cloud",)

    width: int = setting(256, "units in each hidden layer", ge=1, search=Choice((128, 256, 512)))

    def build(self, problem: Problem) -> nn.Module:
        return FeaturesAndHead(_Features(self.width), nn.Linear(self.width, problem.task.outputs))


class _Features(nn.Module):
    """Point clouds (N, n, 4) -> (N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.point = _two_layers(3 + CHARGE_FEATURES, width)
        self.cloud = _two_layers(width, width)

    def forward(self, x: Tensor) -> Tensor:
        positions, charges, mask = points(x)
        present = mask.to(x.dtype)[..., None]
        count = present.sum(-2, keepdim=True)
        centred = (positions - (positions * present).sum(-2, keepdim=True) / count) * present
        features = torch.cat([centred, charge_features(charges)], dim=-1)
        pooled = (self.point(features) * present).sum(-2)
        cloud: Tensor = self.cloud(pooled / count[..., 0, :].sqrt())
        return cloud


def _two_layers(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
