"""A fully connected network, as in the AND-mask authors' synthetic experiment."""

from typing import ClassVar

import torch
from torch import nn

from invbench.backbone import Backbone, FeaturesAndHead
from invbench.problem import Problem
from invbench.registry import register_backbone
from invbench.settings import Choice, setting


@register_backbone("mlp")
class MLP(Backbone):
    """`depth` hidden layers of `width` units: linear, (batch norm), LeakyReLU(0.01), (dropout); then a linear head.

    Weights are Kaiming-normal for that slope and biases start at 0.01 (arXiv 2009.00329, released code). Inputs of
    any shape are flattened.
    """

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    width: int = setting(256, "units in each hidden layer", ge=1, search=Choice((128, 256, 512)))
    depth: int = setting(3, "hidden layers; 0 makes the model linear", ge=0)
    batch_norm: bool = setting(False, "normalise each hidden layer over the batch, before the activation")
    dropout: float = setting(0.0, "probability of dropping a hidden unit in training", ge=0, lt=1)

    def build(self, problem: Problem) -> nn.Module:
        size = torch.Size(problem.input_shape).numel()
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(self.depth):
            layers.append(nn.Linear(size, self.width))
            layers += [nn.BatchNorm1d(self.width)] if self.batch_norm else []
            layers.append(nn.LeakyReLU(0.01))
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            size = self.width
        model = FeaturesAndHead(nn.Sequential(*layers), nn.Linear(size, problem.task.outputs))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, a=0.01)
                nn.init.constant_(module.bias, 0.01)
        return model
