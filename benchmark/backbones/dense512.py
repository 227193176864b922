"""The fully connected classifier of Tan's `invariant_reps`: five layers of 512 units."""

from typing import ClassVar

from torch import nn

from invbench.backbones._layers import dense_network
from invbench.core.backbone import Backbone
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting


@register_backbone("dense512")
class Dense512(Backbone):
    """`depth` hidden layers of `width` units: linear, ELU, batch norm; then a linear head. Xavier-uniform weights.

    Deviation: their batch norm is "renormalised" with running means in training; this is the plain one.
    """

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    width: int = setting(512, "units in each hidden layer", ge=1)
    depth: int = setting(5, "hidden layers", ge=1)

    def build(self, problem: Problem) -> nn.Module:
        return dense_network(problem, self.width, self.depth, lambda: (nn.ELU(), nn.BatchNorm1d(self.width)))
