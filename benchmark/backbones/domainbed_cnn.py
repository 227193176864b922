"""DomainBed's network for digits: four convolutions, each followed by ReLU and group normalisation."""

from typing import ClassVar

from torch import nn

from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting

GROUPS = 8


@register_backbone("domainbed_cnn")
class DomainBedCNN(Backbone):
    """Four 3x3 convolutions of k, 2k, 2k, 2k channels, the second with stride 2, and the mean over the map.

    Each has padding 1, then ReLU, then group norm of 8 groups (Gulrajani & Lopez-Paz 2021, arXiv 2007.01434, released
    code, `MNIST_CNN`, k = 64): 371,136 parameters on two channels without the head, which is linear on 2k features.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    width: int = setting(64, "k, channels of the first convolution", ge=GROUPS, multiple_of=GROUPS)

    def build(self, problem: Problem) -> nn.Module:
        layers: list[nn.Module] = []
        inputs, k = problem.input_shape[0], self.width
        for outputs, stride in ((k, 1), (2 * k, 2), (2 * k, 1), (2 * k, 1)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, padding=1), nn.ReLU(), nn.GroupNorm(GROUPS, outputs)]
            inputs = outputs
        features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return FeaturesAndHead(features, nn.Linear(inputs, problem.task.outputs))
