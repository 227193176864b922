"""E(n)-equivariant graph network, in the invariant form that its authors use for molecules."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from invbench.components.point_clouds import CHARGE_FEATURES, charge_features, points
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import Choice, setting


@register_backbone("egnn")
class EGNN(Backbone):
    """Message passing on squared distances (Satorras, Hoogeboom, Welling 2021, arXiv 2102.09844, equations 3 to 8).

    With features h_i of the points, over all pairs i != j:

        m_ij = φ_e(h_i, h_j, |p_i - p_j|²)                     φ: two layers with SiLU
        h_i <- h_i + φ_h(h_i, Σ_j σ(φ_a(m_ij)) m_ij)           σ(φ_a(.)): attention to a pair
        prediction = linear(φ_g(Σ_i φ_o(h_i) / √n))            n points

    Positions stay as they are, as in the authors' QM9 experiment: rotations, reflections, shifts and the order of the
    points change nothing. Deviation: the sum over points is divided by √n.
    """

    accepts: ClassVar[tuple[str, ...]] = ("point_cloud",)

    width: int = setting(128, "features of a point", ge=1, search=Choice((64, 128)))
    depth: int = setting(7, "rounds of messages", ge=1, search=Choice((4, 7)))

    def build(self, problem: Problem) -> nn.Module:
        return FeaturesAndHead(_Features(self.width, self.depth), nn.Linear(self.width, problem.task.outputs))


class _Features(nn.Module):
    """Point clouds (N, n, 4) -> (N, width)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(CHARGE_FEATURES, width)
        self.layers = nn.ModuleList(_Layer(width) for _ in range(depth))
        self.point = _two_layers(width, width)
        self.cloud = nn.Sequential(nn.Linear(width, width), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        positions, charges, mask = points(x)
        present = mask.to(x.dtype)
        others = present[:, :, None] * present[:, None] * (1 - torch.eye(x.shape[-2], dtype=x.dtype, device=x.device))
        difference = positions[:, :, None] - positions[:, None]
        squared = difference.square().sum(-1, keepdim=True)
        h = self.embedding(charge_features(charges))
        for layer in self.layers:
            h = layer(h, squared, others[..., None])
        pooled = (self.point(h) * present[..., None]).sum(-2)
        cloud: Tensor = self.cloud(pooled / present.sum(-1, keepdim=True).sqrt())
        return cloud


class _Layer(nn.Module):
    """One round of messages. The first linear map of φ_e is applied to points, not to pairs: n instead of n² times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.receiver, self.sender = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(1, width, bias=False)
        self.message = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.attention = nn.Sequential(nn.Linear(width, 1), nn.Sigmoid())
        self.update = _two_layers(2 * width, width)

    def forward(self, h: Tensor, squared: Tensor, others: Tensor) -> Tensor:
        """Update features (N, n, width) by squared distances and mask of the pairs (N, n, n, 1)."""
        joint = self.receiver(h)[:, :, None] + self.sender(h)[:, None] + self.distance(squared)
        message = self.message(joint)
        received = (self.attention(message) * message * others).sum(2)
        new: Tensor = h + self.update(torch.cat([h, received], dim=-1))
        return new


def _two_layers(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
