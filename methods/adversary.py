"""Adversary: a second network reads the nuisance off the score, and the first one is rewarded where it cannot.

Louppe, Kagan, Cranmer (2017), "Learning to Pivot with Adversarial Networks", arXiv 1611.01046. With the score a, the
nuisance z and the adversary's density p_r(z | a):

    L_r = E [-log p_r(z | a)], which the adversary minimises
    objective = (1/E) Σ_e R_e - λ L_r

L_r cannot rise above the entropy H(z) against an adversary that does its best; there the score tells nothing.

    mixture_density   a mixture of Gaussians for each nuisance: the paper's; the default where nuisances are real
    bins              the probabilities of quantile bins: Tan's `invariant_reps`; real nuisances only
    categories        where nuisances are integers

`gradient_reversal`: both players move at once, from the same batch (Ganin et al., arXiv 1505.07818, on
representations of environments: `on: representation`, `independent_of: environment`); with `condition_on_label: each`
the adversary is told the label (Li et al., ECCV 2018).

Deviations: the paper's adversary sees the probability, this one the logit, as in Tan's code; the logarithms of a
mixture's widths are kept above -5; Tan's adversary learns on test batches, this one on training batches.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from invbench.components.critic import CriticMethod, Standardised
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.errors import UserError

NARROWEST = -5.0
"""The least logarithm of a width, in deviations of the nuisance."""


@register_method("adversary")
class Adversary(CriticMethod):
    """Reward a score from which an adversary cannot read the nuisance."""

    display_name: ClassVar[str] = "Adversary"
    requires: ClassVar[tuple[str, ...]] = ("nuisance or environments",)
    small: ClassVar[Mapping[str, Any]] = {
        "method.critic_width": 8,
        "method.critic_steps": 2,
        "method.critic_warm_up": 3,
        "method.pretrain_steps": 2,
    }

    weight: float = setting(4.0, "λ, weight of the adversary's loss", ge=0, search=LogUniform(1e-2, 1e2), fusable=True)
    density: Literal["auto", "mixture_density", "bins"] = setting(
        "auto", "of the nuisance; auto is mixture_density for real numbers and categories for integers"
    )
    components: int = setting(5, "mixture_density: Gaussians of each nuisance", ge=1)
    bins: int = setting(8, "bins: quantile bins of each nuisance", ge=2)
    gradient_reversal: bool = setting(False, "one update of both players at once, in the place of taking turns")
    critic_learning_rate: float = setting(
        1e-4, "the adversary's step size", gt=0, search=LogUniform(1e-5, 1e-2), fusable=True
    )
    critic_steps: int = setting(16, "the adversary's updates ahead of each step of the network", ge=1)

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        return replace(self.make_critic(problem, outputs), simultaneous=self.gradient_reversal)

    def network(self, problem: Problem, nuisance: Tensor, features: int) -> nn.Module:
        label, density = self.label_encoding(problem), self._density(nuisance)
        return ConditionalDensity(self.perceptron(features + label.classes, density.inputs), label, density)

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        examples = self.examples(outputs, batch)
        return -examples.mean(critic(*examples[:3])), state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        loss, state = self.critic_loss(critic, outputs, batch, state)
        return self.weighted(-loss, state), state

    def _density(self, nuisance: Tensor) -> "MixtureDensity | Categories":
        if not nuisance.is_floating_point():
            if self.density != "auto":
                raise UserError(f"method.density={self.density} needs a real nuisance, not a category; use auto")
            return Categories(nuisance)
        if self.density != "bins":
            return MixtureDensity(nuisance, self.components)
        inner = torch.linspace(0, 1, self.bins + 1, dtype=nuisance.dtype, device=nuisance.device)[1:-1]
        return Categories(nuisance, torch.quantile(nuisance, inner, 0).T)


class ConditionalDensity(nn.Module):
    """log p(z | a): score (N, features), nuisance (N, nuisances), label (N,) or None -> (N,)."""

    def __init__(self, layers: nn.Module, label: nn.Module, density: nn.Module) -> None:
        super().__init__()
        self.layers, self.label, self.density = layers, label, density

    def forward(self, score: Tensor, nuisance: Tensor, label: Tensor | None) -> Tensor:
        value: Tensor = self.density(self.layers(torch.cat([score, self.label(label, score)], 1)), nuisance)
        return value


class MixtureDensity(nn.Module):
    """Log-density of real nuisances (N, k), each a mixture of Gaussians with parameters from (N, inputs), in nats."""

    def __init__(self, nuisance: Tensor, components: int) -> None:
        super().__init__()
        self.encode = Standardised(nuisance)
        self.shape = (nuisance.shape[1], 3, components)
        self.inputs = math.prod(self.shape)

    def forward(self, parameters: Tensor, nuisance: Tensor) -> Tensor:
        weights, means, log_widths = parameters.unflatten(1, self.shape).unbind(2)
        log_widths = log_widths.clamp(min=NARROWEST)
        away = (self.encode(nuisance)[..., None] - means) / log_widths.exp()
        gaussians = -0.5 * away.square() - log_widths - 0.5 * math.log(2 * math.pi)
        density = (weights.log_softmax(-1) + gaussians).logsumexp(-1)
        value: Tensor = (density - self.encode.std.log()).sum(1)
        return value


class Categories(nn.Module):
    """Log-probability of categories (N, k), or of the bins of real nuisances between edges (k, bins - 1), in nats."""

    edges: Tensor | None

    def __init__(self, nuisance: Tensor, edges: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("edges", edges)
        integers = self._index(nuisance)
        self.counts = [int(column.max()) + 1 for column in integers.T]
        self.inputs = sum(self.counts)

    def forward(self, parameters: Tensor, nuisance: Tensor) -> Tensor:
        index = self._index(nuisance)
        each = [
            part.log_softmax(1).gather(1, index[:, i : i + 1])
            for i, part in enumerate(parameters.split(self.counts, 1))
        ]
        return torch.cat(each, 1).sum(1)

    def _index(self, nuisance: Tensor) -> Tensor:
        return nuisance if self.edges is None else (nuisance[..., None] > self.edges).sum(-1)
