"""The toy of "Learning to pivot": a classifier whose score should not tell the nuisance.

Louppe, Kagan, Cranmer (2017), arXiv 1611.01046, section 5.1. Equal priors, z ~ N(0, 1):

    y = 0:  x ~ N((0, 0), [[1, -½], [-½, 1]])
    y = 1:  x | z ~ N((1, 1 + z), I)

z shifts the signal only; it is drawn for both classes, as in the authors' notebook.

Deviation: the notebook's 50,000 held-out examples are the test split here; the validation split is drawn beside it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from invbench.core.data import Dataset, Problem, Split, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification

COVARIANCE = ((1.0, -0.5), (-0.5, 1.0))


@register_dataset("pivot")
class Pivot(Dataset):
    """Two Gaussians, one of them shifted by a continuous nuisance."""

    display_name: ClassVar[str] = "Pivot"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "nuisance")
    citation: ClassVar[str] = "Louppe, Kagan, Cranmer, Learning to pivot with adversarial networks, arXiv 1611.01046"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.train_examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
    }

    train_examples: int = setting(75_000, "training examples", ge=2)
    validation_examples: int = setting(10_000, "validation examples; 0 makes no such split", ge=0)
    test_examples: int = setting(50_000, "test examples", ge=2)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        return Problem(drawn_splits(_draw, sizes, seed), BinaryClassification(), "vector", "synthetic")


def _draw(count: int, rng: np.random.Generator) -> Split:
    y = rng.integers(0, 2, size=count)
    z = rng.normal(size=count)
    background = rng.multivariate_normal((0, 0), COVARIANCE, size=count)
    signal = rng.normal(size=(count, 2)) + np.stack([np.ones(count), 1 + z], axis=1)
    x = np.where(y[:, None] == 1, signal, background)
    return Split(floats(x), floats(y), nuisance=floats(z))
