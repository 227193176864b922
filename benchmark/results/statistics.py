"""Statistics of runs that share seeds: intervals of means, paired comparisons, ranks over datasets."""

import math
from collections.abc import Hashable, Mapping
from typing import TypeVar

import numpy as np
import pandas as pd
from scipy.special import stdtr, stdtrit  # scipy.stats takes a second to import

from invbench.core.metric import P_VALUE, SHARE, metric_of, parse_column

Name = TypeVar("Name", bound=Hashable)
LEVEL = 0.95
"""Confidence of intervals; tests have the level 1 - LEVEL."""
COST = "cost."
"""Beginning of the names of columns of costs."""
ROUNDING = 1e-9
"""Largest relative difference of numbers that count as equal: sums in another order differ by as much."""


def is_share(metric: str) -> bool:
    """Tell whether a metric is a share between 0 and 1, which may be given in per cent.

    Metrics in bins of a nuisance are no shares.

    Args:
        metric: a column, such as `test_accuracy`.
    """
    column = parse_column(metric)
    return metric_of(column.metric).unit == SHARE and not column.bin


def is_p_value(metric: str) -> bool:
    """Tell whether a metric is a p-value of each run: `test_invariance_p`."""
    return metric_of(parse_column(metric).metric).unit == P_VALUE


def combined_p_value(p_values: pd.Series) -> float:
    """Combine p-values of runs, which may depend on one another: twice their median, 1 at most; one stays as it is.

    Source: Meinshausen, Meier, Bühlmann (2009), arXiv 0811.2177, equation 2.2 with γ = 1/2.
    """
    return float(p_values.iloc[0]) if len(p_values) == 1 else min(1.0, 2 * float(p_values.median()))


def is_share_of_cost(metric: str, fused: int) -> bool:
    """Tell whether a column holds equal shares of the cost of several runs that were trained together."""
    return metric.startswith(COST) and fused > 1


def half_width(values: pd.Series) -> float:
    """Return half the width of the 95 % t-interval of the mean (ddof = 1); NaN for a single value."""
    n = len(values)
    if n < 2:
        return math.nan
    return float(stdtrit(n - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(n))


def paired_p_value(first: pd.Series, second: pd.Series) -> float:
    """Return the p-value of the two-sided paired t-test over the common index, such as seeds; NaN for fewer than 2."""
    common = first.index.intersection(second.index)
    differences = (first[common] - second[common]).to_numpy(dtype=float)
    if len(differences) < 2:
        return math.nan
    spread = differences.std(ddof=1)
    if spread == 0:
        return 1.0 if differences[0] == 0 else 0.0
    t = differences.mean() / (spread / math.sqrt(len(differences)))
    return float(2 * stdtr(len(differences) - 1, -abs(t)))


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values for the number of tests (Holm 1979).

    The probability of any false rejection is at most α where tests with an adjusted p-value below α are rejected.
    A p-value of NaN, of a test that could not be made, stays NaN and does not count.
    """
    known = sorted((name for name in p_values if not math.isnan(p_values[name])), key=lambda name: p_values[name])
    adjusted, largest = dict.fromkeys(p_values, math.nan), 0.0
    for rank, name in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p_values[name]))
        adjusted[name] = largest
    return adjusted


def alike(scores: pd.Series) -> pd.Series:
    """Return the numbers, with those made equal that differ from the next one by rounding only."""
    values = scores.to_numpy(np.float64)
    index = np.argsort(values)[: np.count_nonzero(~np.isnan(values))]  # NaN is last
    order = values[index]
    smaller = np.minimum(np.abs(order[1:]), np.abs(order[:-1]))  # so infinity differs from every number
    with np.errstate(invalid="ignore"):
        apart = np.diff(order) > ROUNDING * smaller
    first = np.where(np.append(True, apart)[: len(order)], np.arange(len(order)), 0)
    equal = np.full(len(values), np.nan)
    equal[index] = order[np.maximum.accumulate(first)]
    return pd.Series(equal, index=scores.index, name=scores.name)


def best_of(values: Mapping[Name, pd.Series], higher_is_better: bool) -> Name:
    """Return the name of the values with the best mean; the first one of means that differ by rounding only."""
    best = all_best(values, higher_is_better)
    return next((name for name in values if name in best), next(iter(values)))


def all_best(values: Mapping[Name, pd.Series], higher_is_better: bool) -> set[Name]:
    """Return the names of all values with the best mean; means that differ by rounding only are equal."""
    means = alike(pd.Series([float(scores.mean()) for scores in values.values()]))
    best = means.max() if higher_is_better else means.min()
    return {name for name, mean in zip(values, means, strict=True) if mean == best}


def against_best(values: Mapping[Name, pd.Series], higher_is_better: bool) -> dict[Name, float]:
    """Return the p-value of each name against the best one, adjusted by `holm`; 1 for the best itself.

    Args:
        values: for each name a number per seed, with the seeds as index.
        higher_is_better: the direction of the numbers.
    """
    best = best_of(values, higher_is_better)
    tests = {name: paired_p_value(values[best], scores) for name, scores in values.items() if name != best}
    return {best: 1.0} | holm(tests)


def ranks(scores: pd.DataFrame, higher_is_better: bool) -> pd.DataFrame:
    """Rank the methods (columns) on each dataset (row); 1 is the best, equal ones share the mean of their ranks."""
    return scores.apply(alike, axis=1).rank(axis=1, ascending=not higher_is_better)


def friedman(scores: pd.DataFrame) -> float:
    """Return the p-value of the Friedman test that all methods (columns) rank alike on the datasets (rows).

    NaN for fewer than 3 methods or 2 datasets, and where all scores of each dataset are equal.
    """
    if scores.shape[1] < 3 or scores.shape[0] < 2 or scores.nunique(axis=1).max() == 1:
        return math.nan
    from scipy import stats

    return float(stats.friedmanchisquare(*(scores[name] for name in scores)).pvalue)


def critical_difference(methods: int, datasets: int) -> float:
    """Return the distance of mean ranks beyond which methods differ at 5 % (Nemenyi; Demšar 2006, equation 5)."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(LEVEL, methods, np.inf)) / math.sqrt(2)
    return q * math.sqrt(methods * (methods + 1) / (6 * datasets))
