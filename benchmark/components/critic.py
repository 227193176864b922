"""Base of methods with a critic: what is protected, which examples count, the critic's network, the weight's schedule.

A critic looks at the score a, which is the network's logits or its representation, and at the nuisance z, a variable of
the data or the index of the environment. A sample of the product of their marginals is made within a batch: every
example gets the z of another one, its partner. Partners change from update to update without being drawn: the examples
have a fixed random order, and the partner is the example at a shift that grows from update to update. Where labels
matter, partners share theirs.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from invbench.components.penalty import representation
from invbench.core.data import Batch, Problem
from invbench.core.hooks import Critic, WithCritic
from invbench.core.method import Outputs, State
from invbench.core.settings import LogUniform, setting
from invbench.core.task import Regression, one_hot
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError

SMALL = 1e-8
MOST_VALUES = 1000
"""Maximum number of values of an integer nuisance."""


class CriticMethod(WithCritic):
    """Mean risk plus a penalty from a critic. A subclass gives the critic's loss, the penalty, and `network`."""

    weight: float = setting(1.0, "λ, weight of the penalty", ge=0, search=LogUniform(1e-2, 1e2), fusable=True)
    warm_up: int = setting(0, "steps in which λ rises linearly from 0, once the critic learns", ge=0)
    pretrain_steps: int = setting(0, "first steps, of the network alone: λ = 0, and the critic waits", ge=0)
    on: Literal["logits", "representation"] = setting("logits", "what the critic looks at")
    independent_of: Literal["auto", "nuisance", "environment"] = setting(
        "auto", "what it should not tell; auto is the data's nuisance, or the environment where they have none"
    )
    condition_on_label: Literal["none", "background", "each"] = setting(
        "none", "whose score should not tell: of all examples, of those with label 0, or of each label apart"
    )
    standardise_score: bool = setting(
        True, "take mean and deviation over the batch out of the score, which say nothing about the nuisance"
    )
    critic_width: int = setting(64, "units in each of the critic's hidden layers", ge=1)
    critic_depth: int = setting(2, "the critic's hidden layers", ge=0)
    critic_activation: Literal["elu", "relu"] = setting("elu", "after each of them")
    critic_layer_norm: bool = setting(True, "normalise each hidden layer over its units, before the activation")
    critic_spectral_norm: bool = setting(False, "divide each of the critic's matrices by its largest singular value")
    critic_optimizer: Literal["adam", "sgd"] = setting("adam", "the critic's update rule")
    critic_learning_rate: float = setting(
        1e-3, "the critic's step size", gt=0, search=LogUniform(1e-5, 1e-2), fusable=True
    )
    critic_steps: int = setting(1, "the critic's updates ahead of each step of the network", ge=1)
    critic_warm_up: int = setting(0, "updates that the critic has before it begins to count", ge=0)

    @abstractmethod
    def network(self, problem: Problem, nuisance: Tensor, features: int) -> nn.Module:
        """Make the critic, a function of score (N, features), nuisance (N, nuisances) and label (N,) or None.

        Args:
            nuisance: of the training examples.
        """

    def critic(self, problem: Problem, outputs: Outputs) -> Critic | None:
        return self.make_critic(problem, outputs)

    def make_critic(self, problem: Problem, outputs: Outputs) -> Critic:
        """Make the critic with the update rule of the settings."""
        if self.condition_on_label != "none" and isinstance(problem.task, Regression):
            raise UserError("method.condition_on_label needs labels, but this dataset is a regression; leave it out")
        return Critic(
            self.network(problem, self._training_nuisance(problem), self._score(outputs).shape[2]),
            TrainerConfig(steps=1, optimizer=self.critic_optimizer, learning_rate=self.critic_learning_rate),
            steps=self.critic_steps,
            first_step=self.pretrain_steps,
            warm_up=self.critic_warm_up,
        )

    def tells_environments(self, has_nuisance: bool) -> bool:
        return not has_nuisance or self.independent_of == "environment"

    def examples(self, outputs: Outputs, batch: Batch) -> "Examples":
        """Select and arrange what the critic gets of a batch."""
        order = batch.env.argsort(stable=True)  # whatever order the environments come in
        score = self._score(outputs)[order].flatten(0, 1)
        label = None if self.condition_on_label == "none" else batch.y[order].flatten(0, 1).long()
        if batch.nuisance is None or self.tells_environments(has_nuisance=True):
            nuisance = batch.env[order][:, None].expand(batch.x.shape[:2]).flatten(0, 1)
        else:
            nuisance = batch.nuisance[order].flatten(0, 1)
        counts = label == 0 if self.condition_on_label == "background" and label is not None else None
        examples = Examples(score, nuisance.reshape(len(score), -1), label, counts)
        return examples.standardised() if self.standardise_score else examples

    def weighted(self, penalty: Tensor, state: State) -> Tensor:
        """Multiply the penalty by the weight of this step."""
        begun = state["step"] - self.pretrain_steps
        rise = ((begun + 1) / max(self.warm_up, 1)).clamp(0, 1).to(penalty)
        scaled: Tensor = self.weight * (begun >= 0).to(penalty) * rise * penalty
        return scaled

    def perceptron(self, inputs: int, outputs: int) -> nn.Sequential:
        """Make hidden layers as the settings say, and a linear one: (N, inputs) -> (N, outputs)."""
        layers: list[nn.Module] = []
        for _ in range(self.critic_depth):
            layers.append(self._linear(inputs, self.critic_width))
            layers += [nn.LayerNorm(self.critic_width)] if self.critic_layer_norm else []
            layers.append(nn.ELU() if self.critic_activation == "elu" else nn.ReLU())
            inputs = self.critic_width
        return nn.Sequential(*layers, self._linear(inputs, outputs))

    def label_encoding(self, problem: Problem) -> "Label":
        """Make the encoding of labels for the critic: one-hot where each label counts apart, else empty."""
        return Label(max(problem.task.outputs, 2) if self.condition_on_label == "each" else 0)

    def _linear(self, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs)
        if self.critic_spectral_norm:
            parametrize.register_parametrization(layer, "weight", SpectralNorm())
        return layer

    def _score(self, outputs: Outputs) -> Tensor:
        return outputs.prediction if self.on == "logits" else representation(outputs, "method.on=representation")

    def _training_nuisance(self, problem: Problem) -> Tensor:
        """Return the nuisance (N, nuisances) of the training examples. Raises UserError where the data lack it."""
        train = problem.splits["train"]
        if self.independent_of == "nuisance" and train.nuisance is None:
            raise UserError("method.independent_of=nuisance, but this dataset has no nuisance; use environment")
        if self.independent_of == "environment" and train.env is None:
            raise UserError("method.independent_of=environment, but this dataset has no environments; use nuisance")
        nuisance = train.env if train.nuisance is None or self.independent_of == "environment" else train.nuisance
        if nuisance is None:
            raise UserError("this dataset has neither a nuisance nor environments to be independent of")
        if not nuisance.is_floating_point() and int(nuisance.max()) >= MOST_VALUES:
            raise UserError(
                f"what the method should be independent of has {int(nuisance.max()) + 1} values, as where every "
                "example is its own environment; choose data with fewer"
            )
        return nuisance.reshape(len(train), -1)


class Examples(NamedTuple):
    """Batch as a critic sees it, all environments' examples in one list.

    Shapes: score (N, features); nuisance (N, nuisances); label (N,), None where labels do not matter; counts (N,),
    whether an example counts, None where all do.
    """

    score: Tensor
    nuisance: Tensor
    label: Tensor | None
    counts: Tensor | None

    def standardised(self) -> "Examples":
        """Return the same examples with scores of mean 0 and deviation 1."""
        weights = torch.ones_like(self.score[:, :1]) if self.counts is None else self.counts[:, None].to(self.score)
        weights = weights / weights.sum().clamp(min=1)
        centred = self.score - (weights * self.score).sum(0)
        return self._replace(score=centred / ((weights * centred.square()).sum(0) + SMALL).sqrt())

    def with_partners(self, shift: Tensor) -> "Examples":
        """Return the same examples, each with the nuisance of its partner."""
        label = self.label
        other = partners_of_all(len(self.score), shift) if label is None else partners(label, shift)
        return self._replace(nuisance=self.nuisance[other])

    def mean(self, values: Tensor) -> Tensor:
        """Average values (N,) over the examples that count."""
        if self.counts is None:
            return values.mean()
        return torch.where(self.counts, values, 0).sum() / self.counts.sum().clamp(min=1)

    def log_mean_exp(self, values: Tensor) -> Tensor:
        """Compute the log of the mean of exp(values), (N,), over the examples that count, without overflow."""
        if self.counts is None:
            return values.logsumexp(0) - math.log(len(values))
        chosen = torch.where(self.counts, values, -torch.inf)
        return chosen.logsumexp(0) - self.counts.sum().clamp(min=1).to(values).log()


def partners(group: Tensor, shift: Tensor) -> Tensor:
    """Return for every example the row of another one in its group (N,); n - 1 successive shifts give all of them.

    Args:
        group: integers (N,).
        shift: an integer (0-dimensional).
    """
    position, rank, _ = _positions(len(group), group.device)
    order = (group * len(group) + rank).argsort()
    ordered = group[order]
    border = torch.ones_like(ordered[:1], dtype=torch.bool)
    begins = torch.cat([border, ordered[1:] != ordered[:-1]])
    ends = torch.cat([begins[1:], border])
    first = torch.where(begins, position, 0).cummax(0).values
    last = torch.where(ends, position, len(group)).flip(0).cummin(0).values.flip(0)
    size = last - first + 1
    offset = 1 + shift % (size - 1).clamp(min=1)
    partner = order[first + (position - first + offset) % size]
    return torch.zeros_like(order).scatter(0, order, partner)


def partners_of_all(count: int, shift: Tensor) -> Tensor:
    """Return the partner of every example, where all are one group; see `partners`."""
    _, rank, order = _positions(count, shift.device)
    return order[(rank + 1 + shift % max(count - 1, 1)) % count]


@lru_cache(maxsize=16)
def _positions(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return 0, 1, ...; each example's rank in a fixed random order; and the example of each rank."""
    rank = torch.from_numpy(np.random.default_rng(0).permutation(count)).to(device)
    return torch.arange(count, device=device), rank, rank.argsort()


class SpectralNorm(nn.Module):
    """Division of a matrix by its largest singular value."""

    def forward(self, weight: Tensor) -> Tensor:
        norm = torch.linalg.matrix_norm(weight, 2) if weight.device.type == "cpu" else largest_singular_value(weight)
        scaled: Tensor = weight / norm
        return scaled


def largest_singular_value(matrix: Tensor) -> Tensor:
    """Compute the largest singular value of a matrix by power iteration: on a GPU the host would wait for an SVD.

    A power of 1,024 is reached by squaring. The result and its gradient are exact to rounding, unless the two
    largest values differ by less than a hundredth.
    """
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    with torch.no_grad():
        scaled = wide / wide.abs().amax()  # squares of very large or small numbers would not be finite, or zero
        power = scaled @ scaled.T
        for _ in range(10):
            power = power / torch.linalg.matrix_norm(power)
            power = power @ power
        left = power.index_select(1, torch.linalg.vector_norm(power, dim=0).argmax()[None])[:, 0]
        left = left / torch.linalg.vector_norm(left)
        right = scaled.T @ left
        right = right / torch.linalg.vector_norm(right)
    largest: Tensor = left @ wide @ right
    return largest


class Standardised(nn.Module):
    """Real nuisances (N, k) with the mean and the deviation of the training examples taken out."""

    mean: Tensor
    std: Tensor

    def __init__(self, nuisance: Tensor) -> None:
        super().__init__()
        std, mean = torch.std_mean(nuisance, 0)
        self.register_buffer("mean", mean)
        self.register_buffer("std", torch.where(std > 0, std, 1.0))

    def forward(self, nuisance: Tensor) -> Tensor:
        return (nuisance - self.mean) / self.std


class OneHot(nn.Module):
    """One-hot encoding of k categories (N, k), side by side."""

    one: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = tuple(counts)
        self.register_buffer("one", torch.ones(()))  # it has the type of the numbers

    def forward(self, nuisance: Tensor) -> Tensor:
        columns = [one_hot(nuisance[:, i], count, self.one.dtype) for i, count in enumerate(self.counts)]
        return torch.cat(columns, 1)


def encoding(nuisance: Tensor) -> nn.Module:
    """Make the encoding of nuisances (N, k): real ones are standardised by the given examples, integers one-hot."""
    if nuisance.is_floating_point():
        return Standardised(nuisance)
    return OneHot([int(column.max()) + 1 for column in nuisance.T])


class Label(nn.Module):
    """One-hot encoding of labels (N,), empty where they do not matter."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, label: Tensor | None, like: Tensor) -> Tensor:
        """Encode labels as (N, classes), or (N, 0) where they do not matter."""
        return like[:, :0] if label is None or not self.classes else one_hot(label, self.classes, like.dtype)
