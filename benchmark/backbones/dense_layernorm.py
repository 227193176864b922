"""The fully connected classifier with layer normalisation of Tan's `invariant_reps`."""

from typing import ClassVar

from torch import nn

from invbench.backbones._layers import dense_network
from invbench.core.backbone import Backbone
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting


@register_backbone("dense_layernorm")
class DenseLayerNorm(Backbone):
    """`depth` hidden layers of `width` units: linear, layer norm, ELU; then a linear head. Xavier-uniform weights.

    Every row is treated by itself, so all strategies for environment gradients can be used.
    """

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    width: int = setting(64, "units in each hidden layer", ge=1)
    depth: int = setting(2, "hidden layers", ge=1)

    def build(self, problem: Problem) -> nn.Module:
        return dense_network(problem, self.width, self.depth, lambda: (nn.LayerNorm(self.width), nn.ELU()))
