"""Diversity and correlation shift: limits, the authors' loops written out, and data whose shift is known."""

from pathlib import Path

import numpy as np
import pytest
from conftest import Bench
from scipy.stats import gaussian_kde

from invbench.analysis import shift
from invbench.analysis.shift import measure_shift, shift_of_features
from invbench.core.data import Problem
from invbench.errors import UserError

Array = np.ndarray


def samples(count: int = 600) -> tuple[Array, Array]:
    """Draw two features, the first of which tells the label by its sign, and labels."""
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 2
    z = rng.normal(size=(count, 2))
    z[:, 0] += 2 * labels - 1
    return z, labels


def test_equal_samples_have_no_shift() -> None:
    z, labels = samples()
    assert shift_of_features(z, z, labels, np.random.default_rng(0)) == pytest.approx((0, 0), abs=1e-12)


def test_samples_apart_have_diversity_only() -> None:
    z, labels = samples()
    diversity, correlation = shift_of_features(z, z + 10, labels, np.random.default_rng(0))
    assert diversity == pytest.approx(1, abs=0.1)
    assert correlation == 0


def test_other_labels_are_correlation_only() -> None:
    z, labels = samples()
    diversity, correlation = shift_of_features(z, z * [-1, 1], labels, np.random.default_rng(0))
    assert diversity < 0.01
    assert correlation > 0.3


def test_against_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "POINTS", 200)
    monkeypatch.setattr(shift, "NO_DENSITY", 1e-2)
    first, labels = samples(100)
    second = first[::-1] * [0.5, 2] + 1
    got = shift_of_features(first, second, labels, np.random.default_rng(7))
    both = np.concatenate([first, second])
    first, second, both = ((z - both.mean(0)) / both.std(0) for z in (first, second, both))
    points = gaussian_kde(both.T).resample(200, seed=np.random.default_rng(7))
    s, p, q = gaussian_kde(both.T)(points), gaussian_kde(first.T)(points), gaussian_kde(second.T)(points)
    diversity = correlation = 0.0
    for j in range(200):
        if p[j] < 1e-2 or q[j] < 1e-2:
            diversity += (np.sqrt(p[j]) - np.sqrt(q[j])) ** 2 / s[j] / 400
        for label in (0, 1):
            of_p = gaussian_kde(first[labels == label].T)(points[:, j])[0]
            of_q = gaussian_kde(second[labels == label].T)(points[:, j])[0]
            if p[j] > 5e-4 and q[j] > 5e-4:
                ratio = np.sqrt(q[j] / p[j])
                integrand = of_p * ratio + of_q / ratio - 2 * np.sqrt(of_p * of_q)
                correlation += 0.5 * integrand / s[j] / 400
    assert got == pytest.approx((diversity, correlation))


def test_a_network_finds_the_feature_that_changes() -> None:
    """Twenty inputs; in the test one of them goes with the other label, or one is shifted."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 2000)
    x = rng.normal(size=(2000, 20))
    split = np.array(["train", "test"])[np.arange(2000) % 2]
    x[:, 3] += 3 * (2 * y - 1) * np.where(split == "test", -1, 1)
    spurious = measure_shift(Problem.from_arrays(x, y, split=split))
    assert spurious.diversity < 0.05
    assert spurious.correlation > 0.3 > 3 * spurious.correlation_of_halves
    x[:, 3] = rng.normal(size=2000) + 20 * (split == "test")
    moved = measure_shift(Problem.from_arrays(x, y, split=split))
    assert moved.diversity > 0.5
    assert moved.correlation < 0.1
    assert moved.accuracy == 1
    assert measure_shift(Problem.from_arrays(x, y, split=split)) == moved


def test_what_cannot_be_measured() -> None:
    rng = np.random.default_rng(0)
    problem = Problem.from_arrays(rng.normal(size=(40, 2)), rng.integers(0, 2, 40))
    with pytest.raises(UserError, match="64 are needed"):
        measure_shift(problem)
    bits = rng.integers(0, 2, (400, 3)).astype(float)
    with pytest.raises(UserError, match="fill fewer dimensions"):
        measure_shift(Problem.from_arrays(bits, rng.integers(0, 2, 400)))
    with pytest.raises(UserError, match="no split 'other'"):
        measure_shift(problem, split="other")


def test_the_command(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "STEPS", 30)
    monkeypatch.setattr(shift, "POINTS", 200)
    picture = tmp_path / "shift.png"
    arguments = ["data", "shift", "linear_scm", "irm_regression", "--seeds", "0-1", "--out", str(picture)]
    status, output, _ = bench(*arguments)
    assert status == 0
    assert "irm" in output
    assert picture.stat().st_size > 1000
