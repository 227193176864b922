"""A regression that some rotations about an axis leave alone, and those between them do not.

The synthetic regression of LieGAN: Yang, Walters, Dehmamy, Yu (2023), "Generative Adversarial Symmetry Discovery",
ICML, arXiv 2302.00236. With order n = 7,

    x ~ N(0, I_3)            y = x_3 / (1 + (atan2(x_2, x_1) mod 2π/n))

y jumps where the angle is a multiple of 2π/n, and falls by a factor of up to 1 + 2π/n between. Let L be the generator
of rotations about axis 3. Only exp(k 2π/n L) with integer k are symmetries; the law of x is that of exp(ε L) x for all
ε. `algebra` is L, which tells the line on which the symmetries are, not the steps along it; the step is the fact
`symmetry_step`.

Deviations: the paper tells the formula, here also the numbers of examples are chosen; y is computed from x as it is
stored, in single precision.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from invbench.core.data import Dataset, Problem, Split, Symmetry, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Regression

ABOUT_AXIS_3 = ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 0.0))


@register_dataset("discrete_rotation")
class DiscreteRotation(Dataset):
    """A regression with seven rotations about an axis as its symmetries."""

    display_name: ClassVar[str] = "Discrete rotation"
    provides: ClassVar[tuple[str, ...]] = ("vector", "regression")
    citation: ClassVar[str] = "Yang et al., Generative adversarial symmetry discovery, arXiv 2302.00236"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
        "trainer.batch_size": 50,
    }

    order: int = setting(7, "number of rotations that leave the target, the identity among them", ge=1)
    examples: int = setting(20_000, "training examples", ge=2)
    validation_examples: int = setting(2_000, "validation examples; 0 makes no such split", ge=0)
    test_examples: int = setting(5_000, "test examples", ge=2)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = {"train": self.examples, "validation": self.validation_examples, "test": self.test_examples}
        splits = drawn_splits(self._draw, sizes, seed)
        task = Regression("units of y", primary="mean_squared_error")
        facts = {"symmetry_step": 2 * np.pi / self.order}
        symmetry = Symmetry(algebra=torch.tensor([ABOUT_AXIS_3]))
        return Problem(splits, task, "vector", "synthetic", facts, symmetry=symmetry)

    def _draw(self, count: int, rng: np.random.Generator) -> Split:
        x = rng.standard_normal((count, 3), dtype=np.float32)
        return Split(torch.from_numpy(x), floats(law(x.astype(np.float64), self.order)))


def law(x: NDArray[np.float64], order: int) -> NDArray[np.float64]:
    """Compute the target (N,) of inputs (N, 3)."""
    angle = np.mod(np.arctan2(x[:, 1], x[:, 0]), 2 * np.pi / order)
    target: NDArray[np.float64] = x[:, 2] / (1 + angle)
    return target
