"""Energies and momenta of particles: is their total mass large? Lorentz transformations do not change it.

Particle i of n has a mass m_i ~ U(smallest_mass, largest_mass) and a momentum q_i ~ N(0, momentum² I_3); with c = 1,

    p_i = (√(m_i² + |q_i|²), q_i)        x = (p_1, ..., p_n)        y = 1[ P·P > threshold ],   P = Σ_i p_i

where a·b = a_0 b_0 - a_1 b_1 - a_2 b_2 - a_3 b_3 = aᵀ η b. The threshold is the median of P·P, so that classes are
about even: ((smallest_mass + largest_mass) / 2)² for one particle, else that of 100,001 events, always the same ones
for these settings. For one particle the label tells its mass alone.

`algebra` has the six generators of so(1, 3), Lᵀ η + η L = 0, which act on all four-vectors at once: the boosts along
the three axes, then the rotations about them. For n > 1 they do not make all linear maps that leave the label, which
also stays when energy or momentum goes from one particle to another; they make all that leave every mass and every
product p_i·p_j, too. Rotations leave the law of x, boosts do not.

The task is a small one of the kind of top tagging, on which LieGAN finds so(1, 3) (Yang, Walters, Dehmamy, Yu 2023,
arXiv 2302.00236).

Deviations: theirs are jets of simulated collisions; here nothing collides or decays, and the label is a formula. It is
computed from x as it is stored, in single precision.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor

from invbench.components.algebra import on_every_block
from invbench.core.data import Dataset, Problem, Split, Symmetry, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification

METRIC = np.diag([1.0, -1.0, -1.0, -1.0])
"""The metric η of energy and momentum, p·p = m²."""
EVENTS = 100_001
"""Number of events whose median is the threshold; odd, so that it is one of them."""


@register_dataset("lorentz")
class Lorentz(Dataset):
    """Particles whose total mass is large or small, by their energies and momenta."""

    display_name: ClassVar[str] = "Lorentz"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification")
    citation: ClassVar[str] = "Yang et al., Generative adversarial symmetry discovery, arXiv 2302.00236"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.train_examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
        "trainer.batch_size": 50,
    }

    particles: int = setting(2, "particles in an event", ge=1, le=100)
    smallest_mass: float = setting(0.1, "least mass of a particle", ge=0, le=1000)
    largest_mass: float = setting(1.0, "most mass of a particle", gt=0, le=1000)
    momentum: float = setting(1.0, "standard deviation of each component of a momentum", gt=0, le=1000)
    threshold: float | None = setting(None, "P·P above which the label is 1; null takes the median", gt=0)
    train_examples: int = setting(20_000, "training examples", ge=2)
    validation_examples: int = setting(2_000, "validation examples; 0 makes no such split", ge=0)
    test_examples: int = setting(5_000, "test examples", ge=2)

    @model_validator(mode="after")
    def _masses_are_in_order(self) -> Self:
        if not self.smallest_mass < self.largest_mass:
            raise ValueError("largest_mass must be larger than smallest_mass")
        return self

    @property
    def limit(self) -> float:
        """P·P above which the label is 1."""
        if self.threshold is not None:
            return self.threshold
        return _median(self.particles, self.smallest_mass, self.largest_mass, self.momentum)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        splits = drawn_splits(self._draw, sizes, seed)
        symmetry = Symmetry(algebra=on_every_block(lorentz_generators(), self.particles).float())
        facts = {"threshold": self.limit, "share_above": splits["train"].y.double().mean().item()}
        return Problem(splits, BinaryClassification(), "vector", "synthetic", facts, symmetry=symmetry)

    def _draw(self, count: int, rng: np.random.Generator) -> Split:
        drawn = _events(count, self.particles, self.smallest_mass, self.largest_mass, self.momentum, rng)
        stored = floats(drawn)
        return Split(stored.flatten(1), floats(mass_squared(stored.double().numpy()) > self.limit))


def _events(
    count: int, particles: int, smallest: float, largest: float, momentum: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Draw four-vectors (count, particles, 4)."""
    mass = rng.uniform(smallest, largest, (count, particles, 1))
    momenta = rng.normal(0, momentum, (count, particles, 3))
    energy = np.sqrt(mass**2 + (momenta**2).sum(-1, keepdims=True))
    return np.concatenate([energy, momenta], axis=-1)


def mass_squared(events: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute P·P (N,) of events (N, particles, 4)."""
    total = events.sum(1)
    result: NDArray[np.float64] = np.einsum("ni,ij,nj->n", total, METRIC, total)
    return result


@cache
def _median(particles: int, smallest: float, largest: float, momentum: float) -> float:
    if particles == 1:
        return ((smallest + largest) / 2) ** 2
    rng = np.random.default_rng(np.random.SeedSequence(EVENTS))
    return float(np.median(mass_squared(_events(EVENTS, particles, smallest, largest, momentum, rng))))


def lorentz_generators() -> Tensor:
    """Return the three boosts, then the three rotations, on (energy, momentum) (6, 4, 4)."""
    generators = torch.zeros(6, 4, 4, dtype=torch.float64)
    for axis in range(3):
        generators[axis, 0, 1 + axis] = generators[axis, 1 + axis, 0] = 1
        first, second = (1 + (axis + step) % 3 for step in (1, 2))
        generators[3 + axis, first, second], generators[3 + axis, second, first] = -1, 1
    return generators
