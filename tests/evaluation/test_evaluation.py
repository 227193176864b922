"""What is measured: environments one by one, coefficients, and what the curves hold beside the metrics."""

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean

import pandas as pd
import pytest
import torch
from cells import small_config

from invbench.core.backbone import FeaturesAndHead
from invbench.core.data import LinearLaw, Problem, Split
from invbench.core.task import BinaryClassification, Classification, Regression, Task
from invbench.evaluation.metrics import coefficient_metrics, coefficients, headlines, split_metrics
from invbench.results.load import load_results
from invbench.runs.options import Options
from invbench.training.runner import run_one


def metrics_of(split: Split, task: Task) -> Mapping[str, float]:
    """Measure a model that returns its inputs."""
    problem = Problem({"train": split, "test": split}, task, "vector", "synthetic")
    return split_metrics(torch.nn.Identity(), problem, "test")


def test_environments_one_by_one_and_the_worst() -> None:
    """Accuracies 1, 0.5 and 0.25 of environments of different size; the pooled mean is another number."""
    env = torch.tensor([0] * 2 + [3] * 2 + [5] * 4)
    right = torch.tensor([1, 1, 1, 0, 1, 0, 0, 0]).bool()
    y = torch.where(right, 1.0, 0.0)
    split = Split(torch.ones(8, 1), y, env)
    metrics = metrics_of(split, BinaryClassification())
    assert metrics["accuracy"] == pytest.approx(4 / 8)
    assert [metrics[f"accuracy_env{e}"] for e in (0, 3, 5)] == [1, 0.5, 0.25]
    assert metrics["accuracy_average"] == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert metrics["accuracy_worst"] == 0.25


def test_the_worst_error_is_the_largest() -> None:
    split = Split(torch.zeros(4, 1), torch.tensor([1.0, 1.0, 3.0, 3.0]), torch.tensor([0, 0, 1, 1]))
    metrics = metrics_of(split, Regression(""))
    assert metrics["mean_absolute_error_worst"] == 3


@pytest.mark.parametrize("env", [None, torch.zeros(4, dtype=torch.int64), torch.arange(40).repeat_interleave(2)])
def test_no_environments_or_one_or_very_many_are_not_listed(env: torch.Tensor | None) -> None:
    count = 4 if env is None else len(env)
    metrics = metrics_of(Split(torch.ones(count, 1), torch.ones(count), env), BinaryClassification())
    assert set(metrics) == {"accuracy", "loss"}


def test_coefficients_and_the_two_solutions() -> None:
    """The invariant solution is 0.1 around the law, the null solution 0.1 around nothing, scrambled or not."""
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))
    law = LinearLaw(torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([True, True, False]), rotation)
    u = torch.randn(20, 3, dtype=torch.float64)
    split = Split(u @ rotation, u @ law.coefficients)
    problem = Problem({"train": split, "test": split}, Regression("", std=2.0), "vector", "synthetic", law=law)
    for expected, invariant, null in (([1.05, 2.0, 0.0], 1, 0), ([0.05, 0.0, -0.09], 0, 1), ([0.5, 0.5, 0.5], 0, 0)):
        head = torch.nn.Linear(3, 1, bias=False).double()
        with torch.no_grad():
            head.weight.copy_((rotation.T @ torch.tensor(expected).double() / 2)[None])
        actual = coefficients(FeaturesAndHead(torch.nn.Identity(), head), problem, law)
        assert torch.allclose(actual, torch.tensor(expected).double())
        metrics = coefficient_metrics(actual, law)
        assert (metrics["invariant_solution"], metrics["null_solution"]) == (invariant, null)
        assert metrics["coefficient_error_noncausal"] == pytest.approx(expected[2] ** 2)


def test_curves_of_a_linear_problem(tmp_path: Path) -> None:
    """Risks, penalty, gradient norm, coefficients, and the state of an adaptive rule, element by element."""
    config = small_config("adareg", "irm_regression", trainer__steps=6, trainer__evaluate_every=2)
    run_one(config, Options(out=tmp_path))
    curves = pd.read_parquet(next(tmp_path.rglob("curves.parquet")))
    assert list(curves["step"]) == [2, 4, 6]
    expected = {"risk.0", "risk.1", "penalty", "gradient_norm", "coefficient.0", "coefficient.1"}
    expected |= {f"state.adareg.{name}.head.weight.{i}" for name in ("weight", "second_moment") for i in (0, 1)}
    assert expected <= set(curves.columns)
    assert curves[sorted(expected)].notna().all().all()
    total = curves[["risk.0", "risk.1"]].mean(axis=1) + curves["penalty"]
    assert curves["objective"].iloc[-1] == pytest.approx(total.iloc[-1], rel=0.01)
    row = load_results(tmp_path).iloc[0]
    assert row["null_solution"] in (0, 1)
    assert row["test_mean_squared_error_worst"] >= row["test_mean_squared_error_average"]


def test_risks_have_the_numbers_of_their_environments(tmp_path: Path) -> None:
    """Steps go through the environments in random order."""
    config = small_config(
        "erm", "spirals", trainer__steps=4, trainer__evaluate_every=1, trainer__environments_per_step=2
    )
    run_one(config, Options(out=tmp_path))
    risks = pd.read_parquet(next(tmp_path.rglob("curves.parquet"))).filter(like="risk.")
    assert set(risks.columns) == {f"risk.{e}" for e in range(4)}
    assert (risks.notna().sum(axis=1) == 2).all()


def test_what_a_reader_sees_first() -> None:
    names = ["train_accuracy", "train_accuracy_worst", "test_accuracy", "test_loss", "test_accuracy_env12"]
    names += ["test_accuracy_average", "test_accuracy_worst", "null_solution"]
    assert headlines(names) == ["train_accuracy", "test_accuracy", "test_accuracy_worst", "null_solution"]


def constant_of(task: Task, train: list[float], test: list[float]) -> float:
    """Return the test score of the constant prediction that is fitted to training targets."""
    kind = torch.int64 if isinstance(task, Classification) else torch.float32
    splits = {
        name: Split(torch.zeros(len(y), 1), torch.tensor(y, dtype=kind))
        for name, y in (("train", train), ("test", test))
    }
    return Problem(splits, task, "vector", "synthetic").constant[f"test_{task.primary}"]


def test_what_a_constant_prediction_scores() -> None:
    """The level that a method has to beat: the most frequent class, the mean, or the median for absolute errors."""
    assert constant_of(BinaryClassification(), [1, 1, 0], [0, 1, 0, 0]) == 0.25
    assert constant_of(BinaryClassification(), [1, 1], [0, 1]) == 0.5, "of one class only"
    assert constant_of(Classification(4), [3, 1, 3, 0], [3, 3, 2, 0, 1]) == 0.4
    squared = Regression("m", primary="mean_squared_error", mean=2.0, std=3.0)
    assert constant_of(squared, [0, 1, 5], [1, 3]) == pytest.approx(fmean([(1 - 2) ** 2, (3 - 2) ** 2]))
    absolute = Regression("m", loss="absolute", mean=2.0, std=3.0, factor=10.0)
    assert constant_of(absolute, [0, 1, 5], [1, 3]) == pytest.approx(10 * fmean([0, 2]))


def test_a_task_that_knows_no_constant_has_no_level() -> None:
    class Own(BinaryClassification):
        def constant(self, y: torch.Tensor) -> None:  # type: ignore[override]
            return None

    splits = dict.fromkeys(("train", "test"), Split(torch.zeros(2, 1), torch.zeros(2)))
    assert Problem(splits, Own(), "vector", "synthetic").constant == {}
