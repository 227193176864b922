"""The nine-layer residual network of the AND-mask paper's CIFAR-10 experiment."""

import math
from typing import ClassVar, Literal

from torch import Tensor, nn

from invbench.core.backbone import Backbone, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.registry import register_backbone
from invbench.core.settings import setting

LOGIT_SCALE = 0.125
GROUPS = 32


@register_backbone("resnet9")
class ResNet9(Backbone):
    """3x3 convolutions of k, 2k, 4k, 8k channels, a residual pair after the second and the last, a global maximum.

    arXiv 2009.00329, released code, from the "fast ResNet" family: k = 64, 6,573,120 parameters; no biases, logits
    times 0.125, no activation after the sums. `norm: batch` is theirs and couples the rows of a batch, which makes
    environment gradients slow; `group` normalises each image by itself, in 32 groups of channels or fewer.
    """

    accepts: ClassVar[tuple[str, ...]] = ("image",)

    width: int = setting(64, "channels k of the first convolution", ge=1)
    norm: Literal["batch", "group"] = setting("batch", "after each convolution")

    def build(self, problem: Problem) -> nn.Module:
        k = self.width
        features = nn.Sequential(
            self._unit(problem.input_shape[0], k),
            self._unit(k, 2 * k),
            nn.MaxPool2d(2),
            _Residual(self._unit(2 * k, 2 * k), self._unit(2 * k, 2 * k)),
            self._unit(2 * k, 4 * k),
            nn.MaxPool2d(2),
            self._unit(4 * k, 8 * k),
            nn.MaxPool2d(2),
            _Residual(self._unit(8 * k, 8 * k), self._unit(8 * k, 8 * k)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        return FeaturesAndHead(features, _ScaledLinear(8 * k, problem.task.outputs, bias=False))

    def _unit(self, inputs: int, outputs: int) -> nn.Module:
        norm = nn.BatchNorm2d(outputs) if self.norm == "batch" else nn.GroupNorm(math.gcd(GROUPS, outputs), outputs)
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm, nn.ReLU())


class _Residual(nn.Sequential):
    """x + f(x)."""

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = super().forward(x)
        return x + residual


class _ScaledLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return LOGIT_SCALE * super().forward(x)
