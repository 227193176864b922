"""ICP: the causes are what all accepted sets of inputs have in common ("Causal inference using invariant prediction").

Peters, Bühlmann, Meinshausen (2016), arXiv 1501.01332, method II, as in the IRM paper's comparison (arXiv 1907.02893).
For every set S of inputs, with the residuals r of pooled least squares of y on x_S without intercept:

    p_e = 2 min(Welch's t test of the means of r in and outside environment e, two-sided F test of their variances)
    S is accepted if E min_e p_e > α;    the answer is least squares on the intersection of all accepted sets

and 0 where no set is accepted. The search takes place when the model is built, on all training data; nothing is trained
afterwards. 2^D sets are looked at, so there may be at most 16 inputs. Deviations: the empty set is a candidate, as in
the paper.
"""

import math
from collections.abc import Iterator
from itertools import combinations
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr
from torch import nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import Problem
from invbench.core.method import Method
from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.errors import UserError

Array = NDArray[np.float64]
MOST_INPUTS = 16


@register_method("icp")
class ICP(Method):
    """Least squares on the inputs that are in every set with invariant residuals."""

    display_name: ClassVar[str] = "ICP"
    requires: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression")
    replaces_model: ClassVar[bool] = True
    trains: ClassVar[bool] = False

    level: float = setting(0.05, "α, of the tests", gt=0, lt=1)

    @property
    def min_examples(self) -> int:
        return 3

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        train, task = problem.splits["train"], problem.task
        if train.weights is not None:
            raise UserError("method icp tests all training examples alike; leave out their weights, or use erm")
        x = train.inputs().flatten(1).double().numpy()
        y = ((train.y - getattr(task, "mean", 0.0)) / getattr(task, "std", 1.0)).double().numpy()
        env = np.zeros(len(y), dtype=np.int64) if train.env is None else train.env.numpy()
        if x.shape[1] > MOST_INPUTS:
            raise UserError(f"icp tries all sets of inputs, so it takes at most {MOST_INPUTS}, not {x.shape[1]}")
        causes = sorted(self.causes(x, y, env))
        head = nn.Linear(x.shape[1], 1, bias=False).requires_grad_(False)
        head.weight.zero_()
        head.weight[0, causes] = torch.from_numpy(least_squares(x, y, causes)).to(head.weight)
        return FeaturesAndHead(nn.Flatten(), head)

    def causes(self, x: Array, y: Array, env: NDArray[np.int64]) -> set[int]:
        """Return the inputs that are in all accepted sets; x (N, D), y (N,), env (N,)."""
        common: set[int] | None = None
        for subset in _subsets(x.shape[1]):
            if common is not None and common <= set(subset):
                continue  # it could not take anything away
            residuals = y - x[:, subset] @ least_squares(x, y, subset)
            if p_value(residuals, env) > self.level:
                common = set(subset) if common is None else common & set(subset)
        return common or set()


def p_value(residuals: Array, env: NDArray[np.int64]) -> float:
    """Test whether residuals (N,) have one mean and one variance in all environments; Bonferroni-corrected."""
    environments = np.unique(env)
    each = [_difference(residuals[env == e], residuals[env != e]) for e in environments]
    return float(len(environments) * min(each))


def least_squares(x: Array, y: Array, columns: list[int]) -> Array:
    """Compute the coefficients of pooled least squares on some columns."""
    return np.asarray(np.linalg.lstsq(x[:, columns], y, rcond=None)[0], dtype=np.float64)


def _difference(inside: Array, outside: Array) -> float:
    """Return twice the least p-value of Welch's t-test and of the F-test; scipy.stats takes 1 ms for each of these."""
    variances, freedom = (inside.var(ddof=1), outside.var(ddof=1)), (len(inside) - 1, len(outside) - 1)
    errors = variances[0] / len(inside), variances[1] / len(outside)
    t = (inside.mean() - outside.mean()) / math.sqrt(sum(errors))
    mean = 2 * stdtr(sum(errors) ** 2 / (errors[0] ** 2 / freedom[0] + errors[1] ** 2 / freedom[1]), -abs(t))
    tail = fdtrc(*freedom, variances[0] / variances[1])
    return float(2 * min(mean, 2 * min(tail, 1 - tail)))


def _subsets(size: int) -> Iterator[list[int]]:
    for count in range(size + 1):
        yield from (list(subset) for subset in combinations(range(size), count))
