"""Metrics of groups, of classes and of probabilities, against sums over examples and scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score
from torch import nn

import invbench
from invbench.core.data import Problem, Split
from invbench.core.metric import metric_of, parse_column
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.errors import RunFailed
from invbench.evaluation.groups import brier_score, calibration_error, group_metrics, probability_metrics
from invbench.evaluation.metrics import headlines, split_metrics
from invbench.results.display_names import display_metric


def problem_of(seed: int, classes: int = 3, attributes: int = 2, missing: int | None = None) -> Problem:
    """Make a problem whose test lacks one group, where that is given."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name in ("train", "test"):
        y, a = rng.integers(0, classes, 80), rng.integers(0, attributes, 80)
        if name == "test" and missing is not None:
            kept = y * attributes + a != missing
            y, a = y[kept], a[kept]
        x = torch.from_numpy(rng.normal(size=(len(y), classes)))
        splits[name] = Split(x, torch.from_numpy(y), attribute=torch.from_numpy(a))
    return Problem(splits, Classification(classes), "vector", "synthetic")


@given(st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3), st.booleans())
def test_groups_and_classes_are_averaged(seed: int, classes: int, attributes: int, lacks: bool) -> None:
    problem = problem_of(seed, classes, attributes, missing=0 if lacks else None)
    metrics = split_metrics(nn.Identity(), problem, "test")
    test, train = problem.splits["test"], problem.splits["train"]
    assert test.attribute is not None and train.attribute is not None
    right = (test.inputs().argmax(1) == test.y).double().numpy()
    groups = (test.y * problem.attributes + test.attribute).numpy()
    means = {int(g): right[groups == g].mean() for g in np.unique(groups)}
    for g, mean in means.items():
        assert metrics[f"accuracy_group{g}"] == pytest.approx(mean)
    assert "accuracy_group0" in metrics or 0 not in means, "a group without examples is left out"
    assert metrics["accuracy_group_worst"] == pytest.approx(min(means.values()))
    assert metrics["accuracy_group_average"] == pytest.approx(np.mean(list(means.values())))
    trained = (train.y * problem.attributes + train.attribute).numpy()
    shares = {g: (trained == g).sum() for g in means}
    if any(shares.values()):
        weighted = sum(shares[g] * means[g] for g in means) / sum(shares.values())
        assert metrics["accuracy_group_weighted"] == pytest.approx(weighted)
    recalls = [right[test.y.numpy() == label].mean() for label in test.y.unique().tolist()]
    assert metrics["accuracy_class_average"] == pytest.approx(np.mean(recalls))
    assert metrics["accuracy_class_worst"] == pytest.approx(min(recalls))


def test_where_no_group_of_the_test_was_trained_on_there_is_no_weighted_mean() -> None:
    y, zeros = torch.tensor([0, 1, 0, 1]), torch.zeros(4, dtype=torch.int64)
    train, test = Split(torch.eye(4, 2), y, attribute=zeros), Split(torch.eye(4, 2), y, attribute=zeros + 1)
    problem = Problem({"train": train, "test": test}, Classification(2), "vector", "full")
    metrics = split_metrics(nn.Identity(), problem, "test")
    assert "accuracy_group_weighted" not in metrics
    assert set(metrics) > {"accuracy_group1", "accuracy_group3", "accuracy_group_worst"}


def test_many_groups_are_summed_up_only() -> None:
    problem = problem_of(0, 2, 30)
    metrics = split_metrics(nn.Identity(), problem, "test")
    assert not [name for name in metrics if name.startswith("accuracy_group") and name[-1].isdigit()]
    assert "accuracy_group_worst" in metrics


def test_data_without_attributes_have_none_of_these() -> None:
    split = Split(torch.eye(2), torch.tensor([0, 1]))
    problem = Problem({"train": split, "test": split}, Classification(2), "vector", "full")
    assert group_metrics(problem, "test", torch.ones(2)) == {}
    assert probability_metrics(problem, split, torch.eye(2)) == {}


@pytest.mark.parametrize("task", [BinaryClassification(), Classification(3)])
def test_probabilities_against_scikit_learn(task: Task) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, max(2, task.outputs), 300)
    logits = torch.from_numpy(rng.normal(size=(300, task.outputs)))
    y = torch.from_numpy(labels).to(torch.float64 if task.outputs == 1 else torch.int64)
    split = Split(logits, y, attribute=torch.zeros(300, dtype=torch.int64))
    problem = Problem({"train": split, "test": split}, task, "vector", "full")
    metrics = probability_metrics(problem, split, logits)
    if task.outputs == 1:
        p = logits[:, 0].sigmoid().numpy()
        assert metrics["brier_score"] == pytest.approx(brier_score_loss(labels, p))
        assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, p))
    else:
        probabilities = logits.softmax(1).numpy()
        squares = [(probabilities[i] - np.eye(3)[labels[i]]) ** 2 for i in range(300)]
        assert metrics["brier_score"] == pytest.approx(np.mean([row.sum() for row in squares]))
        assert metrics["roc_auc"] == pytest.approx(roc_auc_score(labels, probabilities, multi_class="ovr"))


def test_calibration_by_bins() -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3), 400)
    labels = rng.integers(0, 3, 400)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    total = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert calibration_error(probabilities, labels) == pytest.approx(total)
    assert calibration_error(np.eye(3)[labels], labels) == 0
    assert brier_score(np.eye(3)[labels], labels) == 0


def test_a_split_that_lacks_a_class_has_no_area_under_the_curve() -> None:
    split = Split(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), attribute=torch.zeros(3, dtype=torch.int64))
    problem = Problem({"train": split, "test": split}, Classification(2), "vector", "full")
    assert set(probability_metrics(problem, split, torch.zeros(3, 2))) == {"brier_score", "calibration_error"}


@pytest.mark.parametrize(
    ("column", "end", "words"),
    [
        ("test_accuracy_group_worst", "group_worst", "test accuracy (worst group)"),
        ("test_accuracy_group12", "group12", "test accuracy (group 12)"),
        ("best_worst_group.test_accuracy_group_weighted", "group_weighted", None),
        ("test_accuracy_class_average", "class_average", "test accuracy (average over classes)"),
        ("validation_accuracy_class0", "class0", "validation accuracy (class 0)"),
        ("test_accuracy_env3", "env3", "test accuracy (environment 3)"),
    ],
)
def test_names_of_columns(column: str, end: str, words: str | None) -> None:
    parts = parse_column(column)
    assert (parts.metric, parts.environment) == ("accuracy", end)
    assert metric_of(parts.metric).higher_is_better
    assert words is None or display_metric(column) == words


def test_the_worst_group_is_a_headline() -> None:
    names = [f"test_accuracy{end}" for end in ("", "_group0", "_group_worst", "_group_weighted", "_class_worst")]
    assert headlines(names) == ["test_accuracy", "test_accuracy_group_worst", "test_accuracy_group_weighted"]


def test_probabilities_that_are_not_finite_are_not_measured() -> None:
    problem = invbench.load_problem("grouped_digits")
    split = problem.splits["test"]
    assert probability_metrics(problem, split, torch.full((len(split), 2), torch.nan)) == {}


def test_a_run_that_diverges_at_its_end_says_so(tmp_path: Path) -> None:
    settings = {"trainer.steps": 1, "trainer.optimizer": "sgd", "trainer.learning_rate": 1e38}
    with pytest.raises(RunFailed, match=r"failed \(diverged\)"):
        invbench.run("erm", "grouped_digits", settings=settings, out=tmp_path)
