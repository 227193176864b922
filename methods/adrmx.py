"""ADRMX: take what tells the environment out of a representation ("Additive Disentanglement of Domain Features").

Demirel, Aptoula, Ozkan (2023), "ADRMX: Additive Disentanglement of Domain Features with Remix Loss", arXiv 2308.06624,
in DomainBed's form. Two backbones compute f and g of an input, and φ = f - g. Heads h of f, h' of φ and h_e of g, and a
discriminator D of φ, are trained with the cross-entropy ℓ of the label y or the environment e:

    objective = mean ℓ(h(f), y) + mean ℓ(h'(φ), y) + λ_e mean ℓ(h_e(g), e) + λ_r M + λ_c (S(f) + S(φ)) - λ_D L_D
    L_D = mean ℓ(D(φ), e),   which D minimises in `critic_steps` updates ahead of each step

M, "remix": for each of the C classes an example i and one j of another environment, both of the class,

    M = (1/C) Σ_c ℓ(h(φ_i + g_j), c)

S, supervised contrast:

    S(φ) = mean_i mean_{j ≠ i, y_j = y_i} -log(exp(s_ij) / Σ_{k ≠ i} exp(s_ik)),   s_ij = cos(φ_i, φ_j) / T

without the i that are alone in their class. Predictions are h(f). A step trains two backbones. Defaults and search
ranges are DomainBed's for small images. Deviations: heads are linear, DomainBed's have two hidden layers; its i and j
are any two examples, by a mistake of indices; it divides S by one more than the number of examples and adds 1e-5 to
each fraction in it, whose weights of pairs from equal and from other environments, 1/2 each, cancel; it counts an
update of D as a step of the run.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.classes import cross_entropy
from invbench.components.draws import of_examples
from invbench.components.penalty import representation
from invbench.core.backbone import FeaturesAndHead, FeaturesOnly, is_frozen
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn, MappableNetwork, RandomDraws, SecondBackbone, WithCritic
from invbench.core.method import Outputs, State
from invbench.core.registry import register_method
from invbench.core.settings import Choice, setting
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError

FIRST, SECOND = range(2)
"""Purposes of the random numbers of a step."""


@register_method("adrmx")
class ADRMX(RandomDraws, MappableNetwork, SecondBackbone, WithCritic):
    """Subtract a second network's features, which tell the environment, from those that tell the class."""

    display_name: ClassVar[str] = "ADRMX"
    requires: ClassVar[tuple[str, ...]] = ("environments", "classification")
    small: ClassVar[Mapping[str, Any]] = {"method.critic_width": 8, "method.critic_depth": 2}

    environment_weight: float = setting(1.0, "λ_e", ge=0, fusable=True)
    remix_weight: float = setting(1.0, "λ_r", ge=0, fusable=True)
    contrast_weight: float = setting(1.0, "λ_c", ge=0, fusable=True)
    critic_weight: float = setting(0.75, "λ_D", ge=0, fusable=True)
    temperature: float = setting(0.07, "T", gt=0, fusable=True)
    critic_steps: int = setting(2, "the discriminator's updates ahead of each step of the network", ge=1)
    critic_width: int = setting(256, "units in each of its hidden layers", ge=1)
    critic_depth: int = setting(8, "its hidden layers", ge=1, search=Choice((7, 8, 9)))
    critic_learning_rate: float = setting(
        3e-3, "its step size", gt=0, search=Choice((5e-4, 1e-3, 2e-3, 3e-3)), fusable=True
    )
    critic_momentum: float = setting(0.5, "its Adam's β1; β2 is 0.9", ge=0, lt=1)

    def build_of_two(self, model: nn.Module, second: nn.Module, problem: Problem) -> nn.Module:
        if not isinstance(model, FeaturesAndHead) or not isinstance(second, FeaturesAndHead):
            raise UserError("adrmx needs a network with one linear head, not changed by another method")
        if is_frozen(second.features):
            raise UserError("adrmx trains a second body that tells the environment; leave out backbone.freeze")
        return Disentangled(model, FeaturesOnly(second.features, second.features_rate), problem.environments)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        f, g, phi = (values.flatten(0, 1) for values in _parts(outputs))
        label, environment = batch.y.flatten(), batch.env[:, None].expand(batch.y.shape).flatten()
        keys = [of_examples(state, purpose, batch.env, batch.y.shape[1], f).flatten() for purpose in (FIRST, SECOND)]
        invariant, of_g = (outputs.further[name].flatten(0, 1) for name in ("invariant", "environment"))
        if outputs.head is None:  # the network that `build_of_two` makes has one
            raise TypeError("the network has no linear head")
        remixed = remix_loss(phi, g, outputs.head, label, environment, keys)
        contrasts = contrast(f, label, self.temperature) + contrast(phi, label, self.temperature)
        return (
            cross_entropy(invariant, label).mean()
            + self.environment_weight * F.cross_entropy(of_g, environment)
            + self.remix_weight * remixed
            + self.contrast_weight * contrasts
        ), state

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        sizes = [representation(outputs, "adrmx").shape[-1], *[self.critic_width] * self.critic_depth]
        hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
        network = nn.Sequential(*hidden, nn.Linear(self.critic_width, problem.environments))
        betas = (self.critic_momentum, 0.9)
        trainer = TrainerConfig(steps=1, learning_rate=self.critic_learning_rate, betas=betas)
        return Critic(network, trainer, steps=self.critic_steps)

    def tells_environments(self, has_nuisance: bool) -> bool:
        return True

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        logits = critic(_parts(outputs)[2])
        environment = batch.env[:, None].expand(batch.y.shape)
        return F.cross_entropy(logits.flatten(0, 1), environment.flatten()), state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        loss, state = self.critic_loss(critic, outputs, batch, state)
        return -self.critic_weight * loss, state


class Disentangled(nn.Module):
    """A network, a second body g, and heads of g and of the difference of both representations."""

    def __init__(self, network: FeaturesAndHead, second: FeaturesOnly, environments: int) -> None:
        super().__init__()
        head = network.head
        self.network, self.second = network, second
        self.of_difference = type(head)(head.in_features, head.out_features, bias=head.bias is not None)
        self.of_second = nn.Linear(head.in_features, environments)

    def forward(self, x: Tensor) -> Outputs:
        outputs: Outputs = self.network(x)
        if outputs.representation is None:  # a network with a head gives one
            raise TypeError("the network returns no representation")
        second = self.second(x)
        further = {
            "second": second,
            "invariant": self.of_difference(outputs.representation - second),
            "environment": self.of_second(second),
        }
        return outputs._replace(further=further)


def _parts(outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, g and φ, (E, B, features) each."""
    f, g = representation(outputs, "adrmx"), outputs.further["second"]
    return f, g, f - g


def contrast(phi: Tensor, label: Tensor, temperature: float | Tensor) -> Tensor:
    """Compute S of representations (N, features) and labels (N,), without examples that are alone in their class."""
    direction = F.normalize(phi, dim=-1)
    itself = torch.eye(len(phi), dtype=torch.bool, device=phi.device)
    similarity = (direction @ direction.T / temperature).masked_fill(itself, -torch.inf)
    positive = (label[:, None] == label) & ~itself
    logs = torch.where(positive, similarity.log_softmax(1), 0)
    each = -logs.sum(1) / positive.sum(1).clamp(min=1)
    return each.sum() / positive.any(1).sum().clamp(min=1)


def remix_loss(
    phi: Tensor,
    g: Tensor,
    head: tuple[Tensor, Tensor | None],
    label: Tensor,
    environment: Tensor,
    keys: list[Tensor],
) -> Tensor:
    """Compute M, by the examples of each class with the largest of random keys, two of (N,)."""
    weight, bias = head
    classes = torch.arange(max(len(weight), 2), dtype=label.dtype, device=label.device)
    of_class = classes[:, None] == label
    first = torch.where(of_class, keys[0], -1).argmax(1)
    others = of_class & (environment != environment[first][:, None])
    second = torch.where(others, keys[1], -1).argmax(1)
    losses = cross_entropy(F.linear(phi[first] + g[second], weight, bias), classes)
    return torch.where(others.any(1), losses, 0).mean()
