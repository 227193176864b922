"""DANN: a representation from which a discriminator cannot read the environment ("Domain-Adversarial Training").

Ganin et al. (2016), "Domain-Adversarial Training of Neural Networks", arXiv 1505.07818; with `conditional` CDANN, Li et
al. (2018), "Deep Domain Generalization via Conditional Invariant Adversarial Networks", ECCV. In DomainBed's form, with
the discriminator's probabilities q(e | φ) of the environments and the representation φ:

    L = mean_ei -log q(e | φ_ei) + g mean_ei ‖∂ log q(e | φ_ei) / ∂φ_ei‖²,   which the discriminator minimises
    objective = (1/E) Σ_e R_e - λ L

Ahead of each step of the network the discriminator makes `critic_steps` updates. With `conditional` it gets φ plus a
vector that it learns for the label, and its first term weighs each example by 1 / (C n), n the number of examples of
its class in the step and C that of classes, so that all classes count alike.

Only training environments are told apart: no unlabelled data of the test are seen. Defaults and search ranges are
DomainBed's. Deviations: DomainBed counts an update of the discriminator as a step of the run; it also draws Adam's β1
of both players from {0, 0.5} and drops units of the discriminator, where here β1 of the network is `trainer.betas`,
and there is no dropout. Its C is the largest label in the step plus one. Ranges of whole numbers are a few of its.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad

from invbench.components.classes import cross_entropy
from invbench.components.penalty import representation
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn, WithCritic
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, LogUniform, is_zero, setting
from invbench.core.task import one_hot
from invbench.core.trainer import TrainerConfig


@register_method("dann")
class DANN(WithCritic):
    """Reward a representation from which a discriminator cannot read the environment."""

    display_name: ClassVar[str] = "DANN"
    requires: ClassVar[tuple[str, ...]] = ("environments", "classification")
    small: ClassVar[Mapping[str, Any]] = {"method.critic_width": 8}

    weight: float = setting(
        1.0, "λ, weight of the discriminator's loss", ge=0, search=LogUniform(1e-2, 1e2), fusable=True
    )
    conditional: bool = setting(False, "tell the discriminator the label", search=Choice((False, True)))
    gradient_penalty: float = setting(
        0.0, "g, of the squared gradient of the discriminator's loss", ge=0, search=LogUniform(1e-2, 10), fusable=True
    )
    critic_steps: int = setting(
        1, "the discriminator's updates ahead of each step of the network", ge=1, search=Choice((1, 2, 4, 8))
    )
    critic_width: int = setting(256, "units in each of its hidden layers", ge=1, search=Choice((64, 128, 256, 512)))
    critic_depth: int = setting(2, "its hidden layers", ge=1, search=Choice((2, 3, 4)))
    critic_learning_rate: float = setting(
        1e-3, "its step size", gt=0, search=LogUniform(10**-4.5, 10**-2.5), fusable=True
    )
    critic_weight_decay: float = setting(0.0, "its weight decay", ge=0, search=LogUniform(1e-6, 1e-2))
    critic_momentum: float = setting(0.5, "its Adam's β1; β2 is 0.9", ge=0, lt=1, search=Choice((0.0, 0.5)))

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        features = representation(outputs, "dann").shape[-1]
        classes = max(problem.task.outputs, 2) if self.conditional else 0
        network = Discriminator(features, problem.environments, classes, self.critic_width, self.critic_depth)
        trainer = TrainerConfig(
            steps=1,
            learning_rate=self.critic_learning_rate,
            betas=(self.critic_momentum, 0.9),
            weight_decay=self.critic_weight_decay,
        )
        return Critic(network, trainer, steps=self.critic_steps)

    def tells_environments(self, has_nuisance: bool) -> bool:
        return True

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        phi = representation(outputs, "dann").flatten(0, 1)
        label = batch.y.flatten(0, 1).long()
        environment = batch.env[:, None].expand(batch.y.shape).flatten(0, 1)
        losses = cross_entropy(critic(phi, label), environment)
        loss = losses.mean()
        if self.conditional:
            of_class = one_hot(label, max(outputs.prediction.shape[-1], 2), phi.dtype)  # (N, classes)
            share = 1 / (of_class @ of_class.sum(0) * of_class.shape[1])
            loss = (share * losses).sum()
        if not is_zero(self.gradient_penalty):
            slopes = grad(lambda features: cross_entropy(critic(features, label), environment).sum())(phi)
            loss = loss + self.gradient_penalty * slopes.square().sum(1).mean()
        return loss, state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        loss, state = self.critic_loss(critic, outputs, batch, state)
        return -self.weight * loss, state


class Discriminator(nn.Module):
    """Logits (N, environments) of representations (N, features) and labels (N,), which count where classes > 0."""

    def __init__(self, features: int, environments: int, classes: int, width: int, depth: int) -> None:
        super().__init__()
        self.classes = classes
        self.of_label = nn.Parameter(torch.randn(classes, features)) if classes else None
        sizes = [features, *[width] * depth]
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        self.layers = nn.Sequential(*hidden, nn.Linear(width, environments))

    def forward(self, phi: Tensor, label: Tensor) -> Tensor:
        if self.of_label is not None:
            phi = phi + one_hot(label, self.classes, phi.dtype) @ self.of_label
        logits: Tensor = self.layers(phi)
        return logits
