"""Statistics against independent calculations."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from invbench.results.statistics import (
    against_best,
    alike,
    best_of,
    critical_difference,
    friedman,
    half_width,
    holm,
    paired_p_value,
    ranks,
)

values = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(2.0, 3.0, (10_000, 3))
    covered = [abs(row.mean() - 2.0) <= half_width(pd.Series(row)) for row in samples]
    assert abs(np.mean(covered) - 0.95) < 0.015


@given(st.lists(st.tuples(values, values), min_size=2, max_size=8))
def test_the_paired_test_is_scipy_s(pairs: list[tuple[float, float]]) -> None:
    first, second = (pd.Series(column, dtype=float) for column in zip(*pairs, strict=True))
    differences = np.array(first - second)
    if np.ptp(differences) < 1e-9:
        return
    expected = scipy.stats.ttest_rel(first, second).pvalue
    assert paired_p_value(first, second) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert paired_p_value(second, first) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_only_common_seeds_are_compared() -> None:
    first, second = pd.Series({0: 1.0, 1: 2.0, 5: 9.0}), pd.Series({1: 2.5, 0: 2.0, 7: 0.0})
    expected = scipy.stats.ttest_rel([1.0, 2.0], [2.0, 2.5]).pvalue
    assert paired_p_value(first, second) == pytest.approx(expected)
    assert math.isnan(paired_p_value(first, pd.Series({5: 1.0})))


def test_equal_differences() -> None:
    ones = pd.Series([1.0, 2.0])
    assert paired_p_value(ones, ones) == 1
    assert paired_p_value(ones, ones + 1) == 0


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_closed_testing(p_values: dict[str, float]) -> None:
    """A hypothesis falls where each set of hypotheses that holds it falls by Bonferroni's rule."""
    sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(p_values, size)]
    expected = {
        name: min(1.0, max(len(s) * min(p_values[other] for other in s) for s in sets if name in s))
        for name in p_values
    }
    assert holm(p_values) == pytest.approx(expected)


def test_holm_leaves_out_what_could_not_be_tested() -> None:
    adjusted = holm({"a": 0.02, "b": math.nan, "c": 0.04})
    assert (adjusted["a"], adjusted["c"]) == (0.04, 0.04)
    assert math.isnan(adjusted["b"])


def test_against_the_best() -> None:
    seeds = {"a": [0.9, 0.8, 0.85], "b": [0.5, 0.41, 0.45], "c": [0.86, 0.81, 0.8]}
    p_values = against_best({name: pd.Series(scores) for name, scores in seeds.items()}, higher_is_better=True)
    raw = {name: scipy.stats.ttest_rel(seeds["a"], seeds[name]).pvalue for name in "bc"}
    assert p_values == pytest.approx({"a": 1.0, "b": 2 * raw["b"], "c": raw["c"]})
    lower = against_best({name: pd.Series(scores) for name, scores in seeds.items()}, higher_is_better=False)
    assert lower["b"] == 1


def test_false_alarms_among_equals_are_rare() -> None:
    """Ten equal methods: some is told from another in no more than 5 % of the experiments, against a fixed one."""
    rng = np.random.default_rng(1)
    alarms = 0
    for _ in range(1000):
        sample = rng.normal(size=(10, 5))
        tests = {str(i): paired_p_value(pd.Series(sample[0]), pd.Series(sample[i])) for i in range(1, 10)}
        alarms += min(holm(tests).values()) < 0.05
    assert alarms / 1000 < 0.065


@pytest.mark.parametrize(("methods", "q"), [(2, 1.960), (3, 2.343), (5, 2.728), (10, 3.164)])
def test_critical_differences_of_the_paper(methods: int, q: float) -> None:
    """Demšar 2006, table 5a."""
    assert critical_difference(methods, 12) == pytest.approx(q * math.sqrt(methods * (methods + 1) / 72), abs=1e-3)


def test_ranks() -> None:
    scores = pd.DataFrame({"a": [0.9, 0.7], "b": [0.9, 0.8], "c": [0.1, 0.9]})
    assert ranks(scores, higher_is_better=True).to_numpy().tolist() == [[1.5, 1.5, 3], [3, 2, 1]]
    assert ranks(scores, higher_is_better=False).to_numpy().tolist() == [[2.5, 2.5, 1], [1, 2, 3]]
    more = pd.concat([scores, scores + 0.01])
    expected = scipy.stats.friedmanchisquare(more["a"], more["b"], more["c"]).pvalue
    assert friedman(more) == pytest.approx(expected)
    assert math.isnan(friedman(scores[["a", "b"]]))


def test_numbers_beside_infinity_and_none_are_not_alike() -> None:
    numbers = pd.Series([1.0, math.inf, math.nan, -math.inf, 1.0 + 1e-12, 0.0])
    assert alike(numbers).tolist()[:2] == [1.0, math.inf]
    assert alike(numbers).tolist()[3:] == [-math.inf, 1.0, 0.0]
    assert best_of({"none": pd.Series([math.nan]), "some": pd.Series([0.5])}, True) == "some"
