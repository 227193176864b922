"""Linear predictors that are computed from the training data in closed form, when the network is built."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from invbench.components.estimates import Estimates
from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.method import Method
from invbench.core.task import BinaryClassification, Regression, Task
from invbench.errors import UserError

Array = NDArray[np.float64]
MOST_INPUTS = 4096
"""Largest number of inputs; the moments of each environment have the square of it."""
ROUNDING = 1e-10
"""Share of the largest singular value, or eigenvalue, below which another is rounding."""


@dataclass(frozen=True)
class Examples:
    """Training examples as arrays: x (N, D), y (N, K), env (N,) from 0, nuisance (N, Q) or None.

    A unit of y is `unit` of the target's.
    """

    x: Array
    y: Array
    env: NDArray[np.int64]
    nuisance: Array | None = None
    unit: float = 1.0

    def about(self, x: Array, y: Array) -> "Examples":
        """Move the origin to x (D,) and y (K,)."""
        return replace(self, x=self.x - x, y=self.y - y)

    def scaled(self, spread: Array) -> "Examples":
        """Divide the inputs by numbers (D,)."""
        return replace(self, x=self.x / spread)

    def moments(self) -> tuple[Array, Array, Array]:
        """Return each environment's share of the examples (E,), mean x xᵀ (E, D, D) and mean x yᵀ (E, D, K)."""
        parts = [self.env == e for e in np.unique(self.env)]
        x, y = [self.x[part] for part in parts], [self.y[part] for part in parts]
        shares = np.array([len(part) for part in x]) / len(self.x)
        within = [part.T @ part / len(part) for part in x]
        between = [part.T @ target / len(part) for part, target in zip(x, y, strict=True)]
        return shares, np.stack(within), np.stack(between)


@dataclass(frozen=True)
class Linear:
    """Prediction x @ coefficients (D, K) + intercept (K,), with other numbers for the record."""

    coefficients: Array
    intercept: Array
    estimates: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Origin:
    """Point x (D,), y (K,) from which a predictor without intercept is fitted, and units of the inputs (D,) there.

    The units are standard deviations, so that those of the data do not matter to the solver.
    """

    x: Array
    y: Array
    units: Array

    @classmethod
    def of(cls, examples: Examples, rows: slice | NDArray[np.bool_] = slice(None)) -> "Origin":
        """Return the means of some rows, with the standard deviations of all rows as units."""
        spread = examples.x.std(0)
        return cls(examples.x[rows].mean(0), examples.y[rows].mean(0), np.where(spread > 0, spread, 1.0))

    def seen_from(self, examples: Examples) -> Examples:
        """Return the examples relative to this point, in these units."""
        return examples.about(self.x, self.y).scaled(self.units)

    def predictor(self, coefficients: Array) -> Linear:
        """Return the predictor with coefficients (D, K) in these units through this point."""
        plain = coefficients / self.units[:, None]
        return Linear(plain, self.y - self.x @ plain)


class LinearEstimator(Method):
    """Method whose predictor is linear, and is computed when it is built; nothing is trained afterwards.

    Regression predicts the target, standardised as the task says. Classification is least squares on labels: -1 and 1
    of two classes, one-hot rows of more; the predictions are taken for logits, which gives the labels, but no
    probabilities. A subclass states `requires` and `replaces_model`, which are read without importing it.
    """

    trains: ClassVar[bool] = False

    @abstractmethod
    def fit(self, examples: Examples) -> Linear:
        """Compute the linear predictor from the training examples."""

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        train = problem.splits["train"]
        if train.weights is not None:
            raise UserError(
                f"{self.display_name} takes all training examples alike; leave out their weights, or use erm"
            )
        x = _array(train.inputs())
        if x.shape[1] > MOST_INPUTS:
            raise UserError(f"{self.display_name} takes at most {MOST_INPUTS} inputs, not {x.shape[1]}")
        env = np.zeros(len(x), dtype=np.int64) if train.env is None else train.env.cpu().numpy()
        nuisance = None if train.nuisance is None else _nuisance(train.nuisance)
        unit = float(getattr(problem.task, "std", 1.0))
        fit = self.fit(Examples(x, encoded(problem.task, train.y), env, nuisance, unit))
        head = nn.Linear(*fit.coefficients.shape).requires_grad_(False)
        head.weight.copy_(torch.from_numpy(fit.coefficients.T))
        head.bias.copy_(torch.from_numpy(fit.intercept))
        network = FeaturesAndHead(nn.Flatten(), head)
        network.estimates = Estimates(fit.estimates)
        return network


def encoded(task: Task, y: Tensor) -> Array:
    """Return what a linear predictor is fitted to (N, outputs): standardised targets, or labels as numbers."""
    targets = y.double().cpu().numpy()[:, None]
    if isinstance(task, Regression):
        return np.asarray((targets - task.mean) / task.std)
    if isinstance(task, BinaryClassification):
        return np.asarray(2 * targets - 1)
    return np.asarray(targets == np.arange(task.outputs), dtype=np.float64)


def least_squares(x: Array, y: Array, ridge: float | Array = 0.0) -> Array:
    """Minimise |y - x b|² + N Σ_j ridge_j b_j² for x (N, D) and y (N, K); the shortest b (D, K) of several."""
    if np.any(ridge):
        size = x.shape[1]
        x, y = np.concatenate([x, np.sqrt(len(x) * ridge) * np.eye(size)]), np.pad(y, ((0, size), (0, 0)))
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def _nuisance(values: Tensor) -> Array:
    """Return numbers as they are (N, Q), and categories as indicators."""
    if values.is_floating_point():
        return _array(values.reshape(len(values), -1))
    codes = values.reshape(len(values), -1).cpu().numpy()
    return np.concatenate([column[:, None] == np.unique(column) for column in codes.T], 1).astype(np.float64)


def _array(values: Tensor) -> Array:
    return np.asarray(values.flatten(1).double().cpu().numpy())
