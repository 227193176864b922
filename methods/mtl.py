"""MTL: classify by an input's representation and the mean of its environment ("Marginal Transfer Learning").

Blanchard, Deshmukh, Dogan, Lee, Scott (2021), "Domain Generalization by Marginal Transfer Learning", arXiv 1711.07910,
in DomainBed's form for networks. With the representation φ and a linear head h on twice as many features:

    m_e ← γ mean_i φ(x_ei) + (1 - γ) m_e,   m_e = 0 at first, no gradient through the old one
    f(x_ei) = h([φ(x_ei), m_e])

In evaluation m is the mean over `support` inputs of the environment, so a prediction depends on other unlabelled inputs
of the test (it is transductive). The default of γ and its search range are DomainBed's.

Deviations: the released code of DomainBed overwrites m by standard normal noise ahead of the head, in training and
evaluation, so that its published numbers are those of noise. `as_released` does the same.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from invbench.core.backbone import EnvironmentNetwork, FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.hooks import EnvironmentContext, MappableNetwork
from invbench.core.method import Outputs
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.errors import UserError


@register_method("mtl")
class MTL(EnvironmentContext, MappableNetwork):
    """Give the head the mean representation of the environment as well."""

    display_name: ClassVar[str] = "MTL"
    requires: ClassVar[tuple[str, ...]] = ("environments",)
    couples_rows: ClassVar[bool] = True
    # No mean that lasts from step to step.
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"method.rate": 1.0}}
    small: ClassVar[Mapping[str, Any]] = {"method.support": 8}

    rate: float = setting(0.99, "γ, of the mean over this step", ge=0, le=1, search=Choice((0.5, 0.9, 0.99, 1.0)))
    support: int = setting(64, "inputs of an environment that are predicted together in evaluation", ge=1)
    as_released: bool = setting(False, "noise in the place of the mean, as in DomainBed")

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        if not isinstance(model, FeaturesAndHead):
            raise UserError("mtl needs a network with one linear head, not changed by another method")
        return WithMean(model, problem.environments, self.rate, self.support, self.as_released)


class WithMean(EnvironmentNetwork):
    """Features, and a head on them and on their running mean in each environment."""

    means: Tensor

    def __init__(self, model: FeaturesAndHead, environments: int, rate: float, support: int, is_noise: bool) -> None:
        super().__init__(support)
        features, outputs = model.head.in_features, model.head.out_features
        head = type(model.head)(2 * features, outputs, bias=model.head.bias is not None)
        self.network = FeaturesAndHead(model.features, head, model.features_rate, model.weights)
        self.rate, self.is_noise = rate, is_noise
        self.register_buffer("means", torch.zeros(environments, features))

    def forward(self, x: Tensor, env: Tensor | None = None) -> Outputs:
        phi = self.network.features(x)
        each = phi.unflatten(0, (1 if env is None else len(env), -1))  # (E, B, features)
        mean = each.mean(1)
        if self.training and env is not None:
            mean = self.rate * mean + (1 - self.rate) * self.means[env]
            self.means.index_copy_(0, env, mean.detach())
        mean = torch.randn_like(each) if self.is_noise else mean[:, None].expand_as(each)
        both = torch.cat([phi, mean.flatten(0, 1)], 1)
        return Outputs(self.network.head(both), both)
