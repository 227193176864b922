"""ARM: a prediction may use what other inputs of its environment look like ("Adaptive Risk Minimization").

Zhang, Marklund, Dhawan, Gupta, Levine, Finn (2021), arXiv 2007.02931, the contextual meta-learner (ARM-CML) in
DomainBed's form. A context network c makes one map of each image; the network f gets the image and the mean of the maps
over B images of the same environment as a further channel:

    f(x_i, (1/B) Σ_j c(x_j))

c has convolutions 5x5 of `width`, `width` and 1 channels with padding 2, batch normalisation and ReLU after the first
two. In training the B images are those of the environment in the step; in evaluation `support` of them, one after
another.

A prediction in evaluation depends on other unlabelled inputs of the test (it is transductive): other methods do not see
these. Deviations: in DomainBed c keeps its first weights (its optimiser is made ahead of it), the authors train it. It
predicts a batch whose size is no multiple of the support as one group; here the last group
of an environment is smaller.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invbench.core.backbone import EnvironmentNetwork
from invbench.core.data import Problem
from invbench.core.hooks import EnvironmentContext, InputChange
from invbench.core.method import Outputs, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import setting

KERNEL = 5


@register_method("arm")
class ARM(InputChange, EnvironmentContext):
    """Add to each image what images of its environment have in common, as a learned channel."""

    display_name: ClassVar[str] = "ARM"
    requires: ClassVar[tuple[str, ...]] = ("image", "environments")
    couples_rows: ClassVar[bool] = True
    small: ClassVar[Mapping[str, Any]] = {"method.support": 8, "method.width": 8}

    width: int = setting(64, "channels of the context network's hidden layers", ge=1)
    support: int = setting(64, "images of an environment that are predicted together in evaluation", ge=1)

    def inputs(self, problem: Problem) -> Problem:
        splits = {}
        for name, split in problem.splits.items():
            channels, *size = split.x.shape[1:]
            splits[name] = replace(split, x=torch.zeros(1).expand(len(split), channels + 1, *size))
        return replace(problem, splits=splits)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        return WithContext(model, problem.input_shape[0], self.width, self.support)


class WithContext(EnvironmentNetwork):
    """A network that gets the mean of a context network's maps over each environment as a further channel."""

    def __init__(self, model: nn.Module, channels: int, width: int, support: int) -> None:
        super().__init__(support)
        self.model = model
        self.context = nn.Sequential(
            *(nn.Conv2d(channels, width, KERNEL, padding=KERNEL // 2), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2), nn.BatchNorm2d(width), nn.ReLU()),
            nn.Conv2d(width, 1, KERNEL, padding=KERNEL // 2),
        )

    def forward(self, x: Tensor, env: Tensor | None = None) -> Outputs:
        environments = 1 if env is None else len(env)
        maps = self.context(x).unflatten(0, (environments, -1))
        mean = maps.mean(1, keepdim=True).expand_as(maps).flatten(0, 1)
        return as_outputs(self.model(torch.cat([x, mean], 1)))
