"""The toy of mutual-information regularisation: a classifier whose score should not tell a coordinate of its input.

The notebook `toy_MI` of Tan's `invariant_reps`. Equal priors, z ~ N(0, 1):

    class 0:  x | z ~ N((z, 0), [[1, ½], [½, 1]])
    class 1:  x ~ N((0, 3/2), I)

The protected variable is x_0, as in the notebook; `nuisance: latent` protects z instead, which only class 0 depends on
(it is drawn for both).

Deviation: the notebook draws fresh batches for ever; here the training set is finite.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np

from invbench.core.data import Dataset, Problem, Split, drawn_splits, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification

COVARIANCE = ((1.0, 0.5), (0.5, 1.0))


@register_dataset("mi_toy")
class MutualInformationToy(Dataset):
    """Two Gaussians in the plane, the first coordinate protected."""

    display_name: ClassVar[str] = "MI toy"
    provides: ClassVar[tuple[str, ...]] = ("vector", "classification", "nuisance")
    citation: ClassVar[str] = "Tan, invariant_reps (notebook toy_MI)"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.train_examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
        "trainer.batch_size": 50,
    }

    nuisance: Literal["first_input", "latent"] = setting("first_input", "what is protected: x_0, or z behind it")
    train_examples: int = setting(100_000, "training examples", ge=2)
    validation_examples: int = setting(10_000, "validation examples; 0 makes no such split", ge=0)
    test_examples: int = setting(10_000, "test examples", ge=2)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        sizes = {"train": self.train_examples, "validation": self.validation_examples, "test": self.test_examples}
        return Problem(drawn_splits(self._draw, sizes, seed), BinaryClassification(), "vector", "synthetic")

    def _draw(self, count: int, rng: np.random.Generator) -> Split:
        y = rng.integers(0, 2, size=count)
        z = rng.normal(size=count)
        first = rng.multivariate_normal((0, 0), COVARIANCE, size=count) + np.stack([z, np.zeros(count)], axis=1)
        second = rng.normal((0, 1.5), 1, size=(count, 2))
        x = np.where(y[:, None] == 0, first, second)
        protected = x[:, 0] if self.nuisance == "first_input" else z
        return Split(floats(x), floats(y), nuisance=floats(protected))
