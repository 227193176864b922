"""A linear model, for problems whose answer is a vector of coefficients."""

from typing import ClassVar

import torch
from torch import nn

from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting


@register_backbone("linear")
class Linear(Backbone):
    """x W + b. Its representation is the input, or with `representation` a linear map of it."""

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    bias: bool = setting(True, "whether there is a b")
    initial_deviation: float | None = setting(
        None, "standard deviation of the first weights; null draws them from U(-1/√D, 1/√D) as torch does", ge=0
    )

    representation: bool = setting(
        False, "x Φ w instead, with Φ (D, D) the identity at first and w = 1 for ever, as in the IRM paper's chain"
    )

    def build(self, problem: Problem) -> nn.Module:
        size = torch.Size(problem.input_shape).numel()
        if self.representation:
            return _representation(size, problem.task.outputs)
        head = nn.Linear(size, problem.task.outputs, bias=self.bias)
        if self.initial_deviation is not None:
            nn.init.normal_(head.weight, std=self.initial_deviation)
        return FeaturesAndHead(nn.Flatten(), head)


def _representation(size: int, outputs: int) -> nn.Module:
    phi, head = nn.Linear(size, size, bias=False), nn.Linear(size, outputs, bias=False)
    nn.init.eye_(phi.weight)
    nn.init.ones_(head.weight).requires_grad_(False)
    return FeaturesAndHead(nn.Sequential(nn.Flatten(), phi), head)
