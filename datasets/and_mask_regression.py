"""Four data points, four environments, five inputs: the smallest problem on which averaging gradients goes wrong.

The notebook of Parascandolo et al. (2020), arXiv 2009.00329. Environment e has one example with y = 1 and

    x_e = 3 (one-hot_e, 0.1) = (a strong private feature 3, ..., a weak shared feature 0.3)

A patchwork of private features, θ ≈ (1/3, 1/3, 1/3, 1/3, ~0.1), fits as well as the invariant (0, 0, 0, 0, 10/3).
Training on the first or last two environments leaves the others as the test split.

Deviation: the authors' loss is ½ (x·θ - y)², the suite's (x·θ - y)²; the recipe halves the learning rate and doubles
the weight decay, which gives the same steps.
"""

from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.core.data import Dataset, LinearLaw, Problem, Split
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Regression

ENVIRONMENTS, STRENGTH, SHARED = 4, 3.0, 0.1
ROWS = {"all": range(4), "first": range(2), "last": range(2, 4)}


@register_dataset("and_mask_regression")
class AndMaskRegression(Dataset):
    """One example per environment: private features against a shared one."""

    display_name: ClassVar[str] = "AND-mask regression"
    provides: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression")
    backbone: ClassVar[str] = "linear"
    citation: ClassVar[str] = "Parascandolo et al., Learning explanations that are hard to vary, arXiv 2009.00329"

    train: Literal["all", "first", "last"] = setting("all", "train on all four, the first two or the last two")
    noise: float = setting(0.0, "private features get U(-noise, noise); the authors' switch is 0.001", ge=0)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        private = np.eye(ENVIRONMENTS)
        private += np.random.default_rng(seed).uniform(-self.noise, self.noise, private.shape)
        x = torch.from_numpy(STRENGTH * np.hstack([private, np.full((ENVIRONMENTS, 1), SHARED)]))
        train = list(ROWS[self.train])
        test = [e for e in range(ENVIRONMENTS) if e not in train] or train
        coefficients = torch.tensor([0.0] * ENVIRONMENTS + [1 / (STRENGTH * SHARED)], dtype=torch.float64)
        return Problem(
            {"train": _split(x[train]), "test": _split(x[test])},
            Regression("units of y", primary="mean_squared_error"),
            "vector",
            "synthetic",
            law=LinearLaw(coefficients, coefficients > 0),
        )


def _split(x: Tensor) -> Split:
    return Split(x, x.new_ones(len(x)), torch.arange(len(x)))
