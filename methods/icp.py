"""ICP: the causes are what all accepted sets of inputs have in common ("Causal inference using invariant prediction").

Peters, Bühlmann, Meinshausen (2016), arXiv 1501.01332, method II, as in the IRM paper's comparison (arXiv 1907.02893).
For every set S of inputs, with the residuals r of pooled least squares of y on x_S:

    p_e = 2 min(Welch's t test of the means of r in and outside environment e, two-sided F test of their variances)
    S is accepted if E min_e p_e > α;    the answer is least squares on the intersection of all accepted sets

and 0 where no set is accepted. With `residuals: forest`, r is what a random forest of y on x_S leaves of examples that
a tree has not seen, and the test that of Heinze-Deml, Peters, Meinshausen (2018), arXiv 1706.08576 ("invariant
residual distribution test"):

    p = 2 min(Levene's test of the spread of r over environments, E min_e Mann-Whitney's test in and outside e)

where E counts 1 for two environments. The predictor is least squares on the causes there, too.

The search takes place when the model is built, on all training data; nothing is trained afterwards. The record has for
input j the p-value of "j is no cause", the largest p of a set without j, as `estimate.p_value.<j>`; and, for linear
residuals, the hull of the 1 - α intervals of its coefficient in all accepted sets, with 0 for those without it, as
`estimate.low.<j>` and `estimate.high.<j>`, in units of the target per unit of the input as the network gets it. Its
coverage is 1 - 2 α. `estimate.accepted_sets` is their number; with 0 no
set is invariant, so an assumption is wrong, such as that the target is not intervened on.

Deviations: the empty set is a candidate, as in the paper. 2^D sets are looked at, so there may be at most 16 inputs, 8
with forests.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtr, fdtrc, stdtr, stdtrit

from invbench.core.registry import register_method
from invbench.core.settings import setting
from invbench.errors import UserError
from invbench.methods._linear_estimator import Array, Examples, Linear, LinearEstimator, least_squares

MOST_INPUTS = {"linear": 16, "forest": 8}
TREES, LEAF = 100, 5
"""Number of trees of a forest, and least number of examples in a leaf."""
Columns = tuple[int, ...]


@register_method("icp")
class ICP(LinearEstimator):
    """Least squares on the inputs that are in every set with invariant residuals."""

    display_name: ClassVar[str] = "ICP"
    requires: ClassVar[tuple[str, ...]] = ("vector", "environments", "regression")
    replaces_model: ClassVar[bool] = True

    level: float = setting(0.05, "α, of the tests", gt=0, lt=1)
    residuals: Literal["linear", "forest"] = setting("linear", "of least squares, or of random forests")
    intercept: bool = setting(True, "centre inputs and target; without, as in the IRM paper, their means must be 0")

    @property
    def min_examples(self) -> int:
        return 3

    def fit(self, examples: Examples) -> Linear:
        mean_x, mean_y = examples.x.mean(0) * self.intercept, examples.y.mean(0) * self.intercept
        centred = examples.about(mean_x, mean_y)
        x, y, env = centred.x, centred.y[:, 0], centred.env
        p_values = self.p_values(x, y, env)
        accepted = [subset for subset, p in p_values.items() if p > self.level]
        causes = sorted(set.intersection(*map(set, accepted))) if accepted else []
        coefficients = np.zeros((x.shape[1], 1))
        coefficients[causes, 0] = least_squares(x[:, causes], y)
        estimates = {"accepted_sets": float(len(accepted))}
        for j in range(x.shape[1]):
            estimates[f"p_value.{j}"] = min(1.0, max(p for subset, p in p_values.items() if j not in subset))
        if self.residuals == "linear" and accepted:
            low, high = intervals(x, y, accepted, self.level)
            estimates |= {f"low.{j}": value * examples.unit for j, value in enumerate(low)}
            estimates |= {f"high.{j}": value * examples.unit for j, value in enumerate(high)}
        return Linear(coefficients, mean_y - mean_x @ coefficients, estimates)

    def p_values(self, x: Array, y: Array, env: NDArray[np.int64]) -> Mapping[Columns, float]:
        """Return the p-value of invariance of every set of inputs, not capped at 1; x (N, D), y (N,), env (N,)."""
        most = MOST_INPUTS[self.residuals]
        if x.shape[1] > most:
            raise UserError(f"icp tries all sets of inputs, so it takes at most {most}, not {x.shape[1]}")
        residuals_of, test = TESTS[self.residuals]
        return {subset: test(residuals_of(x, y, subset), env) for subset in _subsets(x.shape[1])}


def linear_residuals(x: Array, y: Array, columns: Columns) -> Array:
    """Compute what pooled least squares on some columns leaves of y."""
    return np.asarray(y - x[:, columns] @ least_squares(x[:, columns], y))


def forest_residuals(x: Array, y: Array, columns: Columns) -> Array:
    """Compute what a forest on some columns leaves of y, of examples that its trees have not seen; centred."""
    from sklearn.ensemble import RandomForestRegressor  # half a second

    if not columns:
        return np.asarray(y - y.mean())
    forest = RandomForestRegressor(TREES, min_samples_leaf=LEAF, max_features="sqrt", oob_score=True, random_state=0)
    residuals = y - forest.fit(x[:, columns], y).oob_prediction_
    return np.asarray(residuals - residuals.mean())


def p_value(residuals: Array, env: NDArray[np.int64]) -> float:
    """Test whether residuals (N,) have one mean and one variance in all environments; Bonferroni-corrected."""
    environments = np.unique(env)
    each = [_difference(residuals[env == e], residuals[env != e]) for e in environments]
    return float(len(environments) * min(each))


def distribution_p_value(residuals: Array, env: NDArray[np.int64]) -> float:
    """Test whether residuals (N,) have one spread and one location in all environments, without a normal law."""
    from scipy import stats  # a second

    parts = [residuals[env == e] for e in np.unique(env)]
    spread = stats.levene(*parts, center="mean").pvalue
    each = [stats.mannwhitneyu(part, residuals[env != e]).pvalue for e, part in zip(np.unique(env), parts, strict=True)]
    return float(2 * min(spread, min(each) * (1 if len(each) == 2 else len(each))))


def intervals(x: Array, y: Array, accepted: list[Columns], level: float) -> tuple[Array, Array]:
    """Return the least and the largest end of each coefficient's intervals (D,) over the accepted sets."""
    low, high = np.full((2, len(accepted), x.shape[1]), 0.0)
    for row, columns in enumerate(accepted):
        b, freedom = least_squares(x[:, columns], y), len(y) - len(columns)
        residuals = y - x[:, columns] @ b
        inverse = np.linalg.pinv(x[:, columns].T @ x[:, columns])
        errors = np.sqrt(residuals @ residuals / freedom * np.diagonal(inverse))
        reach = errors * stdtrit(freedom, 1 - level / (2 * max(1, len(columns))))
        low[row, columns], high[row, columns] = b - reach, b + reach
    return low.min(0), high.max(0)


def _difference(inside: Array, outside: Array) -> float:
    """Return twice the least p-value of Welch's t-test and of the F-test; scipy.stats takes 1 ms for each of these."""
    variances, freedom = (inside.var(ddof=1), outside.var(ddof=1)), (len(inside) - 1, len(outside) - 1)
    errors = variances[0] / len(inside), variances[1] / len(outside)
    t = (inside.mean() - outside.mean()) / math.sqrt(sum(errors))
    mean = 2 * stdtr(sum(errors) ** 2 / (errors[0] ** 2 / freedom[0] + errors[1] ** 2 / freedom[1]), -abs(t))
    ratio = variances[0] / variances[1]
    return float(2 * min(mean, 2 * min(fdtrc(*freedom, ratio), fdtr(*freedom, ratio))))


def _subsets(size: int) -> Iterator[Columns]:
    for count in range(size + 1):
        yield from combinations(range(size), count)


TESTS: Mapping[str, tuple[Callable[..., Array], Callable[..., float]]] = {
    "linear": (linear_residuals, p_value),
    "forest": (forest_residuals, distribution_p_value),
}
"""How residuals are computed, and how they are tested."""
