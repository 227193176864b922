"""The fully connected classifier of Tan's `invariant_reps`: five layers of 512 units."""

from typing import ClassVar

import torch
from torch import nn

from invbench.backbone import Backbone, FeaturesAndHead
from invbench.problem import Problem
from invbench.registry import register_backbone
from invbench.settings import setting


@register_backbone("dense512")
class Dense512(Backbone):
    """`depth` hidden layers of `width` units: linear, ELU, batch norm; then a linear head. Xavier-uniform weights.

    Deviation: their batch norm is "renormalised" with running means in training; this is the plain one.
    """

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    width: int = setting(512, "units in each hidden layer", ge=1)
    depth: int = setting(5, "hidden layers", ge=1)

    def build(self, problem: Problem) -> nn.Module:
        size = torch.Size(problem.input_shape).numel()
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs in (size, *[self.width] * (self.depth - 1)):
            layers += [xavier(nn.Linear(inputs, self.width)), nn.ELU(), nn.BatchNorm1d(self.width)]
        return FeaturesAndHead(nn.Sequential(*layers), xavier(nn.Linear(self.width, problem.task.outputs)))


def xavier(layer: nn.Linear) -> nn.Linear:
    """The layer with Xavier-uniform weights and biases of 0."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
