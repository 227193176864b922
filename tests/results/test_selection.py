"""Selection of steps and settings, against a naive reading of the records of a small real sweep.

The sweep: erm and irmv1 on spirals with 3 environments, two learning rates, seeds 0 and 1; every run also with each
environment left out. `tests/golden/selection.jsonl` has its 32 records.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
from cells import small_config

import invbench
from invbench.core.data import Problem, Split
from invbench.core.task import BinaryClassification
from invbench.errors import UserError
from invbench.results.layout import notes
from invbench.results.selection import Select
from invbench.results.table import omitted
from invbench.runs.commands import assignments_of, command_of, ranges
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import resolve
from invbench.sweeps.definition import Sweep
from invbench.sweeps.folder import announce_changes
from invbench.sweeps.rerun_best import sweep_of_best
from invbench.training.runner import run_one

GOLDEN = Path(__file__).parent.parent / "golden" / "selection.jsonl"
RECORDS: list[dict[str, Any]] = [json.loads(line) for line in GOLDEN.read_text().splitlines()]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden")
    for line in GOLDEN.read_text().splitlines():
        record = Record.model_validate_json(line)
        folder = RunFolder(out / record.run_id)
        folder.create(record.spec)
        folder.write_record(record)
    return out


def by_settings(held_out: bool) -> dict[tuple[str, float], list[dict[str, Any]]]:
    """Group records by method and learning rate."""
    groups = defaultdict(list)
    for record in RECORDS:
        trainer = record["spec"]["trainer"]
        if (trainer["held_out_environment"] is not None) == held_out:
            groups[record["spec"]["method"], trainer["learning_rate"]].append(record)
    return groups


def expected(select: Select) -> dict[str, tuple[float, float]]:
    """Return, by method, the learning rate that is chosen and the mean that is shown."""
    runs, left_out = by_settings(False), by_settings(True)
    chosen = {}
    for method in ("erm", "irmv1"):
        rates = {rate: records for (name, rate), records in runs.items() if name == method}
        at = "best_validation" if select is Select.best_validation else "metrics"
        value = {rate: fmean(_at(record, at)["test_accuracy"] for record in records) for rate, records in rates.items()}
        scores = {
            Select.best_validation: {
                rate: fmean(_at(record, at)["validation_accuracy"] for record in records)
                for rate, records in rates.items()
            },
            Select.leave_one_env_out: {
                rate: fmean(record["metrics"]["held_out_accuracy"] for record in left_out[method, rate])
                for rate in rates
            },
            Select.oracle: value,
        }
        best = max(sorted(rates), key=scores[select].__getitem__)
        chosen[method] = best, value[best]
    return chosen


def _at(record: dict[str, Any], where: str) -> dict[str, float]:
    metrics: dict[str, float] = record["metrics"] if where == "metrics" else record["best_validation"]["metrics"]
    return metrics


@pytest.mark.parametrize("select", [Select.best_validation, Select.leave_one_env_out, Select.oracle])
def test_a_golden_sweep(golden: Path, select: Select) -> None:
    runs = invbench.load_results(golden)
    means = invbench.table(runs, select=select).set_index("method")
    for method, (rate, mean) in expected(select).items():
        (first, *_) = means.loc[method, "run_ids"]
        chosen = runs.set_index("run_id").loc[first]
        assert chosen["trainer.learning_rate"] == rate
        assert means.loc[method, "mean"] == pytest.approx(mean)
        assert (means.loc[method, "n"], means.loc[method, "candidates"]) == (2, 2)


def test_the_golden_sweep_tells_selections_apart() -> None:
    """Otherwise the test above would show little."""
    rules = (Select.best_validation, Select.leave_one_env_out, Select.oracle)
    assert len({tuple(sorted(expected(select).items())) for select in rules}) == 3


def test_runs_with_an_environment_left_out_are_not_shown(golden: Path) -> None:
    runs = invbench.load_results(golden)
    assert len(invbench.table(runs)) == 4
    assert omitted(runs) == {"with an environment left out of training": 24}


def test_environments_that_nobody_left_out(golden: Path) -> None:
    runs = invbench.load_results(golden)
    some = runs[runs["trainer.held_out_environment"] != 1]
    with pytest.raises(UserError, match=r"with each of its 3 environments left out.*null, 0, 1, 2"):
        invbench.table(some, select="leave_one_env_out")
    unfinished = runs.assign(status=runs["status"].where(runs["trainer.held_out_environment"] != 1, "failed"))
    with pytest.raises(UserError, match="no settings were run with each"):
        invbench.table(unfinished, select="leave_one_env_out")


def test_runs_without_a_best_step(golden: Path) -> None:
    runs = invbench.load_results(golden)
    older = runs.drop(columns=[name for name in runs if name.startswith("best_validation.")])
    with pytest.raises(UserError, match="--select best_validation: run .* has no best step"):
        invbench.table(older, select="best_validation")


def test_what_is_measured_at_the_end_only_is_said_to_be(golden: Path) -> None:
    means = invbench.table(invbench.load_results(golden), "train_accuracy", "best_validation")
    assert set(means["at"]) == {"last"}
    assert any(line.startswith("train_accuracy: of the last step") for line in notes(means, {}))


def test_the_best_step_of_a_run(tmp_path: Path) -> None:
    """The first of the best rows of the curves, and only what was measured there."""
    record = run_one(small_config("erm", "spirals", 1), Options(out=tmp_path))
    curves = invbench.load_curves(tmp_path)
    row = curves.loc[curves["validation_accuracy"].idxmax()]
    assert record.best_validation is not None
    assert record.best_validation.step == row["step"]
    assert record.best_validation.metrics == {
        name: row[name] for name in record.metrics if name in row and not pd.isna(row[name])
    }


def problem() -> Problem:
    def split(*env: int) -> Split:
        rows = torch.arange(float(len(env)))
        return Split(rows[:, None], rows, torch.tensor(env))

    return Problem({"train": split(0, 2, 1, 0, 2), "test": split(0)}, BinaryClassification(), "vector", "synthetic")


def test_an_environment_left_out() -> None:
    left = problem().without_environment(1)
    train, held_out = left.splits["train"], left.splits["held_out"]
    assert train.env is not None
    assert train.env.tolist() == [0, 1, 0, 1]
    assert (train.y.tolist(), held_out.y.tolist(), held_out.env) == ([0, 1, 3, 4], [2], None)
    assert left.environments == 2
    with pytest.raises(UserError, match="trainer.held_out_environment is 3, but these training data have environments"):
        problem().without_environment(3)


def test_leaving_one_out_of_data_without_environments() -> None:
    with pytest.raises(UserError, match="have no environments"):
        run_one(resolve("erm", "mi_toy", assignments={"trainer.held_out_environment": 0}), Options())


def test_selected_settings_run_again_with_fresh_seeds(golden: Path, tmp_path: Path) -> None:
    runs = invbench.load_results(golden)
    sweep = sweep_of_best(runs, None, "oracle")
    configs = sweep.runs()
    assert sorted((config.spec.method, config.spec.seed) for config in configs) == [
        ("erm", 2), ("erm", 3), ("irmv1", 2), ("irmv1", 3),
    ]  # fmt: skip
    for config in configs:
        assert config.spec.protocol == "oracle"
        assert config.spec.trainer["learning_rate"] == expected(Select.oracle)[config.spec.method][0]
        run_one(config, Options(out=tmp_path))
    means = invbench.table(invbench.load_results([golden, tmp_path]))
    assert means["protocol"].value_counts().to_dict() == {"last": 4, "oracle": 2}, "never averaged with the others"
    file = tmp_path / "again.yaml"
    announce_changes(sweep, "full", configs, tmp_path)
    file.write_text((tmp_path / "sweep.yaml").read_text())
    assert [config.spec for config in Sweep.read(str(file)).runs()] == [config.spec for config in configs], (
        "a sweep like any"
    )
    with pytest.raises(UserError, match=r"seeds 1 were used to select .* take others, such as 2-4"):
        sweep_of_best(runs, None, "oracle", "1-3")
    with pytest.raises(UserError, match="--select last selects nothing"):
        sweep_of_best(runs, None, "last")


@pytest.mark.parametrize(
    ("method", "dataset", "settings"),
    [
        ("erm", "spirals", {}),
        ("irmv1+adareg", "irm_regression", {"trainer.steps": 5, "trainer.weight_decay_of": {"*.bias": 0.5}}),
        ("augerino+and_mask", "digits", {"trainer.epochs": 2, "method.and_mask.threshold": 0.5}),
        ("steerable", "digits", {"method.rotations": 4}),
        ("erm", "digits", {"backbone.name": "mlp", "backbone.width": 8}),
        ("mutual_information", "mi_toy", {"method.estimator": "jsd", "trainer.held_out_environment": 0}),
        ("irmv1", "colored_mnist", {"dataset.variant": "domainbed", "backbone.name": "mlp", "backbone.width": 8}),
        ("sand_mask", "colored_mnist", {"dataset.variant": "domainbed", "trainer.steps": 5}),
    ],
)
def test_a_command_makes_the_same_run(method: str, dataset: str, settings: dict[str, Any]) -> None:
    spec = resolve(method, dataset, 3, settings).spec
    assert resolve(method, dataset, 3, assignments_of(spec)).spec == spec
    assert set(assignments_of(spec)) <= {*settings, "trainer.steps", "trainer.epochs", "dataset.environments"}, (
        "no more"
    )


def test_a_command_is_typed() -> None:
    spec = resolve("irmv1", "spirals", 3, {"method.weight": 0.5, "trainer.milestones": [0.5, 0.75]}).spec
    assert command_of(spec, [3, 4, 5, 7]) == (
        "bench run --method irmv1 --dataset spirals --seeds 3-5,7 --set method.weight=0.5 "
        "--set 'trainer.milestones=[0.5, 0.75]'"
    )
    assert ranges([2]) == "2"
