"""Anchor regression, DRIG and causal Dantzig against their definitions, their limits and other packages' statements."""

from pathlib import Path

import numpy as np
import pytest
import torch
from cells import small_config
from scipy.optimize import minimize

import invbench
from invbench.core.data import Problem
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.errors import RunFailed, UserError
from invbench.methods._linear_estimator import Array, Examples, LinearEstimator, encoded, least_squares
from invbench.methods.anchor import Anchor
from invbench.methods.causal_dantzig import CausalDantzig
from invbench.methods.drig import DRIG
from invbench.runs.options import Options
from invbench.training.runner import run_one


def examples(environments: int = 5, count: int = 200, hidden: float = 1.0) -> Examples:
    """Draw inputs with a confounder, means and spreads that differ by environment, and y = x (1, -1, 0) + 2."""
    rng = np.random.default_rng(environments)
    env = np.repeat(np.arange(environments), count)
    h = rng.normal(size=len(env))
    x = (1 + 0.5 * env[:, None]) * rng.normal(size=(len(env), 3)) + 3 * rng.normal(size=(environments, 3))[env]
    x += hidden * h[:, None]
    y = x @ [1.0, -1.0, 0.0] + 2 + hidden * h + rng.normal(size=len(env))
    return Examples(x, y[:, None], env, nuisance=x[:, :2] + rng.normal(size=(len(env), 2)))


def with_ones(x: Array) -> Array:
    return np.column_stack([x, np.ones(len(x))])


def anchor_loss(b: Array, data: Examples, gamma: float) -> float:
    """State the objective with a projection matrix, and an intercept."""
    centred = [values - values.mean(0) for values in (data.x, data.y[:, 0], np.eye(int(data.env.max()) + 1)[data.env])]
    residuals = centred[1] - centred[0] @ b
    projection = centred[2] @ np.linalg.pinv(centred[2], rcond=1e-10)
    explained = projection @ residuals
    return float(((residuals - explained) ** 2).sum() + gamma * (explained**2).sum())


@pytest.mark.parametrize("gamma", [0.0, 0.3, 7.0])
def test_anchor_minimises_its_objective(gamma: float) -> None:
    data = examples()
    fit = Anchor(gamma=gamma).fit(data)
    expected = minimize(anchor_loss, np.zeros(3), (data, gamma), tol=1e-12).x
    assert fit.coefficients[:, 0] == pytest.approx(expected, abs=0.01)
    best = anchor_loss(fit.coefficients[:, 0], data, gamma)
    assert best <= anchor_loss(expected, data, gamma) * (1 + 1e-12)


def test_anchor_of_discrete_anchors_from_moments() -> None:
    """G = Σ_e w_e E_e[x xᵀ] + (γ - 1) Σ_e w_e E_e[x] E_e[x]ᵀ on centred data."""
    data, gamma = examples(), 7.0
    x, y = data.x - data.x.mean(0), data.y[:, 0] - data.y.mean()
    means = [(x[data.env == e].mean(0), y[data.env == e].mean()) for e in range(5)]
    g = x.T @ x / len(x) + (gamma - 1) * sum(np.outer(a, a) for a, _ in means) / 5
    z = x.T @ y / len(x) + (gamma - 1) * sum(a * b for a, b in means) / 5
    assert Anchor(gamma=gamma).fit(data).coefficients[:, 0] == pytest.approx(np.linalg.solve(g, z), abs=1e-10)


def test_one_is_least_squares() -> None:
    data = examples()
    fit = Anchor(gamma=1.0).fit(data)
    pooled = np.linalg.lstsq(with_ones(data.x), data.y[:, 0], rcond=None)[0]
    assert [*fit.coefficients[:, 0], *fit.intercept] == pytest.approx(pooled, abs=1e-8)


@pytest.mark.parametrize("anchors", ["environment", "nuisance"])
def test_the_limit_is_two_stage_least_squares(anchors: str) -> None:
    data = examples() if anchors == "environment" else Examples(*_two_inputs(examples()))
    instruments = np.eye(5)[data.env] if anchors == "environment" else with_ones(data.nuisance)
    first_stage = instruments @ np.linalg.lstsq(instruments, with_ones(data.x), rcond=None)[0]
    expected = np.linalg.lstsq(first_stage, data.y[:, 0], rcond=None)[0]
    fit = Anchor(gamma=None, anchors=anchors).fit(data)
    assert [*fit.coefficients[:, 0], *fit.intercept] == pytest.approx(expected, abs=1e-8)
    near = Anchor(gamma=1e10, anchors=anchors).fit(data)
    assert near.coefficients == pytest.approx(fit.coefficients, abs=1e-5)


def _two_inputs(data: Examples) -> tuple[Array, ...]:
    return data.x[:, :2], data.y, data.env, data.nuisance


def test_the_limit_where_anchors_are_fewer_than_inputs() -> None:
    data = examples(environments=2)
    fit, near = Anchor(gamma=None).fit(data), Anchor(gamma=1e10).fit(data)
    assert near.coefficients == pytest.approx(fit.coefficients, abs=1e-5)
    residuals = data.y - data.x @ fit.coefficients - fit.intercept
    assert [residuals[data.env == e].mean() for e in (0, 1)] == pytest.approx([0, 0], abs=1e-10)


def test_drig() -> None:
    data = examples()
    x, y = data.x - data.x[data.env == 1].mean(0), data.y[:, 0] - data.y[data.env == 1].mean()
    parts = [data.env == e for e in range(5)]
    g, z = [x[part].T @ x[part] / 200 for part in parts], [x[part].T @ y[part] / 200 for part in parts]
    left, right = -2 * g[1] + 3 * sum(g) / 5, -2 * z[1] + 3 * sum(z) / 5
    fit = DRIG(gamma=3.0, reference=1).fit(data)
    assert fit.coefficients[:, 0] == pytest.approx(np.linalg.solve(left, right), abs=1e-10)
    alone = DRIG(gamma=0.0, reference=1).fit(data)
    expected = np.linalg.lstsq(with_ones(data.x[parts[1]]), data.y[parts[1], 0], rcond=None)[0]
    assert [*alone.coefficients[:, 0], *alone.intercept] == pytest.approx(expected, abs=1e-8)
    with pytest.raises(RunFailed, match="lower method.gamma") as failure:
        DRIG(gamma=100.0, reference=4).fit(data)
    assert failure.value.kind == "diverged", "the data do it, so it is a result, with a record"
    with pytest.raises(UserError, match="no such training environment"):
        DRIG(reference=5).fit(data)


def test_causal_dantzig_sees_through_a_confounder() -> None:
    data = examples(environments=2, count=100_000)
    causal = [[1.0], [-1.0], [0.0]]
    assert CausalDantzig().fit(data).coefficients == pytest.approx(np.array(causal), abs=0.05)
    assert abs(Anchor(gamma=1.0).fit(data).coefficients - causal).max() > 0.1
    x, y = data.x - data.x.mean(0), data.y - data.y.mean()
    first, second = (data.env == 0, data.env == 1)
    g, z = x[first].T @ x[first] - x[second].T @ x[second], x[first].T @ y[first] - x[second].T @ y[second]
    assert CausalDantzig().fit(data).coefficients == pytest.approx(np.linalg.solve(g, z), abs=1e-8)


def test_ridge_is_that_of_scikit_learn() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(30, 4)), rng.normal(size=(30, 2))
    expected = Ridge(alpha=30 * 0.7, fit_intercept=False).fit(x, y).coef_.T
    assert least_squares(x, y, 0.7) == pytest.approx(expected, abs=1e-10)


def test_encoded_labels() -> None:
    assert encoded(BinaryClassification(), torch.tensor([0.0, 1.0])).tolist() == [[-1], [1]]
    assert encoded(Classification(outputs=3), torch.tensor([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert encoded(Regression("", mean=1.0, std=2.0), torch.tensor([5.0])).tolist() == [[2]]


@pytest.mark.parametrize("method", ["anchor", "drig", "causal_dantzig"])
@pytest.mark.parametrize("dataset", ["linear_scm", "spirals"])
def test_a_run_has_no_steps(method: str, dataset: str, tmp_path: Path) -> None:
    record = run_one(small_config(method, dataset), Options(out=tmp_path))
    assert record.engine["steps"] == record.engine["parameters"] == 0
    assert record.status == "done"


def test_classes_of_ones_own_data(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    labels = np.array(["low", "middle", "high"])[np.digitize(x[:, 0], [-0.5, 0.5])]
    problem = Problem.from_arrays(x, labels, environment=np.arange(300) % 3)
    record = invbench.run("anchor", problem, out=tmp_path)
    assert record.metrics["test_accuracy"] > 0.7


def test_continuous_anchors_need_a_nuisance(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no nuisance"):
        run_one(small_config("anchor", "spirals", method__anchors="nuisance"), Options(out=tmp_path))
    config = small_config("anchor", "linear_scm", method__anchors="nuisance", dataset__anchors=2)
    assert run_one(config, Options(out=tmp_path)).status == "done"


def test_the_illustration_of_drig() -> None:
    """Example 1 of arXiv 2307.10299: x with a hidden confounder of y = 2 x, means and variances of both shifted.

    The mean squared error under shifts of growing strength, in the population, for medians of 100 estimates of γ = 5.
    """
    structure = np.linalg.inv(np.eye(2) - [[0, 0], [2, 0]])
    noise, shift, mean = np.array([[1, 0.5], [0.5, 1]]), np.array([[1, 0.1], [0.1, 0.05]]), np.array([0.5, 0.1])
    observed = structure @ noise @ structure.T
    perturbed = structure @ (shift + np.outer(mean, mean)) @ structure.T / 2
    rng = np.random.default_rng(0)
    methods = {"drig": DRIG(gamma=5.0), "anchor": Anchor(gamma=5.0), "pooled": DRIG(gamma=1.0), "one": DRIG(gamma=0.0)}
    slopes: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(100):
        first = rng.multivariate_normal([0, 0], noise, 1000)
        second = rng.multivariate_normal([0, 0], noise, 1000) + rng.multivariate_normal(mean, shift, 1000)
        values = np.concatenate([first, second]) @ structure.T
        data = Examples(values[:, :1], values[:, 1:], np.repeat([0, 1], 1000))
        for name, method in methods.items():
            slopes[name].append(method.fit(data).coefficients[0, 0])
    medians = {name: np.median(values) for name, values in slopes.items()} | {"causal": 2.0}
    assert medians["one"] == pytest.approx(2.5, abs=0.03)
    assert medians["pooled"] == pytest.approx(2.3538, abs=0.02)
    assert medians["drig"] == pytest.approx(2.2121, abs=0.03)

    def error(name: str, strength: float) -> float:
        weights = np.array([-medians[name], 1])
        return float(weights @ (observed + strength * perturbed) @ weights)

    assert sorted(medians, key=lambda name: error(name, 0)) == ["one", "pooled", "anchor", "drig", "causal"]
    assert sorted(medians, key=lambda name: error(name, 15)) == ["drig", "causal", "anchor", "pooled", "one"]


@pytest.mark.parametrize("method", [Anchor(), DRIG(), CausalDantzig()])
def test_units_of_inputs_do_not_matter(method: LinearEstimator) -> None:
    data, factors = examples(), np.array([1e8, 1.0, 1e-8])
    expected = method.fit(data).coefficients[:, 0]
    scaled = method.fit(data.scaled(1 / factors)).coefficients[:, 0]
    assert scaled * factors == pytest.approx(expected, rel=1e-6)


def test_categories_are_anchors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = np.array(list("abc") * 100)
    x = rng.normal(size=(300, 2)) + (kinds == "b")[:, None]
    problem = Problem.from_arrays(x, x[:, 0] + rng.normal(size=300), environment=np.arange(300) % 2, nuisance=kinds)
    settings = {"method.anchors": "nuisance"}
    assert invbench.run("anchor", problem, settings=settings, out=tmp_path).status == "done"
