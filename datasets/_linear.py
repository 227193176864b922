"""Linear problems of one shape: causes of the target, the target, and effects of it whose law changes.

In every environment an invariant block v causes the target and a spurious block s is caused by it (or by what comes
with it); the input is (v, s), scrambled or not. Where a split is `permuted`, the rows of s are shuffled within each
environment, so that s keeps its distribution and tells nothing of the target.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.core.data import LinearLaw, Problem, Split, concatenate
from invbench.core.task import BinaryClassification, Regression
from invbench.seeding import children

Array = NDArray[np.float64]
Kind = Literal["regression", "cows_camels", "small_margin"]
SIGMAS = (0.1, 1.5, 2.0)
ANIMALS = ((0.95, 0.3), (0.97, 0.5), (0.99, 0.7))
Draw = Callable[[int, np.random.Generator], tuple[Array, Array, Array]]
"""Examples of one environment: count -> invariant block (n, v), spurious block (n, s), target (n,)."""


def regression(sigma: float, weights: Array, effects: Array) -> Draw:
    """Draw x ~ σ N, y = x W + σ N, z = y V + N, target Σ_j y_j: the noise of y changes with σ, that of z does not.

    Args:
        sigma: the environment's standard deviation.
        weights: W (v, y).
        effects: V (y, s).
    """

    def draw(count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        x = sigma * rng.normal(size=(count, len(weights)))
        y = x @ weights + sigma * rng.normal(size=(count, len(effects)))
        z = y @ effects + rng.normal(size=(count, effects.shape[1]))
        return x, z, y.sum(1)

    return draw


def cows_camels(p: float, s: float, invariant: int, spurious: int) -> Draw:
    """Draw animals (invariant, small) before backgrounds (spurious, large) that mostly go together.

    A mixture of four with probabilities ps, (1-p)s, p(1-s), (1-p)(1-s); animals have mean +1, +1, -1, -1 and
    backgrounds +1, -1, -1, +1, in units of √10 standard deviations. Label: whether the animal's coordinates sum to
    more than 0.
    """
    probabilities = [p * s, (1 - p) * s, p * (1 - s), (1 - p) * (1 - s)]

    def draw(count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        kind = rng.choice(4, size=count, p=probabilities)
        animal = np.array([1.0, 1.0, -1.0, -1.0])[kind, None] + rng.normal(size=(count, invariant)) / np.sqrt(10)
        ground = np.array([1.0, -1.0, -1.0, 1.0])[kind, None] + rng.normal(size=(count, spurious)) / np.sqrt(10)
        return 0.01 * animal, ground, (animal.sum(1) > 0).astype(float)

    return draw


def small_margin(mean: Array, invariant: int) -> Draw:
    """Draw two classes a small invariant margin apart, and far apart along ±mean, drawn for each environment.

    Class 0: v ~ +0.1 + 0.1 N, s ~ +mean + 0.1 N; class 1: the negative means; half of each class.
    """

    def draw(count: int, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        target = (np.arange(count) >= count // 2).astype(float)
        sign = (1 - 2 * target)[:, None]
        v = 0.1 * sign + 0.1 * rng.normal(size=(count, invariant))
        s = sign * mean + 0.1 * rng.normal(size=(count, len(mean)))
        return v, s, target

    return draw


def orthogonal(dimensions: int, rng: np.random.Generator) -> Array:
    """Draw Q of the QR decomposition of a Gaussian matrix."""
    return np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]


def splits(
    draws: Sequence[Draw],
    sizes: Mapping[str, int],
    seed: np.random.SeedSequence,
    permuted: Collection[str] = (),
    mixing: Array | None = None,
) -> dict[str, Split]:
    """Draw splits of `sizes` examples per environment, each from a separate stream.

    What is in a split depends neither on the sizes of the others nor on which are permuted.
    """
    streams = iter(children(seed, len(sizes) * len(draws)))
    return {
        name: concatenate(
            [
                _examples(draw, e, size, np.random.default_rng(next(streams)), name in permuted, mixing)
                for e, draw in enumerate(draws)
            ]
        )
        for name, size in sizes.items()
    }


def _examples(draw: Draw, e: int, size: int, rng: np.random.Generator, permuted: bool, mixing: Array | None) -> Split:
    v, s, y = draw(size, rng)
    x = np.hstack([v, rng.permutation(s) if permuted else s])
    return Split(torch.from_numpy(x if mixing is None else x @ mixing), torch.from_numpy(y), torch.full((size,), e))


@dataclass(frozen=True)
class Structure:
    """One of three linear problems.

    Args:
        kind: which.
        environments: E. The first ones are fixed, the others drawn: σ ~ 10^U(-2, 1); p ~ U(.9, 1), s ~ U(.3, .7); every
            environment of small_margin draws its mean from N(0, I).
        invariant, spurious: sizes of the two blocks.
        identity: whether W = V = I in the regression, else N divided by the size of their block.
        scrambled: whether the inputs are rotated by a random orthogonal matrix.
    """

    kind: Kind
    environments: int
    invariant: int
    spurious: int
    identity: bool
    scrambled: bool

    def problem(self, sizes: Mapping[str, int], permuted: Collection[str], seed: np.random.SeedSequence) -> Problem:
        """Draw weights and environments, then the examples of each split."""
        structure, examples = children(seed, 2)
        rng = np.random.default_rng(structure)
        weights = rng.normal(size=(self.invariant, self.invariant)) / self.invariant
        effects = rng.normal(size=(self.invariant, self.spurious)) / self.spurious
        if self.identity:
            weights, effects = np.eye(self.invariant), np.eye(self.invariant, self.spurious)
        rotation = orthogonal(self.invariant + self.spurious, rng)
        mixing = rotation if self.scrambled else None
        parts = splits(self._draws(rng, weights, effects), sizes, examples, permuted, mixing)
        if self.kind != "regression":
            return Problem(parts, BinaryClassification(), "vector", "synthetic")
        task = Regression("units of y", primary="mean_squared_error")
        return Problem(parts, task, "vector", "synthetic", law=law(weights, self.spurious, mixing))

    def _draws(self, rng: np.random.Generator, weights: Array, effects: Array) -> list[Draw]:
        count = self.environments
        if self.kind == "regression":
            drawn = 10 ** rng.uniform(-2, 1, size=count)
            return [regression(sigma, weights, effects) for sigma in [*SIGMAS, *drawn][:count]]
        if self.kind == "cows_camels":
            pairs = zip(rng.uniform(0.9, 1, size=count), rng.uniform(0.3, 0.7, size=count), strict=True)
            return [cows_camels(p, s, self.invariant, self.spurious) for p, s in [*ANIMALS, *pairs][:count]]
        return [small_margin(rng.normal(size=self.spurious), self.invariant) for _ in range(count)]


def law(weights: Array, spurious: int, mixing: Array | None = None) -> LinearLaw:
    """Return what an invariant linear model finds: the summed weights (v, y) of causes, and nothing on effects."""
    coefficients = np.concatenate([weights.sum(1), np.zeros(spurious)])
    causal = torch.arange(len(coefficients)) < len(weights)
    return LinearLaw(torch.from_numpy(coefficients), causal, None if mixing is None else torch.from_numpy(mixing))
