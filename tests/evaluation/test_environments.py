"""The p-value of invariance has its level, and sees means, spreads and frequencies that depend on the environment."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from invbench.core.data import Split
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.evaluation.environments import (
    classification_p_value,
    environment_metrics,
    regression_p_values,
)
from invbench.evaluation.groups import calibration_error

SIMULATIONS = 2000
Arrays = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]


def regression_data(generator: np.random.Generator, count: int, shift: float = 0.0, spread: float = 0.0) -> Arrays:
    """Draw predictions whose law depends on the environment, and targets whose law given these need not."""
    env = generator.integers(0, 2, count)
    prediction = generator.normal(0.5 * env, 1 + 0.5 * env)
    noise = generator.normal(0, 0.5 + 0.3 * np.abs(prediction) + spread * env)
    return prediction, np.sin(2 * prediction) + shift * env + noise, env


def class_data(generator: np.random.Generator, count: int, classes: int, shift: float = 0.0) -> Arrays:
    """Draw logits whose law depends on the environment, and labels with twice these logits, and a shift in the last."""
    env = generator.integers(0, 3, count)
    logits = generator.normal(0, 1.5, (count, classes)) + env[:, None] * np.linspace(0, 0.5, classes)
    truth = 2 * logits
    truth[:, -1] += shift * env
    labels = (truth + generator.gumbel(size=truth.shape)).argmax(1)
    return logits, labels, env


def test_level_of_regression() -> None:
    generator = np.random.default_rng(0)
    p_values = np.array([regression_p_values(*regression_data(generator, 400)) for _ in range(SIMULATIONS)])
    for p in p_values.T:
        assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.01)
    assert 0.03 < (2 * p_values.min(1) < 0.05).mean() < 0.06, "two tests that depend on one another"


@pytest.mark.parametrize("classes", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_level_of_classification(classes: int) -> None:
    generator = np.random.default_rng(classes)
    p_values = [classification_p_value(*class_data(generator, 1500, classes)) for _ in range(SIMULATIONS)]
    assert (np.array(p_values) < 0.05).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("noise", ["normal", "exponential", "lognormal"])
def test_a_small_environment_is_not_rejected_too_often(noise: str) -> None:
    generator = np.random.default_rng(5)
    env = np.repeat([0, 1], [1500, 60])
    rejected = []
    for _ in range(300):
        prediction = generator.normal(size=1560)
        p_values = regression_p_values(prediction, prediction + getattr(generator, noise)(size=1560), env)
        rejected.append(2 * min(p_values) < 0.05)
    assert np.mean(rejected) < 0.1


def test_environments_that_are_too_small_are_not_compared() -> None:
    generator = np.random.default_rng(6)
    prediction, env = generator.normal(size=540), np.repeat([0, 1], [500, 40])
    moved = prediction + generator.normal(size=540) + 5 * env
    assert regression_p_values(prediction, moved, env) == (1, 1)
    assert regression_p_values(prediction, moved, 0 * env) == (1, 1)


def test_rows_may_come_in_any_order() -> None:
    """More rows than are tested, with environments that take turns."""
    generator = np.random.default_rng(7)
    env = np.arange(40_000) % 4
    prediction = generator.normal(size=40_000)
    moved = prediction + generator.normal(size=40_000) + 0.5 * (env == 1)
    assert regression_p_values(prediction, moved, env)[0] < 1e-6


def test_what_depends_on_the_environment_is_seen() -> None:
    generator = np.random.default_rng(1)
    of_mean, of_spread = regression_p_values(*regression_data(generator, 2000, shift=0.5))
    assert of_mean < 1e-6
    of_mean, of_spread = regression_p_values(*regression_data(generator, 2000, spread=1.0))
    assert of_mean > 0.01 > 1e-6 > of_spread
    assert classification_p_value(*class_data(generator, 2000, 3, shift=1.0)) < 1e-6
    prediction, y, env = regression_data(generator, 2000)
    other_slope = y + 0.5 * env * (prediction - 0.5)
    assert regression_p_values(prediction, other_slope, env)[0] < 1e-6


def test_against_the_formula_with_loops() -> None:
    """Two environments, a prediction of two values: the regression is the mean of each value."""
    generator = np.random.default_rng(2)
    prediction, env = generator.integers(0, 2, 300).astype(float), np.repeat([0, 1], [180, 120])
    y = generator.normal(size=300)
    u, d = y.copy(), env.astype(float)
    for value in (0, 1):
        u[prediction == value] -= u[prediction == value].mean()
        d[prediction == value] -= d[prediction == value].mean()
    s, v, fourth = np.zeros(2), np.zeros((2, 2)), np.zeros(2)
    for i in range(300):
        product = u[i] * d[i] * np.array([1, 2 * prediction[i] - 1])
        s, v, fourth = s + product, v + np.outer(product, product), fourth + product**4
    m = 3 * (np.diag(v) ** 2 / fourth).min()
    statistic = (m - 2) / (2 * (m - 1)) * (s @ np.linalg.solve(v, s))
    assert regression_p_values(prediction, y, env)[0] == pytest.approx(stats.f.sf(statistic, 2, m - 2))


@given(
    st.integers(0, 100),
    st.integers(2, 5),
    st.sampled_from(["constant", "exact", "separate", "few"]),
)
def test_degenerate_predictions_have_a_p_value(seed: int, environments: int, case: str) -> None:
    generator = np.random.default_rng(seed)
    count = environments if case == "few" else 30
    env = np.arange(count) % environments
    y = generator.normal(size=count)
    prediction = {"constant": np.ones(count), "exact": y, "separate": env.astype(float), "few": y}[case]
    p_values = regression_p_values(prediction, y, env)
    assert all(0 <= p <= 1 for p in p_values)
    if case == "exact":
        assert p_values == (1, 1)
    labels = (y > 0).astype(np.int64)
    assert 0 <= classification_p_value(prediction[:, None] * 50, labels, env) <= 1


def test_order_and_units_do_not_matter() -> None:
    generator = np.random.default_rng(3)
    prediction, y, env = regression_data(generator, 300)
    order = generator.permutation(300)
    expected = regression_p_values(prediction, y, env)
    assert regression_p_values(prediction[order], y[order], env[order]) == pytest.approx(expected)
    assert regression_p_values(1000 * prediction + 5, 0.01 * y, 1 - env) == pytest.approx(expected)


def test_metrics_of_each_task() -> None:
    generator = torch.Generator().manual_seed(0)
    env = torch.arange(90) % 3 * 2  # numbers 0, 2, 4
    x, y = torch.zeros(90, 1), torch.randint(0, 2, (90,), generator=generator)
    logits = torch.randn(90, 2, generator=generator)
    metrics = environment_metrics(Classification(outputs=2), Split(x, y, env), logits)
    probabilities = logits.double().softmax(-1).numpy()
    for number in (0, 2, 4):
        rows = (env == number).numpy()
        expected = calibration_error(probabilities[rows], y.numpy()[rows])
        assert metrics[f"calibration_error_env{number}"] == pytest.approx(expected)
    errors = [metrics[f"calibration_error_env{number}"] for number in (0, 2, 4)]
    assert metrics["calibration_error_worst"] == max(errors)
    assert metrics["calibration_error_average"] == pytest.approx(np.mean(errors))
    one_logit = (logits[:, 1] - logits[:, 0])[:, None]
    binary = environment_metrics(BinaryClassification(), Split(x, y.float(), env), one_logit)
    assert binary == pytest.approx(metrics)
    real = environment_metrics(
        Regression("", mean=1.0, std=2.0), Split(x, torch.randn(90, generator=generator), env), x
    )
    assert set(real) == {"risk_gap", "invariance_p", "mean_invariance_p"}
    assert environment_metrics(Classification(outputs=2), Split(x, y, env), logits / 0) == {}


def test_many_classes_take_no_longer() -> None:
    generator = np.random.default_rng(4)
    logits, labels, env = generator.normal(size=(500, 200)), generator.integers(0, 200, 500), np.arange(500) % 3
    assert 0 <= classification_p_value(logits, labels, env) <= 1
    assert classification_p_value(1e6 * logits, logits.argmax(1), env) <= 1
