"""The small convolutional network of Augerino's Mario-Iggy and Olivetti experiments."""

from typing import ClassVar

from torch import nn

from invbench.backbones._layers import convolution
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting


@register_backbone("simple_conv")
class SimpleConv(Backbone):
    """Four 3x3 convolutions of k, 2k, 4k, 8k channels, max-pooling after each but the first, then a global maximum.

    arXiv 2010.11882, released code: k = 32, 390,404 parameters for 3 channels and 4 classes. The last pooling is over
    4x4 pixels there, which is the whole map of a 32x32 image; here it is the whole map of any image.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    width: int = setting(32, "channels of the first convolution", ge=1)

    def build(self, problem: Problem) -> nn.Module:
        k = self.width
        layers = [*convolution(problem.input_shape[0], k)]
        for channels in (k, 2 * k, 4 * k):
            layers += [*convolution(channels, 2 * channels), nn.MaxPool2d(2)]
        features = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten())
        return FeaturesAndHead(features, nn.Linear(8 * k, problem.task.outputs))
