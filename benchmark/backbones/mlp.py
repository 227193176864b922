"""A fully connected network, as in the AND-mask authors' synthetic experiment."""

from collections.abc import Callable
from typing import ClassVar, Literal

import torch
from torch import nn

from invbench.backbones._layers import xavier
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import Choice, setting

SLOPE = 0.01
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky_relu": lambda: nn.LeakyReLU(SLOPE),
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
}


@register_backbone("mlp")
class MLP(Backbone):
    """`depth` hidden layers of `width` units: linear, (batch norm), activation, (dropout); then a linear head.

    Inputs of any shape are flattened. `initialisation`: `kaiming` is Kaiming-normal for LeakyReLU(0.01) with biases of
    0.01 (arXiv 2009.00329, released code), `xavier` Xavier-uniform with biases of 0 (arXiv 1907.02893, released code).
    """

    accepts: ClassVar[tuple[str, ...]] = ("vector", "image")

    width: int = setting(256, "units in each hidden layer", ge=1, search=Choice((128, 256, 512)))
    depth: int = setting(3, "hidden layers; 0 makes the model linear", ge=0)
    activation: Literal["leaky_relu", "relu", "elu", "tanh"] = setting("leaky_relu", "after each hidden layer")
    initialisation: Literal["kaiming", "xavier"] = setting("kaiming", "of weights and biases")
    batch_norm: bool = setting(False, "normalise each hidden layer over the batch, before the activation")
    dropout: float = setting(0.0, "probability of dropping a hidden unit in training", ge=0, lt=1)

    def build(self, problem: Problem) -> nn.Module:
        size = torch.Size(problem.input_shape).numel()
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(self.depth):
            layers.append(nn.Linear(size, self.width))
            layers += [nn.BatchNorm1d(self.width)] if self.batch_norm else []
            layers.append(ACTIVATIONS[self.activation]())
            layers += [nn.Dropout(self.dropout)] if self.dropout else []
            size = self.width
        model = FeaturesAndHead(nn.Sequential(*layers), nn.Linear(size, problem.task.outputs))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                self._initialise(module)
        return model

    def _initialise(self, layer: nn.Linear) -> None:
        if self.initialisation == "xavier":
            xavier(layer)
        else:
            nn.init.kaiming_normal_(layer.weight, a=SLOPE)
            nn.init.constant_(layer.bias, 0.01)
