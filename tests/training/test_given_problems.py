"""A problem that is given in Python is run, swept over, restored and fitted like a registered dataset."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import invbench
from invbench.core.data import LinearLaw
from invbench.errors import UserError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 3))
CITY = np.tile(["Bern", "Oslo", "Rome"], 40)
QUICK: dict[str, Any] = {"trainer.epochs": 2}


def problem() -> invbench.Problem:
    return invbench.Problem.from_arrays(X, np.where(X[:, 0] > 0, "yes", "no"), environment=CITY)


def test_a_problem_is_run_recorded_and_restored(tmp_path: Path) -> None:
    record = invbench.run("irmv1", problem(), settings=QUICK, out=tmp_path)
    assert record.spec.dataset_settings["fingerprint"] == problem().identity()
    assert record.data["environment_names"] == ["Bern", "Oslo", "Rome"]
    assert record.spec.trainer["batch_size"] == 26, "four fifths of the 32 training examples of each environment"
    assert invbench.run("irmv1", problem(), settings=QUICK, out=tmp_path) == record
    run = invbench.load_run(tmp_path / record.run_id)
    assert len(run.problem.splits["test"]) == 24
    shutil.rmtree(os.environ["INVBENCH_CACHE"])
    from invbench.training.build import _kept

    _kept.clear()
    with pytest.raises(UserError, match=r"call invbench\.run with the same problem again"):
        invbench.load_run(tmp_path / record.run_id)


def test_images_and_regressions_are_given(tmp_path: Path) -> None:
    pictures = RNG.integers(0, 255, (60, 3, 8, 8)).astype(np.uint8)
    of_images = invbench.Problem.from_arrays(pictures, np.arange(60) % 3)
    assert invbench.run("erm", of_images, settings=QUICK, out=tmp_path).spec.backbone == "cnn_small"
    of_numbers = invbench.Problem.from_arrays(pd.DataFrame(X), X[:, 0] * 3, environment=CITY)
    assert invbench.run("vrex", of_numbers, settings=QUICK, out=tmp_path).spec.backbone == "mlp"


@pytest.mark.slow
def test_a_sweep_takes_problems(tmp_path: Path) -> None:
    cells = [{"method": ["erm", "vrex"], "dataset": problem()}, {"method": "erm", "dataset": "mi_toy"}]
    definition = {"seeds": "0-1", "set": {"trainer.epochs": None, "trainer.steps": 2}, "cells": cells}
    runs = invbench.sweep(definition, out=tmp_path, workers=1)
    assert sorted(runs["dataset"]) == ["arrays"] * 4 + ["mi_toy"] * 2
    assert set(runs["status"]) == {"done"}


def test_every_method_that_can_is_tried(tmp_path: Path) -> None:
    from invbench.sweeps.definition import Sweep

    runs = Sweep.read({"cells": [{"method": "*", "dataset": problem(), "set": QUICK}]}).runs()
    methods = {run.spec.method for run in runs}
    assert {"erm", "irmv1", "group_dro"} <= methods
    assert not methods & {"augerino", "steerable", "icp"}


def test_a_file_holds_the_problem(tmp_path: Path) -> None:
    given = problem()
    given.save(tmp_path / "mine.safetensors")
    loaded = invbench.Problem.load(tmp_path / "mine.safetensors")
    assert loaded.fingerprint == given.fingerprint
    assert (loaded.task, loaded.kind, loaded.classes, loaded.environment_names, loaded.pixels) == (
        given.task, given.kind, given.classes, given.environment_names, given.pixels,
    )  # fmt: skip
    settings = {"dataset.path": str(tmp_path / "mine.safetensors"), **QUICK}
    assert invbench.run("erm", "embedded", settings=settings, out=tmp_path).spec.backbone == "linear"


def test_what_no_file_can_hold_is_refused(tmp_path: Path) -> None:
    from dataclasses import replace

    law = LinearLaw(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    for other in (replace(problem(), augment=torch.relu), replace(problem(), law=law)):
        with pytest.raises(UserError, match="register a dataset instead"):
            invbench.run("erm", other, out=tmp_path)
    with pytest.raises(UserError, match="a dataset is a name or a Problem, not a list"):
        invbench.run("erm", [1, 2], out=tmp_path)  # type: ignore[call-overload]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    problem().save(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is damaged: its data are not those"):
        invbench.Problem.load(path)
    for damaged in (b"", bytes(content[:100]), b"\0" * 50, b"\xff" * 50):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is not a problem that invbench has written"):
            invbench.Problem.load(path)
    with pytest.raises(UserError, match="there is no file"):
        invbench.run("erm", "embedded", settings={"dataset.path": str(tmp_path / "none")}, out=tmp_path)
    with pytest.raises(UserError, match=r"say where the representations are: --set dataset\.path=FILE"):
        invbench.run("erm", "embedded", out=tmp_path)


@pytest.mark.parametrize("method", ["erm", "irm_games", "and_mask", "irmv1+adareg", "mutual_information"])
def test_a_predictor_predicts_the_same_from_its_file(method: str, tmp_path: Path) -> None:
    y = np.where(X[:, 0] > 0, "yes", "no")
    predictor = invbench.fit(method, X, y, environment=CITY, settings=QUICK)
    predictor.save(tmp_path / "predictor")
    loaded = invbench.Predictor.load(tmp_path / "predictor")
    probabilities = predictor.predict_proba(X)
    assert np.allclose(probabilities.sum(1), 1)
    assert np.array_equal(loaded.predict_proba(X), probabilities)
    assert loaded.predict(X).tolist() == ["yes" if p > 0.5 else "no" for p in probabilities[:, 1]]


def test_fitted_models_are_those_of_a_run(tmp_path: Path) -> None:
    """All examples are trained on: a problem whose test split is one of them, with the same seed, learns the same."""
    y = X @ [1.0, -2.0, 0.5]
    predictor = invbench.fit("erm", X, y, settings={"trainer.epochs": 100, "trainer.learning_rate": 0.01}, seed=3)
    assert np.corrcoef(predictor.predict(X), y)[0, 1] > 0.9
    split = ["train"] * len(X) + ["test"]
    whole = invbench.Problem.from_arrays(np.concatenate([X, X[:1]]), np.concatenate([y, y[:1]]), split=split)
    settings = {"trainer.epochs": 100, "trainer.learning_rate": 0.01, "dataset.validation_share": 0.0}
    path = tmp_path / "whole.safetensors"
    whole.save(path)
    record = invbench.run("erm", "embedded", seed=3, settings=settings | {"dataset.path": str(path)}, out=tmp_path)
    model = invbench.load_run(tmp_path / record.run_id).model
    for name, value in model.state_dict().items():
        assert torch.equal(value, predictor.model.state_dict()[name])


def test_random_predictions_are_the_same_each_time() -> None:
    pictures = RNG.random((40, 1, 8, 8))
    predictor = invbench.fit("augerino", pictures, np.arange(40) % 2, settings=QUICK)
    assert np.array_equal(predictor.predict_proba(pictures), predictor.predict_proba(pictures))


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    y = X[:, 0] > 0
    with pytest.raises(UserError, match="method irmv1 needs environments, which these arrays do not have"):
        invbench.fit("irmv1", X, y)
    predictor = invbench.fit("erm", X, X[:, 0], settings=QUICK)
    with pytest.raises(UserError, match=r"examples of shape \(2,\), and the model was trained on .*\(3,\)"):
        predictor.predict(X[:, :2])
    with pytest.raises(UserError, match="a regression has no probabilities"):
        predictor.predict_proba(X)
    (tmp_path / "file").write_bytes(b"x" * 100)
    with pytest.raises(UserError, match="is not a predictor that this invbench can read"):
        invbench.Predictor.load(tmp_path / "file")


def test_problems_with_equal_tensors_and_another_meaning_are_others(tmp_path: Path) -> None:
    x = np.tile(X[:, :2], (1, 1)).astype(np.float32)
    numbers = (X[:, 0] > 0).astype(np.float64)
    classes = invbench.Problem.from_arrays(x, numbers.astype(int), environment=CITY)
    regression = invbench.Problem.from_arrays(x, numbers, environment=CITY)
    first, second = (invbench.run("erm", one, settings=QUICK, out=tmp_path) for one in (classes, regression))
    assert "test_accuracy" in first.metrics
    assert "test_mean_squared_error" in second.metrics
    for number, one in enumerate((classes, regression)):
        one.save(tmp_path / "file")
        settings = QUICK | {"dataset.path": str(tmp_path / "file")}
        record = invbench.run("erm", "embedded", settings=settings, out=tmp_path)
        assert ("test_accuracy" in record.metrics) == (number == 0)


def test_a_problem_that_was_changed_is_another(tmp_path: Path) -> None:
    given = problem()
    first = invbench.run("erm", given, settings=QUICK, out=tmp_path)
    given.splits["train"].inputs().mul_(-1)
    assert invbench.run("erm", given, settings=QUICK, out=tmp_path).run_id != first.run_id


def test_a_damaged_problem_in_the_cache_is_written_again(tmp_path: Path) -> None:
    record = invbench.run("erm", problem(), settings=QUICK, out=tmp_path)
    path = Path(os.environ["INVBENCH_CACHE"]) / "problems" / f"{problem().identity()}.safetensors"
    path.write_bytes(b"")
    again = invbench.run("erm", problem(), settings=QUICK, out=tmp_path / "other")
    assert again.metrics == record.metrics


def test_nuisances_and_names_of_features(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=["a", "b", "c"])
    predictor = invbench.fit("erm", frame, X[:, 0] > 0, nuisance=CITY, settings=QUICK)
    predictor.save(tmp_path / "predictor")
    loaded = invbench.Predictor.load(tmp_path / "predictor")
    assert np.array_equal(loaded.predict(frame), predictor.predict(frame))
    with pytest.raises(UserError, match=r"x has the columns c, a, b; the model was trained on a, b, c, in this order"):
        loaded.predict(frame[["c", "a", "b"]])
    content = bytearray((tmp_path / "predictor").read_bytes())
    content[-3] ^= 1
    (tmp_path / "predictor").write_bytes(content)
    with pytest.raises(UserError, match="its weights are damaged"):
        invbench.Predictor.load(tmp_path / "predictor")
    with pytest.raises(UserError, match="cannot be written"):
        predictor.save(tmp_path / "none" / "predictor")
    with pytest.raises(UserError, match="x has 120 examples, but environment has 119 values"):
        invbench.fit("erm", X, X[:, 0], environment=CITY[1:])


@pytest.mark.parametrize("definition", [5, {"cells": 5}, {"cells": None}, {"cells": [5]}])
def test_a_sweep_that_is_none_is_one_line(definition: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a sweep is a name|setting 'cells"):
        invbench.sweep(definition, out=tmp_path)


def test_problems_and_predictors_are_shown_in_a_line() -> None:
    y = (X[:, 0] > 0).astype(int)
    problem = invbench.Problem.from_arrays(X, y, environment=CITY)
    predictor = invbench.fit("erm", X, y, settings={"trainer.steps": 1, "trainer.batch_size": 4})
    for shown in (repr(problem), repr(predictor)):
        assert "\n" not in shown
        assert len(shown) < 300
    assert "train=Split(" in repr(problem)
