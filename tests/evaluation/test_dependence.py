"""Measures of dependence against closed forms, scikit-learn, and definitions."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from cells import small_config
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from invbench.core.data import Split
from invbench.core.method import Outputs
from invbench.core.task import BinaryClassification, Classification
from invbench.evaluation.dependence import dependence_metrics, distance_correlation, mutual_information, sculpting
from invbench.runs.options import Options
from invbench.training.runner import run_one


def correlated(rho: float, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    a, noise = np.random.default_rng(seed).normal(size=(2, count))
    return a[:, None], rho * a + math.sqrt(1 - rho**2) * noise


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_mutual_information_of_gaussians(rho: float) -> None:
    """As scikit-learn has it, and near -½ log(1 - ρ²); where there is none the estimate may be negative."""
    a, z = correlated(rho, 2000)
    actual = mutual_information(a, z)
    reference = mutual_info_regression(a, z, n_neighbors=5, random_state=0)[0]
    assert max(actual, 0) == pytest.approx(reference, abs=1e-3)
    assert actual == pytest.approx(-0.5 * math.log(1 - rho**2), abs=0.05)


def test_mutual_information_with_categories() -> None:
    rng = np.random.default_rng(0)
    z = rng.integers(0, 3, size=2000)
    a = rng.normal(size=(2000, 1)) + z[:, None]
    reference = mutual_info_classif(a, z, n_neighbors=5, random_state=0)[0]
    assert mutual_information(a, z) == pytest.approx(reference, abs=1e-3)
    assert abs(mutual_information(a, rng.permutation(z))) < 0.05


def test_mutual_information_of_vectors() -> None:
    """Two columns tell more than each; many columns are measured by their principal components."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(2000, 2))
    z = a.sum(1) + 0.5 * rng.normal(size=2000)
    closed = -0.5 * math.log(1 - 2 / 2.25)
    assert mutual_information(a, z) == pytest.approx(closed, abs=0.1)
    assert mutual_information(a[:, :1], z) < 0.5 * closed
    many = np.hstack([a, a, a, 0.01 * rng.normal(size=(2000, 4))])
    assert mutual_information(many, z) == pytest.approx(closed, abs=0.1)


@given(st.integers(2, 12), st.integers(0, 1000))
def test_distance_correlation_by_definition(count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, z = rng.normal(size=(count, 2)), rng.normal(size=count)

    def centred(d: np.ndarray) -> np.ndarray:
        n = len(d)
        return np.array(
            [[d[i, j] - d[i].sum() / n - d[:, j].sum() / n + d.sum() / n**2 for j in range(n)] for i in range(n)]
        )

    x = centred(np.array([[np.linalg.norm(p - q) for q in a] for p in a]))
    y = centred(np.array([[abs(p - q) for q in z] for p in z]))
    expected = math.sqrt(max((x * y).sum(), 0) / math.sqrt((x * x).sum() * (y * y).sum()))
    assert distance_correlation(a, z) == pytest.approx(expected)


def test_a_cut_that_looks_at_the_nuisance_sculpts() -> None:
    rng = np.random.default_rng(0)
    nuisance = rng.uniform(size=20_000)
    blind, greedy = (sculpting(score, nuisance) for score in (rng.normal(size=20_000), nuisance))
    # The highest 5 % of a uniform variable: both distances by their integrals.
    assert greedy["energy_distance"] == pytest.approx(math.sqrt(2 * (0.95**3 / 3 + 0.95**2 * 0.05 / 3)), rel=0.02)
    assert greedy["jensen_shannon"] > 0.4
    assert blind["energy_distance"] < 0.03
    assert blind["jensen_shannon"] < 0.01
    assert sculpting(np.zeros(100), nuisance[:100]) == {"energy_distance": 0, "jensen_shannon": 0}


def test_names_and_separation() -> None:
    """Four signal and four background events; two nuisances get two sets of names."""
    score = torch.tensor([[3.0], [2.0], [1.0], [-1.0], [2.5], [0.0], [-2.0], [-3.0]])
    y = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])
    both = torch.randn(8, 2)
    metrics = dependence_metrics(Outputs(score), BinaryClassification(), Split(score, y, nuisance=both))
    assert metrics["roc_auc"] == pytest.approx(12 / 16)  # of all pairs, the signal's score is the higher
    assert metrics["background_rejection"] == pytest.approx(4)
    for index in (0, 1):
        for name in ("mutual_information", "distance_correlation", "energy_distance", "jensen_shannon"):
            assert f"{name}_{index}" in metrics
        assert f"accuracy_{index}_bin0" in metrics
    assert not any(name.startswith("representation") for name in metrics)


def test_accuracy_in_bins() -> None:
    """Right where the nuisance is positive: the lower bins fail, the upper ones do not."""
    z = torch.linspace(-1, 1, 1000)
    prediction = torch.where(z > 0.2, 1.0, -1.0)[:, None]
    split = Split(prediction, torch.ones(1000), nuisance=z)
    metrics = dependence_metrics(Outputs(prediction), BinaryClassification(), split)
    assert [metrics[f"accuracy_bin{i}"] for i in range(5)] == pytest.approx([0, 0, 0, 1, 1], abs=0.01)
    assert "roc_auc" not in metrics, "there is no background"
    categories = Split(prediction, torch.ones(1000), nuisance=(z > 0.2).long())
    metrics = dependence_metrics(Outputs(prediction), BinaryClassification(), categories)
    assert (metrics["accuracy_bin0"], metrics["accuracy_bin1"]) == (0, 1)


def test_many_classes_and_no_nuisance() -> None:
    logits = torch.randn(200, 10)
    y = torch.randint(10, (200,))
    metrics = dependence_metrics(Outputs(logits, logits), Classification(10), Split(logits, y, nuisance=logits[:, 0]))
    assert metrics["distance_correlation"] == metrics["representation_distance_correlation"] > 0.3
    assert "roc_auc" not in metrics
    assert dependence_metrics(Outputs(logits), Classification(10), Split(logits, y)) == {}


def test_records_have_them_and_curves_do_not(tmp_path: Path) -> None:
    """They are measured once, at the end, and not on the training examples."""
    record = run_one(small_config("erm", "mi_toy"), Options(out=tmp_path))
    assert {"test_mutual_information", "validation_roc_auc", "test_accuracy_bin4"} <= set(record.metrics)
    assert not any(name.startswith("train_mutual") for name in record.metrics)
    curves = pd.read_parquet(next(tmp_path.glob("*/curves.parquet")))
    assert curves["test_mutual_information"].notna().sum() == 1
