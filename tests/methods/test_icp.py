"""ICP against what it must find, and its test statistic against scipy's on plain arrays."""

from pathlib import Path

import numpy as np
import pytest
from cells import small_config
from scipy import stats

import invbench
from invbench.core.data import Problem
from invbench.errors import UserError
from invbench.methods._linear_estimator import Examples
from invbench.methods.icp import ICP, distribution_p_value, intervals, linear_residuals, p_value
from invbench.runs.options import Options
from invbench.training.runner import run_one


def test_the_causes_are_found() -> None:
    """x0 -> y -> x1, with x2 idle: the noise of x1 changes with the environment, that of y does not."""
    rng = np.random.default_rng(0)
    env = np.repeat([0, 1, 2], 2000)
    scale = np.array([0.5, 1.0, 3.0])[env]
    x0, x2 = scale * rng.normal(size=6000), rng.normal(size=6000)
    y = 2 * x0 + rng.normal(size=6000)
    x1 = y + scale * rng.normal(size=6000)
    fit = ICP().fit(Examples(np.stack([x0, x1, x2], 1), y[:, None], env))
    assert fit.coefficients[:, 0] == pytest.approx([2, 0, 0], abs=0.1)
    assert np.flatnonzero(fit.coefficients).tolist() == [0]
    assert fit.estimates["low.0"] < 2 < fit.estimates["high.0"]
    assert fit.estimates["p_value.0"] < 1e-6
    assert fit.estimates["p_value.1"] > 0.05
    without_causes = ICP().fit(Examples(np.stack([x1, x2], 1), y[:, None], env))
    assert not without_causes.coefficients.any()
    assert without_causes.estimates["accepted_sets"] == 0


def test_means_of_ones_own_data_need_not_be_0(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    env = np.arange(3000) % 3
    x0 = rng.normal(size=3000) * (1 + env) + env
    y = 10 * (2 * x0 + rng.normal(size=3000)) + 50
    x1 = y + rng.normal(size=3000) * (1 + env)
    problem = Problem.from_arrays(np.stack([x0, x1], 1), y, environment=env)
    metrics = invbench.run("icp", problem, out=tmp_path).metrics
    assert metrics["estimate.accepted_sets"] >= 1
    assert metrics["estimate.low.0"] < 20 < metrics["estimate.high.0"], "in the units of the target"
    assert metrics["test_mean_squared_error"] < 150
    assert metrics["test_invariance_p"] > 0.001


def test_p_value() -> None:
    rng = np.random.default_rng(1)
    residuals, env = rng.normal(size=90), np.repeat([0, 1, 2], 30)
    residuals[env == 1] *= 1.3
    p_values = []
    for e in range(3):
        inside, outside = residuals[env == e], residuals[env != e]
        mean = stats.ttest_ind(inside, outside, equal_var=False).pvalue
        below = stats.f.cdf(inside.var(ddof=1) / outside.var(ddof=1), 29, 59)
        p_values.append(2 * min(mean, 2 * min(below, 1 - below)))
    assert p_value(residuals, env) == pytest.approx(3 * min(p_values))


def test_every_set_against_causalicp() -> None:
    """The package fits an intercept, so all is centred here; and it counts E - 1 environments, as R's package does."""
    theirs = pytest.importorskip("causalicp.icp", reason="needs the extra causal")
    rng = np.random.default_rng(2)
    env = np.repeat([0, 1, 2], 200)
    x = rng.normal(size=(600, 3)) * (1 + env[:, None]) @ rng.normal(size=(3, 3))
    y = x[:, 0] - 0.1 * x[:, 1] + rng.normal(size=600)
    both = np.column_stack([x, y])
    both -= both.mean(0)
    data = theirs._Data([both[env == e] for e in range(3)], method="raw")
    for subset, p in ICP().p_values(both[:, :3], both[:, 3], env).items():
        assert min(1, p * 2 / 3) == pytest.approx(theirs._test_hypothesis(3, set(subset), data, 0.05)[2]), subset


def test_distribution_p_value() -> None:
    rng = np.random.default_rng(3)
    env = np.repeat([0, 1, 2], 40)
    residuals = rng.exponential(size=120) * (1 + 0.3 * env)
    parts = [residuals[env == e] for e in range(3)]
    ranks = [stats.ranksums(parts[e], residuals[env != e]).pvalue for e in range(3)]
    expected = 2 * min(stats.levene(*parts, center="mean").pvalue, 3 * min(ranks))
    assert distribution_p_value(residuals, env) == pytest.approx(expected, rel=0.02)  # with correction of continuity
    assert distribution_p_value(residuals[:80], env[:80]) < 2


def test_forests_see_a_cause_that_is_not_linear() -> None:
    rng = np.random.default_rng(4)
    env = np.repeat([0, 1], 400)
    x0 = rng.normal(size=800) * (1 + env)
    y = np.abs(x0) + 0.3 * rng.normal(size=800)
    x1 = y + (1 + 2 * env) * rng.normal(size=800)
    examples = Examples(np.stack([x0, x1], 1), y[:, None], env)
    fit = ICP(residuals="forest").fit(examples)
    assert fit.estimates["p_value.0"] < 0.05 < fit.estimates["p_value.1"]
    assert set(fit.estimates) == {"accepted_sets", "p_value.0", "p_value.1"}
    assert ICP().fit(examples).estimates["accepted_sets"] == 0


def test_intervals_cover() -> None:
    """One accepted set: the intervals are those of least squares, each at the level divided by the number of inputs."""
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(400):
        x = rng.normal(size=(60, 2))
        y = x @ [1.0, -2.0] + rng.normal(size=60)
        low, high = intervals(x, y, [(0, 1)], 0.1)
        covered += bool((low < [1, -2]).all() and (high > [1, -2]).all())
    assert covered / 400 == pytest.approx(0.9, abs=0.04)
    low, high = intervals(x, y, [(0,), (0, 1)], 0.1)
    assert low[1] < high[1] == 0
    assert linear_residuals(x, y, ()) == pytest.approx(y)


@pytest.mark.parametrize("dataset", ["chain_sem", "irm_regression", "linear_unit_tests"])
def test_a_run_has_metrics_and_no_steps(dataset: str, tmp_path: Path) -> None:
    record = run_one(small_config("icp", dataset), Options(out=tmp_path))
    assert record.engine["steps"] == 0
    assert record.engine["parameters"] == 0
    assert "test_mean_squared_error" in record.metrics


@pytest.mark.slow
def test_the_published_pattern(tmp_path: Path) -> None:
    """Homoskedastic: causes found. Heteroskedastic, where residuals of causes do change: not found."""
    good = run_one(small_config("icp", "chain_sem", dataset__examples=1000), Options(out=tmp_path)).metrics
    assert good["coefficient_error_causal"] < 0.01
    assert good["coefficient_error_noncausal"] < 0.01
    bad = small_config("icp", "chain_sem", dataset__examples=1000, dataset__setup="feu")
    assert run_one(bad, Options(out=tmp_path)).metrics["coefficient_error_causal"] == pytest.approx(1)


def test_too_many_inputs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at most 16, not 20"):
        run_one(small_config("icp", "chain_sem", dataset__dimensions=10), Options(out=tmp_path))
