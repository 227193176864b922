"""LieGAN: find generators that a discriminator cannot tell from the data ("Generative Adversarial Symmetry Discovery").

Yang, Walters, Dehmamy, Yu (2023), ICML, arXiv 2302.00236. With matrices L_k that are learned, random z of every input,
g = exp(Σ_k z_k L_k), L̂ = √n L / ‖L‖, and a discriminator D of an input and its target:

    D maximises     mean log D(x, y) + mean log(1 - D(g x, y))
    L minimises     -mean log D(g x, y) + λ |mean cos(g x, x)| + η Σ_{i<j} |⟨L̂_i, L̂_j⟩|

The second term keeps L away from 0, the third keeps generators apart. The targets stay as they are: what is found
leaves them unchanged. `integers` are for a discrete group, whose generator is a logarithm of one of its elements.
`block` looks for matrices that act on every n inputs alike. The problem's network learns beside this, by ERM; nothing
passes between them. Entries are in the run's curves; `symmetry_angle` is the largest principal angle to the true
algebra. Defaults are the authors' for y in place of images. Deviations: one update of D in each step, by the same
batch, whose Adam has the betas of the generators' (0.5, 0.999) and not (0.9, 0.999); D gets targets that are
standardised.
"""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invbench.components.algebra import Coefficients, LearnedAlgebra, draw_coefficients, overlap
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, CriticFn, WithCritic
from invbench.core.method import Outputs, State, as_outputs
from invbench.core.registry import register_method
from invbench.core.settings import LogUniform, setting
from invbench.core.task import Regression, Task, one_hot
from invbench.core.trainer import TrainerConfig


@register_method("lie_gan")
class LieGAN(WithCritic):
    """Learn matrices whose exponentials leave the joint distribution of inputs and targets as it is."""

    display_name: ClassVar[str] = "LieGAN"
    requires: ClassVar[tuple[str, ...]] = ("vector",)
    small: ClassVar[Mapping[str, Any]] = {"method.critic_width": 8}
    deterministic: ClassVar[Mapping[str, Mapping[str, Any]]] = {"vector": {"method.scale": 1e-30}}

    generators: int = setting(1, "K, number of matrices", ge=1, le=64)
    block: int | None = setting(None, "n: the matrices act on every n inputs alike; null is all inputs at once", ge=1)
    coefficients: Coefficients = setting("normal", "distribution of z; integers are for discrete groups")
    scale: float = setting(1.0, "deviation of normal z, or half of the range of others", gt=0)
    distance_weight: float = setting(0.01, "λ", ge=0, search=LogUniform(1e-3, 1), fusable=True)
    overlap_weight: float = setting(1.0, "η", ge=0, search=LogUniform(1e-2, 1), fusable=True)
    learning_rate: float = setting(1e-3, "of the matrices", gt=0)
    critic_width: int = setting(512, "units in both hidden layers of the discriminator", ge=1)
    critic_learning_rate: float = setting(2e-4, "its step size", gt=0, search=LogUniform(1e-5, 1e-3), fusable=True)

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        deviation = math.sqrt(2) / (self.block or problem.input_shape[0])
        algebra = LearnedAlgebra(problem, self.generators, self.block, deviation, self.learning_rate)
        return WithMovedInputs(model, algebra, self.coefficients, self.scale)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        cosine = F.cosine_similarity(outputs.further["moved"], batch.x, dim=-1).mean()
        side = self.block or batch.x.shape[-1]
        matrices = outputs.learned["generator"].reshape(-1, side, side)
        return self.distance_weight * cosine.abs() + self.overlap_weight * overlap(matrices), state

    def critic(self, problem: Problem, outputs: Outputs) -> Critic:
        network = Discriminator(problem.input_shape[0], problem.task, self.critic_width)
        trainer = TrainerConfig(steps=1, learning_rate=self.critic_learning_rate, betas=(0.5, 0.999))
        return Critic(network, trainer, simultaneous=True)

    def tells_environments(self, has_nuisance: bool) -> bool:
        return False

    def critic_loss(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        x, moved, y = (part.flatten(0, 1) for part in (batch.x, outputs.further["moved"], batch.y))
        return F.softplus(-critic(x, y)).mean() + F.softplus(critic(moved, y)).mean(), state

    def critic_penalty(self, critic: CriticFn, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        moved, y = outputs.further["moved"].flatten(0, 1), batch.y.flatten(0, 1)
        return F.softplus(-critic(moved, y)).mean(), state


class WithMovedInputs(nn.Module):
    """A network beside learned generators: its outputs carry its inputs, moved by random elements."""

    def __init__(self, model: nn.Module, algebra: LearnedAlgebra, kind: Coefficients, scale: float) -> None:
        super().__init__()
        self.model, self.algebra, self.kind, self.scale = model, algebra, kind, scale

    def forward(self, x: Tensor) -> Outputs:
        outputs = as_outputs(self.model(x))
        z = draw_coefficients(x, self.algebra.shape[0], self.kind, self.scale)
        moved = self.algebra.transformed(x, z)
        learned = {**outputs.learned, "generator": self.algebra.entries()}
        return outputs._replace(further={**outputs.further, "moved": moved}, learned=learned)


class Discriminator(nn.Module):
    """The logit (N,) of inputs (N, features) and targets (N,): numbers, standardised, or indicators of classes.

    Args:
        features: numbers in an input.
        task: tells what targets are.
        width: units in both hidden layers.
    """

    def __init__(self, features: int, task: Task, width: int) -> None:
        super().__init__()
        self.classes = 0 if isinstance(task, Regression) else max(2, task.outputs)
        self.mean, self.std = (task.mean, task.std) if isinstance(task, Regression) else (0.0, 1.0)
        self.layers = nn.Sequential(
            *(nn.Linear(features + (self.classes or 1), width), nn.LeakyReLU(0.2)),
            *(nn.Linear(width, width), nn.LeakyReLU(0.2)),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        target = one_hot(y, self.classes, x.dtype) if self.classes else ((y - self.mean) / self.std)[:, None]
        logit: Tensor = self.layers(torch.cat([x, target], 1))
        return logit.squeeze(1)
