"""Metrics: what the suite says of each of its own, and what others say of theirs."""

import math
import re
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from cells import small_config

import invbench
from invbench.core import metric as registry
from invbench.core.metric import (
    METRICS,
    Column,
    Headline,
    Metric,
    find_metric,
    metric_of,
    parse_column,
    register_metric,
)
from invbench.errors import UserError
from invbench.evaluation.metrics import headlines
from invbench.reporting.page import _is_learned
from invbench.results.display_names import display_metric
from invbench.results.statistics import is_share
from invbench.results.table import higher_is_better
from invbench.runs.options import Options
from invbench.training.runner import run_one

Answers = tuple[bool | None, bool, Headline, str]
"""Whether higher is better, whether it is a share, where it is a headline, and what a paper calls it."""
SPLITS = {
    "train": "train", "validation": "validation", "test": "test", "test_out": "test-out", "held_out": "held out",
}  # fmt: skip
ON_SPLITS: dict[str, Answers] = {
    "accuracy": (True, True, "always", "accuracy"),
    "accuracy_env1": (True, True, "never", "accuracy (environment 1)"),
    "accuracy_average": (True, True, "never", "accuracy (average over environments)"),
    "accuracy_worst": (True, True, "in test", "accuracy (worst environment)"),
    "accuracy_bin1": (True, False, "never", "accuracy bin1"),
    "accuracy_1_bin1": (True, False, "never", "accuracy 1 bin1"),
    "mean_absolute_error": (False, False, "always", "mean absolute error"),
    "mean_absolute_error_env1": (False, False, "never", "mean absolute error (environment 1)"),
    "mean_absolute_error_average": (False, False, "never", "mean absolute error (average over environments)"),
    "mean_absolute_error_worst": (False, False, "in test", "mean absolute error (worst environment)"),
    "mean_absolute_error_bin1": (False, False, "never", "mean absolute error bin1"),
    "mean_absolute_error_1_bin1": (False, False, "never", "mean absolute error 1 bin1"),
    "mean_squared_error": (False, False, "always", "mean squared error"),
    "mean_squared_error_env1": (False, False, "never", "mean squared error (environment 1)"),
    "mean_squared_error_average": (False, False, "never", "mean squared error (average over environments)"),
    "mean_squared_error_worst": (False, False, "in test", "mean squared error (worst environment)"),
    "mean_squared_error_bin1": (False, False, "never", "mean squared error bin1"),
    "mean_squared_error_1_bin1": (False, False, "never", "mean squared error 1 bin1"),
    "loss": (False, False, "never", "loss"),
    "critic_loss": (False, False, "never", "critic loss"),
    "critic_loss_mutual_information": (False, False, "always", "critic loss mutual information"),
    "critic_loss_adversary": (False, False, "always", "critic loss adversary"),
    "mutual_information": (False, False, "in test", "mutual information"),
    "mutual_information_1": (False, False, "in test", "mutual information 1"),
    "representation_mutual_information": (False, False, "never", "representation mutual information"),
    "representation_mutual_information_1": (False, False, "never", "representation mutual information 1"),
    "distance_correlation": (False, False, "never", "distance correlation"),
    "distance_correlation_1": (False, False, "never", "distance correlation 1"),
    "representation_distance_correlation": (False, False, "never", "representation distance correlation"),
    "representation_distance_correlation_1": (False, False, "never", "representation distance correlation 1"),
    "energy_distance": (False, False, "never", "energy distance"),
    "energy_distance_1": (False, False, "never", "energy distance 1"),
    "jensen_shannon": (False, False, "never", "jensen shannon"),
    "jensen_shannon_1": (False, False, "never", "jensen shannon 1"),
    "roc_auc": (True, True, "in test", "ROC AUC"),
    "risk_gap": (False, False, "never", "risk gap"),
    "invariance_p": (None, False, "in test", "p of invariance"),
    "mean_invariance_p": (None, False, "never", "p of the mean's invariance"),
    "calibration_error_env1": (False, True, "never", "calibration error (environment 1)"),
    "calibration_error_average": (False, True, "never", "calibration error (average over environments)"),
    "calibration_error_worst": (False, True, "never", "calibration error (worst environment)"),
    "background_rejection": (True, False, "never", "background rejection"),
}
"""What was said of each metric while that was guessed from words in its name; digits are 1."""
WITHOUT_SPLIT: dict[str, Answers] = {
    "coefficient.1": (None, False, "never", "coefficient: 1"),
    "coefficient_error_causal": (False, False, "always", "coefficient error causal"),
    "coefficient_error_noncausal": (False, False, "always", "coefficient error noncausal"),
    "invariant_solution": (True, True, "always", "invariant solution"),
    "null_solution": (False, True, "always", "null solution"),
    "symmetry_error": (False, False, "always", "symmetry error"),
    "symmetry_error_class1": (False, False, "never", "symmetry error (class 1)"),
    "symmetry_angle": (False, False, "always", "symmetry angle"),
    "width.rotation_x": (None, False, "never", "width: rotation x"),
    "limit.brightness_low": (None, False, "never", "limit: brightness low"),
    "cost.wall_seconds": (False, False, "never", "wall seconds"),
    "cost.training_seconds": (False, False, "never", "training seconds"),
    "cost.evaluation_seconds": (False, False, "never", "evaluation seconds"),
    "cost.checkpoint_seconds": (False, False, "never", "checkpoint seconds"),
    "cost.invariance_seconds": (False, False, "never", "invariance seconds"),
    "cost.seconds_per_step": (False, False, "never", "seconds per step"),
    "cost.peak_memory_bytes": (False, False, "never", "peak memory (bytes)"),
    "invariance.rotation_x": (False, False, "never", "invariance: rotation x"),
    "invariance.quarter_turns": (False, False, "never", "invariance: quarter turns"),
    "invariance.reflection_error": (False, False, "never", "invariance: reflection error"),
    "invariance.rigid_motions": (False, False, "never", "invariance: rigid motions"),
    "best_validation.step": (None, False, "never", "best validation: step"),
    "best_validation.test_roc_auc": (True, True, "never", "best validation: test ROC AUC"),
    "best_validation.width.scale": (None, False, "never", "best validation: width: scale"),
    "data.constant.test_mean_squared_error": (False, False, "never", "data: constant: test mean squared error"),
    "objective": (None, False, "always", "objective"),
    "gradient_norm": (None, False, "always", "gradient norm"),
    "risk.1": (None, False, "never", "risk: 1"),
    "state.weights.1": (None, False, "never", "state: weights: 1"),
}  # fmt: skip
CELLS: dict[tuple[str, str], dict[str, Any]] = {
    ("erm", "spirals"): {"trainer.held_out_environment": 1},
    ("erm", "linear_unit_tests"): {},
    ("erm", "tabular_nuisance"): {},
    ("adversary", "pivot"): {},
    ("mutual_information", "mi_toy"): {},
    ("mutual_information", "qm9"): {},
    ("erm", "colored_mnist"): {},
    ("augerino", "digits"): {},
}
"""Runs that have, between them, every kind of metric."""


@pytest.fixture(autouse=True)
def own_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the metrics that a test registers when it ends."""
    registry._load_third_party()
    monkeypatch.setattr(registry, "METRICS", dict(METRICS))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ON_SPLITS)
def test_what_is_known_of_a_metric_on_a_split(name: str, split: str) -> None:
    direction, share, headline, words = ON_SPLITS[name]
    column = f"{split}_{name}"
    assert (higher_is_better(column), is_share(column)) == (direction, share)
    assert display_metric(column) == f"{SPLITS[split]} {words}"
    if not (split == "held_out" and name.endswith("_worst")):  # it is one environment
        expected = headline == "always" or (headline == "in test" and split not in ("train", "validation"))
        assert bool(headlines([column])) == expected


@pytest.mark.parametrize("column", WITHOUT_SPLIT)
def test_what_is_known_of_other_columns(column: str) -> None:
    direction, share, headline, words = WITHOUT_SPLIT[column]
    assert (higher_is_better(column), is_share(column), display_metric(column)) == (direction, share, words)
    assert headlines([column]) == [column] * (headline == "always")


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("method", "dataset"), CELLS, ids=lambda name: name)
def test_every_metric_of_a_run_is_known(method: str, dataset: str, tmp_path: Path) -> None:
    """By an entry, and by the answers above; what was learned besides the weights has neither."""
    settings = {"trainer.steps": 2, "trainer.measure_invariance": 8} | CELLS[method, dataset]
    record = run_one(small_config(method, dataset, **settings), Options(out=tmp_path))
    names = [name for name in record.metrics if not _is_learned(name)]
    assert names
    for name in names:
        column = parse_column(name)
        assert find_metric(column.metric), name
        stated = name.removeprefix(f"{column.split}_") if column.split else name
        assert re.sub("[0-9]+", "1", stated) in ON_SPLITS | WITHOUT_SPLIT, name
    (row,) = invbench.load_results(tmp_path).to_dict("records")
    for name in row:
        if str(name).startswith(("cost.", "invariance.")):
            assert find_metric(str(name)), name
    assert (len(names) < len(record.metrics)) == (method == "augerino")


@pytest.mark.parametrize(
    ("column", "parts"),
    [
        ("test_accuracy_env3", Column("", "test", "accuracy", "", "", "env3")),
        ("test_out_accuracy", Column("", "test_out", "accuracy", "", "", "")),
        ("held_out_roc_auc_1_bin12", Column("", "held_out", "roc_auc", "1", "bin12", "")),
        ("best_validation.test_accuracy", Column("best_validation.", "test", "accuracy", "", "", "")),
        ("data.constant.train_accuracy", Column("data.constant.", "train", "accuracy", "", "", "")),
        ("test_representation_mutual_information_0",
         Column("", "test", "representation_mutual_information", "0", "", "")),
        ("shifted_accuracy_worst", Column("", "shifted", "accuracy", "", "", "worst")),
        ("test_balanced_accuracy", Column("", "test", "balanced_accuracy", "", "", "")),
        ("test_precision_at_5_env1", Column("", "test", "precision_at_5", "", "", "env1")),
        ("cost.seconds_per_step", Column("", "", "cost.seconds_per_step", "", "", "")),
        ("state.critic_loss", Column("", "", "state.critic_loss", "", "", "")),
        ("", Column("", "", "", "", "", "")), ("a\nb", Column("", "", "a\nb", "", "", "")),
    ],
)  # fmt: skip
def test_a_name_is_taken_apart(column: str, parts: Column) -> None:
    assert parse_column(column) == parts


def test_words_in_the_name_of_another_s_metric_say_nothing() -> None:
    for name in ("test_x_error_rate_accuracy", "test_negative_loss", "test_accuracy_of_nothing"):
        assert higher_is_better(name) is None
        assert headlines([name]) == [name]
        assert not is_share(name)


def test_a_metric_is_registered() -> None:
    name = "test_precision_at_5"
    assert higher_is_better(name) is None
    register_metric(Metric("precision_at_5", True, "share", "in test", "precision at five"))
    register_metric(Metric("precision_at_5", True, "share", "in test", "precision at five"))
    assert higher_is_better(f"{name}_worst") is True
    assert is_share(name)
    assert display_metric(f"{name}_env2") == "test precision at five (environment 2)"
    assert headlines([name, "train_precision_at_5", f"{name}_worst", f"{name}_env2"]) == [name, f"{name}_worst"]
    assert higher_is_better("shifted_precision_at_5")
    register_metric(Metric("margin.*", None, headline="never", display_name="margin of *"))
    assert metric_of("margin.first_class").words == "margin of first class"
    assert not _is_learned("margin.first_class")


def test_a_record_comes_before_the_registry() -> None:
    register_metric(Metric("regret", True))
    for column in ("test_regret", "shifted_regret", "best_validation.test_regret_worst", "validation_regret_bin3"):
        assert higher_is_better(column, "regret", False) is False
        assert higher_is_better(column, "regret", math.nan) is True
    assert higher_is_better("test_mutual_information", "information", True) is False
    assert higher_is_better("shifted_mutual_information", "information", True) is False


@pytest.mark.parametrize(
    "name", ["Accuracy", "", "test_gap", "r2_worst", "r2_env1", "r2_bin1", "cost.", "a b", "width.*.x", "*"]
)
def test_a_name_that_no_column_can_have_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="metric name '.*' must be lower-case letters"):
        register_metric(Metric(name, True))


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(UserError, match="two metrics are named 'accuracy'; rename one"):
        register_metric(Metric("accuracy", False))


def test_a_package_s_metric_is_known_without_importing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench table` imports no file that made the runs."""
    good = Metric("regret", False, display_name="regret per round")
    module = type("Package", (), {"GOOD": good, "OTHER": 3})
    monkeypatch.setattr(EntryPoint, "load", lambda point: getattr(module, point.value.partition(":")[2]))
    points = [EntryPoint(name, f"package:{name}", registry.GROUP) for name in ("GOOD", "OTHER", "LACKING")]
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        registry._load_third_party.__wrapped__()
    assert higher_is_better("test_regret") is False
    texts = [str(warning.message) for warning in given]
    assert len(texts) == 2
    assert "metric 'OTHER' from the package ? must be an invbench.core.metric.Metric" in texts[0]
    assert "metric 'LACKING' from the package ? does not load: AttributeError" in texts[1]
