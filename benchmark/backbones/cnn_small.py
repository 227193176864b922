"""The small convolutional network of Augerino's RotMNIST experiment."""

from typing import ClassVar

from torch import nn

from invbench.backbones._layers import staged_convolutions
from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import Choice, setting


@register_backbone("cnn_small")
class SmallCNN(Backbone):
    """Five 3x3 convolutions with batch norm in three stages of `width` to 2 `width` channels, then global average.

    Stages [1 -> k, k -> k, k -> 2k], [2k -> 2k], [2k -> 2k], max-pooling after the first two, dropout of whole
    channels after each (arXiv 2010.11882, released code: k = 128, 1,628,810 parameters on 28x28 digits).
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    width: int = setting(128, "channels of the first two convolutions, half of the others'", ge=1)
    dropout: float = setting(
        0.3, "probability of dropping a channel in training", ge=0, lt=1, search=Choice((0.0, 0.3))
    )

    def build(self, problem: Problem) -> nn.Module:
        k = self.width
        stages = (problem.input_shape[0], k, k, 2 * k), (2 * k,) * 2, (2 * k,) * 2
        return FeaturesAndHead(staged_convolutions(stages, self.dropout), nn.Linear(2 * k, problem.task.outputs))
