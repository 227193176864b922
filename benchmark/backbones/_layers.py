"""Layers that several backbones share."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem


def dense_network(problem: Problem, width: int, depth: int, after: Callable[[], Sequence[nn.Module]]) -> nn.Module:
    """Make a network: flattened inputs, `depth` linear layers of `width` units with `after` behind each, a linear head.

    Weights are Xavier-uniform.
    """
    size = torch.Size(problem.input_shape).numel()
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (size, *[width] * (depth - 1)):
        layers += [xavier(nn.Linear(inputs, width)), *after()]
    return FeaturesAndHead(nn.Sequential(*layers), xavier(nn.Linear(width, problem.task.outputs)))


def xavier(layer: nn.Linear) -> nn.Linear:
    """Give the layer Xavier-uniform weights and biases of 0, and return it."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def convolution(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Make a 3x3 convolution that keeps the size of the image, batch norm, ReLU."""
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()


def staged_convolutions(stages: Sequence[Sequence[int]], dropout: float) -> nn.Sequential:
    """Make stages of convolutions, each given by its channels, then the mean over the map: (N, C, H, W) -> (N, width).

    Max-pooling after each stage but the last, dropout of whole channels after every one.
    """
    layers: list[nn.Module] = []
    for number, stage in enumerate(stages, 1):
        for inputs, outputs in pairwise(stage):
            layers += convolution(inputs, outputs)
        layers += [nn.MaxPool2d(2)] if number < len(stages) else []
        layers.append(nn.Dropout2d(dropout))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
