"""A linear model, for problems whose answer is a vector of coefficients."""

from typing import ClassVar

import torch
from torch import nn

from invbench.backbone import Backbone, FeaturesAndHead
from invbench.problem import Problem
from invbench.registry import register_backbone
from invbench.settings import setting


@register_backbone("linear")
class Linear(Backbone):
    """x W + b. Its representation is the input."""

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    bias: bool = setting(True, "whether there is a b")
    initial_deviation: float | None = setting(
        None, "standard deviation of the first weights; null draws them from U(-1/√D, 1/√D) as torch does", ge=0
    )

    def build(self, problem: Problem) -> nn.Module:
        size = torch.Size(problem.input_shape).numel()
        head = nn.Linear(size, problem.task.outputs, bias=self.bias)
        if self.initial_deviation is not None:
            nn.init.normal_(head.weight, std=self.initial_deviation)
        return FeaturesAndHead(nn.Flatten(), head)
