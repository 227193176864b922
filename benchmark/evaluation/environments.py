"""Test whether the target depends on the environment, given the prediction; compare environments by their risk.

An invariant predictor f is one for which the law of the target given f(x) is the same in all environments (Peters,
Bühlmann, Meinshausen 2016, arXiv 1501.01332; for classification this is calibration in each environment, Wald et al.
2021, arXiv 2102.10395). The null hypothesis Y ⟂ E | f(X) is tested with the weighted generalised covariance measure
(Shah and Peters 2020, arXiv 1804.07203; Scheidegger, Hörrmann, Bühlmann 2022, arXiv 2111.04361). With a regression on
B(f(x)), piecewise linear functions of the prediction, and g, the rank of f(x) from -1 to 1,

    u = y - its regression,   d = 1[environment = e] and g 1[environment = e] - their regressions, (k,)
    s = Σ_i d_i u_i,   T = sᵀ (Σ_i u_i² d_i d_iᵀ)⁻¹ s,   (m - k) / (k (m - 1)) T ~ F(k, m - k)

The first d sees a difference of means, the second one of slopes; e are all environments but the largest. m is the
effective number of terms of s, 3 (Σ p²)² / Σ p⁴ for p = d u, the least of all d, which is N for normal p: sums of few
large terms are not normal.
An environment without 50 examples, or for a class without 15 in the sum of p (1 - p), is not
compared with the others, but counts among them. Regression tests y, and the spread: |u| in place of y.
Classification tests 1[y = k] for each class k, where f is the log-odds of class k, recalibrated by a temperature and a
bias for each class, and B has all logits, too, linearly.
The p-value is the smallest one times the number of tests, at most 1.
No two examples may be copies of one another, and the model must not have been trained on them: on the training split
the p-value says how well the model fits.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.classes import class_probabilities
from invbench.core.data import Split
from invbench.core.task import Regression, Task
from invbench.evaluation.groups import MOST, calibration_error

Array = NDArray[np.float64]
Indices = NDArray[np.int64]
MOST_EXAMPLES = 20_000
"""Most examples of a split that are tested."""
LEAST_EXAMPLES, LEAST_VARIANCE = 50, 15.0
"""Least number of examples of an environment, and least sum of p (1 - p) over them, for it to be compared."""
ROUNDING = 1e-10
"""Share of the largest number, or eigenvalue, below which others are rounding."""


def environment_metrics(task: Task, split: Split, prediction: Tensor) -> dict[str, float]:
    """Measure how alike a split's environments are under a prediction (N, outputs); {} where one is not finite.

    Returns:
        `invariance_p`: p-value of "given the prediction, the target is distributed alike in all environments".
        `mean_invariance_p`: the same of the target's mean alone, of regression; the noise may differ.
        `risk_gap`: largest mean loss of an environment minus the smallest one.
        `calibration_error_env<e>`, `_average`, `_worst`: expected calibration error, of classification.
    """
    rows = [index.cpu().numpy() for index in split.environment_rows]
    prediction, y = prediction.detach().double().cpu(), split.y.cpu()
    values = prediction.numpy()
    if not np.isfinite(values).all():
        return {}
    losses = task.losses(prediction, y.to(prediction) if y.is_floating_point() else y).numpy()
    risks = [losses[index].mean() for index in rows]
    metrics = {"risk_gap": float(max(risks) - min(risks))}
    env = np.empty(len(y), dtype=np.int64)
    for number, index in enumerate(rows):
        env[index] = number
    if isinstance(task, Regression):
        of_mean, of_spread = regression_p_values(values[:, 0], y.double().numpy(), env)
        return metrics | {"invariance_p": _smallest([of_mean, of_spread]), "mean_invariance_p": of_mean}
    labels = y.long().numpy()
    errors = _calibration_errors(class_probabilities(prediction).numpy(), labels, split.environment_numbers, rows)
    return metrics | errors | {"invariance_p": classification_p_value(values, labels, env)}


def _calibration_errors(
    probabilities: Array, labels: Indices, numbers: Sequence[int], rows: Sequence[Indices]
) -> dict[str, float]:
    """Compute the expected calibration error of each environment, their mean and the largest."""
    errors = [calibration_error(probabilities[index], labels[index]) for index in rows]
    metrics = {f"calibration_error_env{number}": error for number, error in zip(numbers, errors, strict=True)}
    return metrics | {"calibration_error_average": float(np.mean(errors)), "calibration_error_worst": max(errors)}


def regression_p_values(prediction: Array, y: Array, env: Indices) -> tuple[float, float]:
    """Test whether mean and spread of y (N,), given the prediction (N,), depend on the environment (N,), one by one."""
    part = _tested(len(env))
    prediction, y, env = prediction[part], y[part], env[part]
    ranks = _ranks(prediction)
    basis = _orthonormal(np.concatenate([_piecewise_linear(prediction), ranks], 1))
    indicators = _residuals(basis, _indicators(env, ranks, np.full(len(env), 1 / LEAST_EXAMPLES)))
    residuals = _residuals(basis, y)
    spread = _residuals(basis, np.abs(residuals))
    return _covariance_p_value(indicators, residuals), _covariance_p_value(indicators, spread)


def classification_p_value(logits: Array, labels: Indices, env: Indices) -> float:
    """Test whether the frequency of a label (N,), given logits (N, outputs), depends on the environment (N,).

    Of more than 32 classes the most frequent 32 are tested, and B has none of the logits but those of the class.
    """
    part = _tested(len(env))
    logits, labels, env = logits[part], labels[part], env[part]
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], 1)
    logits = recalibrated(logits, labels)
    linear = logits - logits.mean(1, keepdims=True) if logits.shape[1] <= MOST else logits[:, :0]
    counts = np.bincount(labels, minlength=logits.shape[1])
    classes = [int(k) for k in np.argsort(-counts, kind="stable")[:MOST] if counts[k]]
    p_values = []
    for k in classes[len(classes) == 2 :]:  # of two classes, one says all
        odds = logits[:, k] - np.logaddexp.reduce(np.delete(logits, k, 1), axis=1)
        ranks = _ranks(odds)
        basis = _orthonormal(np.concatenate([_piecewise_linear(odds), ranks, linear], 1))
        present = (labels == k).astype(np.float64)
        probability = 1 / (1 + np.exp(-odds.clip(-500, 500)))
        indicators = _residuals(basis, _indicators(env, ranks, probability * (1 - probability) / LEAST_VARIANCE))
        p_values.append(_covariance_p_value(indicators, _residuals(basis, present)))
    return _smallest(p_values)


def recalibrated(logits: Array, labels: Indices) -> Array:
    """Fit a temperature and a bias for each class to labels (N,), by maximum likelihood; return logits (N, K).

    Environments are not told apart. Log-odds of class k say most of its frequency once they are calibrated.
    """
    from scipy.optimize import minimize  # a third of a second

    centred = logits - logits.mean(1, keepdims=True)
    centred /= max(float(centred.std()), 1e-300)
    observed = labels[:, None] == np.arange(centred.shape[1])

    def loss(numbers: Array) -> tuple[float, Array]:
        scaled = np.exp(numbers[0]) * centred
        moved = scaled + numbers[1:]
        total = np.logaddexp.reduce(moved, axis=1, keepdims=True)
        slopes = (np.exp(moved - total) - observed) / len(labels)
        value = float((total[:, 0] - moved[observed]).mean() + 1e-6 * (numbers**2).sum())
        return value, np.concatenate([[(slopes * scaled).sum()], slopes.sum(0)]) + 2e-6 * numbers

    bounds = [(-10.0, 10.0)] + [(None, None)] * centred.shape[1]
    numbers = minimize(loss, np.zeros(centred.shape[1] + 1), jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.asarray(np.exp(numbers[0]) * centred + numbers[1:])


def _covariance_p_value(indicators: Array, residuals: Array) -> float:
    """Test whether residuals (N,) are uncorrelated with residuals of the environments' indicators (N, k)."""
    from scipy.special import fdtrc  # a fifth of a second

    products = indicators * residuals[:, None]
    eigenvalues, directions = np.linalg.eigh(products.T @ products)
    known = eigenvalues > max(ROUNDING * eigenvalues.max(initial=0.0), 0.0)
    count = int(known.sum())
    squares = np.square(products[:, products.any(0)])
    if not count or not squares.shape[1]:
        return 1.0
    terms = 3 * float((squares.sum(0) ** 2 / np.square(squares).sum(0)).min())
    if terms <= count + 1:
        return 1.0
    statistic = float((products.sum(0) @ directions[:, known]) ** 2 @ (1 / eigenvalues[known]))
    return float(fdtrc(count, terms - count, (terms - count) / (count * (terms - 1)) * statistic))


def _smallest(p_values: Sequence[float]) -> float:
    """Combine p-values of tests that may depend on one another (Bonferroni)."""
    return min(1.0, len(p_values) * min(p_values, default=1.0))


def _indicators(env: Indices, ranks: Array, information: Array) -> Array:
    """Return 1[environment = e], and these times the ranks (N, 2 (E - 1)), of all environments but the largest.

    An environment needs information (N,) of 1 in all.
    """
    sums = np.bincount(env, weights=information)
    largest = np.bincount(env).argmax()
    compared = [e for e in np.flatnonzero(sums >= 1) if e != largest]
    indicators = np.asarray(env[:, None] == np.array(compared, dtype=np.int64), dtype=np.float64)
    return np.concatenate([indicators, indicators * ranks], 1)


def _ranks(values: Array) -> Array:
    """Return the rank of each value (N, 1), from -1 to 1; equal values have one."""
    _, ranks = np.unique(values, return_inverse=True)
    return np.asarray(2 * ranks / max(1, ranks.max()) - 1, dtype=np.float64)[:, None]


def _piecewise_linear(values: Array) -> Array:
    """Return piecewise linear functions of values (N,), 3/2 N^(1/3) of them between quantiles, that sum to 1 (N, k)."""
    count = max(2, round(1.5 * len(values) ** (1 / 3)))
    knots = np.unique(np.quantile(values, np.linspace(0, 1, count + 1)))
    return np.stack([np.interp(values, knots, one) for one in np.eye(len(knots))], 1)


def _orthonormal(basis: Array) -> Array:
    """Return orthonormal columns (N, r) that span those of a matrix (N, k)."""
    scaled = basis / np.abs(basis).max(0).clip(min=1e-300)
    eigenvalues, directions = np.linalg.eigh(scaled.T @ scaled)
    known = eigenvalues > ROUNDING * eigenvalues[-1]
    return np.asarray(scaled @ (directions[:, known] / np.sqrt(eigenvalues[known])), dtype=np.float64)


def _residuals(basis: Array, values: Array) -> Array:
    """Return what least squares on orthonormal columns (N, r) leaves of values (N, ...); 0 where that is rounding."""
    residuals = values - basis @ (basis.T @ values)
    is_rounding = np.abs(residuals).max(0) <= ROUNDING * np.abs(values).max(0)
    return np.asarray(np.where(is_rounding, 0.0, residuals), dtype=np.float64)


def _tested(count: int) -> Indices:
    """Return which of so many examples are tested: all, or so many at random, the same ones every time."""
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST_EXAMPLES])
