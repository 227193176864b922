"""Selection of steps and settings by groups and classes of the validation set."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import invbench
from invbench.choices import CRITERIA, Select
from invbench.errors import UserError
from invbench.results.columns import problem_of
from invbench.results.layout import notes
from invbench.results.load import meeting
from invbench.runs.folder import RunFolder

SHORT: dict[str, Any] = {
    "trainer.steps": 60,
    "backbone.width": 8,
    "trainer.batch_size": 16,
    "trainer.evaluate_every": 5,
}
DATA = "grouped_digits"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Carry out ERM with two learning rates."""
    out = tmp_path_factory.mktemp("runs")
    for rate in (1e-3, 1e-2):
        invbench.run("erm", DATA, seeds=[0, 1], settings=SHORT | {"trainer.learning_rate": rate}, out=out)
    return out


@pytest.mark.parametrize("rule", CRITERIA)
def test_the_step_and_the_settings_are_the_best_by_the_rule(rule: Select, runs: Path) -> None:
    criterion = f"validation_{CRITERIA[rule]}"
    results = invbench.load_results(runs)
    scores = {}
    for rate, rows in results.groupby("trainer.learning_rate"):
        best = []
        for run_id in rows["run_id"]:
            curves = invbench.load_curves([runs / run_id])
            measured = curves.dropna(subset=[criterion])
            best.append(measured.loc[measured[criterion].idxmax()])
        scores[rate] = (sum(row[criterion] for row in best) / 2, sum(row["test_accuracy"] for row in best) / 2)
    expected = max(scores.values())[1]
    table = invbench.table(results, select=rule)
    assert len(table) == 1
    assert table["mean"].iloc[0] == pytest.approx(expected)
    assert table["at"].iloc[0] == rule


def test_the_record_keeps_the_best_steps(runs: Path) -> None:
    record = RunFolder(next(runs.glob("*/record.json")).parent).read_record()
    assert record is not None
    assert set(record.best_by) == set(CRITERIA)


def test_what_was_not_known_cannot_choose(tmp_path: Path) -> None:
    invbench.run("erm", DATA, settings=SHORT | {"dataset.attribute_known": ["train"]}, out=tmp_path)
    results = invbench.load_results(tmp_path)
    invbench.table(results, select="worst_class")
    with pytest.raises(UserError, match=r"has no best step: the attribute was not known in validation"):
        invbench.table(results, select="worst_group")
    invbench.run("erm", "spirals", settings={"trainer.steps": 2, "trainer.epochs": None}, out=tmp_path / "other")
    with pytest.raises(UserError, match="no example of spirals has an attribute"):
        invbench.table(invbench.load_results(tmp_path / "other"), select="worst_class")


def test_protocols_of_who_knows_what_are_not_mixed(tmp_path: Path) -> None:
    for known in ([], ["train", "validation"]):
        invbench.run("group_weights", DATA, settings=SHORT | {"dataset.attribute_known": known}, out=tmp_path)
    table = invbench.table(invbench.load_results(tmp_path), select="best_validation")
    assert len(table) == 2
    assert list(table["n"]) == [1, 1]


def test_runs_are_chosen_by_who_knows_the_attribute(tmp_path: Path) -> None:
    for known in (["train", "validation"], []):
        invbench.run("erm", DATA, settings=SHORT | {"dataset.attribute_known": known}, out=tmp_path)
    results = invbench.load_results(tmp_path)
    for condition in ("[train, validation]", '["train", "validation"]', "train, validation", "[]"):
        chosen = meeting(results, [f"dataset.attribute_known={condition}"])
        assert len(chosen) == 1, condition
    table = invbench.table(chosen, "test_accuracy", "worst_class")
    assert "of each run the step that was best by the worst class of the validation set" in notes(table, {})


def test_a_task_that_is_named_makes_no_other_problem(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=["one", "two"])
    frame.assign(y=rng.choice(["no", "yes"], 60), a=rng.choice(["x", "z"], 60)).to_csv(tmp_path / "t.csv", index=False)
    given = {"dataset.path": str(tmp_path / "t.csv"), "dataset.target": "y", "dataset.attribute": "a"}
    for method in ("erm", "group_weights"):
        settings = given | {"trainer.steps": 3, "trainer.batch_size": 8}
        invbench.run(method, "table", settings=settings, out=tmp_path / "results")
    table = invbench.table(invbench.load_results(tmp_path / "results"))
    assert set(table["dataset.task"].fillna("")) == {"", "classification"}
    assert len(problem_of(table)) and table.groupby(problem_of(table), dropna=False).ngroups == 1
