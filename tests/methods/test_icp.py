"""ICP against what it must find, and its test statistic against scipy's on plain arrays."""

from pathlib import Path

import numpy as np
import pytest
from cells import small_config
from scipy import stats

from invbench.errors import UserError
from invbench.methods.icp import ICP, p_value
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
    assert ICP().causes(np.stack([x0, x1, x2], 1), y, env) == {0}
    assert ICP().causes(np.stack([x1, x2], 1), y, env) == set()


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
