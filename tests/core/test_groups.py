"""Attributes and groups of data: where they come from, what is made of them, and who may know them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import invbench
from invbench.core.data import Problem, Split
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.runs.resolve import resolve
from invbench.training.build import load_problem

DATA = "grouped_digits"


def loaded(**settings: Any) -> Problem:
    return invbench.load_problem(DATA, settings={f"dataset.{name}": value for name, value in settings.items()})


def test_a_group_is_a_label_and_an_attribute() -> None:
    problem = loaded()
    train = problem.splits["train"]
    groups = problem.groups("train")
    assert groups is not None and train.attribute is not None
    assert torch.equal(groups, 2 * train.y + train.attribute)
    assert problem.group_names == ("below five, red", "below five, green", "five or more, red", "five or more, green")
    assert problem.group_counts["train"] == tuple(torch.bincount(groups).tolist())
    described = problem.provenance["groups"]
    assert described["names"][3] == "five or more, green"
    assert sum(described["test"]) == len(problem.splits["test"])


@pytest.mark.parametrize("known", [[], ["train"], ["validation"], ["train", "validation"]])
def test_who_may_know_the_attribute(known: list[str]) -> None:
    """What may not know it has neither it nor the nuisance that it is; the test has both, and counts stay."""
    problem, whole = loaded(attribute_known=known), loaded()
    for name in ("train", "validation"):
        assert (problem.splits[name].attribute is not None) == (name in known)
        assert (problem.splits[name].nuisance is not None) == (name in known)
    assert problem.splits["test"].attribute is not None
    assert problem.group_counts["train"] == whole.group_counts["train"]
    assert problem.attributes == 2


def test_a_method_that_needs_the_nuisance_is_refused_where_training_does_not_know_it() -> None:
    resolve("adversary", DATA, 0, {"dataset.attribute_known": ["train"]})
    with pytest.raises(UserError, match="needs nuisance or environments"):
        resolve("adversary", DATA, 0, {"dataset.attribute_known": ["validation"]})


def test_environments_are_made_of_groups_attributes_and_nuisances() -> None:
    problem = loaded(environment_from="group")
    for name, split in problem.splits.items():
        groups = problem.groups(name)
        assert split.env is not None and groups is not None
        texts = [problem.environment_names[int(number)] for number in split.env]
        assert texts == [problem.group_names[int(number)] for number in groups]
    by_attribute = loaded(environment_from="attribute")
    assert by_attribute.environment_names == ("red", "green")
    assert torch.equal(by_attribute.splits["train"].env, by_attribute.splits["train"].attribute)  # type: ignore[arg-type]
    assert loaded(environment_from="nuisance").environments == 2


def test_without_the_attribute_environments_of_groups_are_classes() -> None:
    problem = loaded(environment_from="group", attribute_known=[])
    assert problem.environment_names == problem.classes
    assert torch.equal(problem.splits["train"].env, problem.splits["train"].y)  # type: ignore[arg-type]
    for source in ("attribute", "nuisance"):
        with pytest.raises(UserError, match="training may not know it by dataset.attribute_known"):
            loaded(environment_from=source, attribute_known=["validation"])


def test_validation_has_no_environments_of_what_only_training_knows() -> None:
    problem = loaded(environment_from="group", attribute_known=["train"])
    assert problem.splits["train"].env is not None
    assert problem.splits["validation"].env is None


def test_attributes_are_made_of_environments_and_of_nothing(tmp_path: Path) -> None:
    table = pd.DataFrame({"x": np.arange(40.0), "y": ["a", "b"] * 20, "place": np.repeat(["u", "v"], 20)})
    table.to_csv(tmp_path / "table.csv", index=False)
    given = {"dataset.path": str(tmp_path / "table.csv"), "dataset.target": "y"}
    by_place = given | {"dataset.environment": "place", "dataset.attribute_from": "environment"}
    problem = invbench.load_problem("table", settings=by_place)
    assert problem.group_names == ("a, u", "a, v", "b, u", "b, v")
    classes = invbench.load_problem("table", settings=given | {"dataset.attribute_from": "none"})
    assert classes.group_names == ("a, all", "b, all")
    nuisance = by_place | {"dataset.attribute_from": "data", "dataset.nuisance_from": "environment"}
    assert invbench.load_problem("table", settings=nuisance).provides[-1] == "nuisance"
    with pytest.raises(UserError, match="dataset.attribute_from=environment, but the split train of these data has no"):
        invbench.load_problem("table", settings=given | {"dataset.attribute_from": "environment"})
    with pytest.raises(UserError, match="this dataset is a regression"):
        invbench.load_problem("table", settings=given | {"dataset.target": "x", "dataset.attribute_from": "none"})


def test_an_attribute_in_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y, a = rng.normal(size=(90, 2)), rng.choice(["cat", "dog"], 90), rng.choice(["day", "night"], 90)
    problem = Problem.from_arrays(x, y, attribute=a)
    assert problem.group_names == ("cat, day", "cat, night", "dog, day", "dog, night")
    problem.save(tmp_path / "problem.safetensors")
    back = Problem.load(tmp_path / "problem.safetensors")
    assert back.group_counts == problem.group_counts
    assert back.identity() == problem.identity()
    record = invbench.run("group_weights", problem, settings={"trainer.steps": 3, "trainer.epochs": None}, out=tmp_path)
    assert 0 <= record.metrics["test_accuracy_group_worst"] <= record.metrics["test_accuracy_group_average"] <= 1
    with pytest.raises(UserError, match="an attribute makes groups with classes, and y is real numbers"):
        Problem.from_arrays(x, rng.normal(size=90), attribute=a)
    with pytest.raises(UserError, match="1001 different attributes"):
        Problem.from_arrays(rng.normal(size=(2002, 2)), np.arange(2002) % 2, attribute=np.arange(2002) % 1001)


def test_data_without_attributes_are_as_they_were() -> None:
    problem = Problem.from_arrays(np.zeros((9, 1)) + np.arange(9)[:, None], [0, 1, 0] * 3)
    assert problem.attributes == 0
    assert "groups" not in problem.provenance
    assert "attribute" not in problem.splits["train"].tensors()


def test_a_share_is_set_aside_for_a_second_stage() -> None:
    problem, whole = loaded(second_stage_share=0.2), loaded()
    assert len(problem.splits["second_stage"]) == 180
    assert len(problem.splits["train"]) == 720
    rows = {x.numpy().tobytes() for name in ("train", "second_stage") for x in problem.splits[name].inputs()}
    assert rows == {x.numpy().tobytes() for x in whole.splits["train"].inputs()}
    assert loaded(second_stage_share=0.2, attribute_known=[]).splits["second_stage"].attribute is None


def test_attributes_that_only_the_test_has() -> None:
    """A group that training lacks counts in the test, and nobody divides by its share."""
    y = torch.tensor([0, 1, 0, 1])
    train = Split(torch.randn(4, 2), y, attribute=torch.zeros(4, dtype=torch.int64))
    test = Split(torch.randn(4, 2), y, attribute=torch.ones(4, dtype=torch.int64))
    problem = Problem({"train": train, "test": test}, Classification(2), "vector", "full")
    assert problem.attributes == 2
    assert problem.group_counts == {"train": (2, 0, 2, 0), "test": (0, 2, 0, 2)}


def test_load_problem_gives_what_runs_get() -> None:
    config = resolve("erm", DATA, 0, {"dataset.attribute_known": []})
    assert load_problem(config).fingerprint == loaded(attribute_known=[]).fingerprint


def test_what_tells_the_attribute_is_hidden_with_it(tmp_path: Path) -> None:
    """Environments or nuisances that are a function of it, one of several nuisances too; not what only goes with it."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 200)
    other, noisy = rng.integers(0, 3, 200), a ^ (rng.random(200) < 0.1)
    x, y = rng.normal(size=(200, 2)), rng.integers(0, 2, 200)
    cases = {
        "environment": ({"environment": np.array(["b", "a"])[a]}, "env"),
        "nuisance": ({"nuisance": 1.0 - a}, "nuisance"),
        "two nuisances": ({"nuisance": np.stack([other, a], 1)}, "nuisance"),
    }
    for what, (given, part) in cases.items():
        Problem.from_arrays(x, y, attribute=a, **given).save(tmp_path / "problem.safetensors")
        settings = {"dataset.path": str(tmp_path / "problem.safetensors"), "dataset.attribute_known": []}
        hidden = invbench.load_problem("embedded", settings=settings)
        for name in ("train", "validation"):
            assert getattr(hidden.splits[name], part) is None, what
    Problem.from_arrays(x, y, attribute=a, environment=other, nuisance=noisy).save(tmp_path / "problem.safetensors")
    kept = invbench.load_problem("embedded", settings=settings)
    assert kept.environments == 3
    assert kept.splits["train"].nuisance is not None


def test_validation_does_not_tell_by_environments_what_only_training_knows() -> None:
    problem = loaded(environment_from="nuisance", attribute_known=["train"])
    assert problem.splits["train"].env is not None
    assert problem.splits["validation"].env is None


@pytest.mark.parametrize("what", ["environment", "nuisance"])
@pytest.mark.parametrize("form", ["with the label", "nearly", "none of it"])
def test_what_tells_the_attribute_with_the_label_or_nearly_is_hidden(what: str, form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, (2, 600))
    nearly = np.where(np.arange(600) == 7, 1 - a, a)
    values = {"with the label": y ^ a, "nearly": nearly, "none of it": rng.integers(0, 3, 600)}[form]
    given: dict[str, Any] = {"attribute": a, what: values}
    Problem.from_arrays(rng.normal(size=(600, 2)), y, **given).save(tmp_path / "problem.safetensors")
    settings = {"dataset.path": str(tmp_path / "problem.safetensors"), "dataset.attribute_known": []}
    problem = invbench.load_problem("embedded", settings=settings)
    part = "env" if what == "environment" else what
    for name, hidden in (("train", form != "none of it"), ("validation", form != "none of it"), ("test", False)):
        assert (getattr(problem.splits[name], part) is None) == hidden


def test_several_columns_that_tell_the_attribute_together_are_hidden(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, 600), rng.integers(0, 4, 600)
    for nuisance, hidden in ((np.stack([a % 2, a // 2], 1), True), (rng.integers(0, 2, (600, 2)), False)):
        problem = Problem.from_arrays(rng.normal(size=(600, 2)), y, attribute=a, nuisance=nuisance)
        problem.save(tmp_path / "problem.safetensors")
        settings = {"dataset.path": str(tmp_path / "problem.safetensors"), "dataset.attribute_known": []}
        problem = invbench.load_problem("embedded", settings=settings)
        assert (problem.splits["train"].nuisance is None) == hidden


def test_environments_that_are_made_of_the_attribute_are_hidden_in_few_examples_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y, a = rng.integers(0, 2, (2, 100))
    split = np.repeat(["train", "validation", "test"], [80, 6, 14])
    Problem.from_arrays(rng.normal(size=(100, 2)), y, attribute=a, split=split).save(tmp_path / "problem.safetensors")
    settings = {"dataset.path": str(tmp_path / "problem.safetensors"), "dataset.attribute_known": ["train"]}
    problem = invbench.load_problem("embedded", settings=settings | {"dataset.environment_from": "group"})
    assert problem.environments == 4
    assert problem.splits["validation"].env is None
