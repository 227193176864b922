"""Example weights: runs on weighted data, against weighted least squares, alone and together, resumed, from a file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from cells import assert_same_training, run_until, small_config
from numpy.typing import NDArray

import invbench
from invbench.analysis.consistency import Environments
from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.record import Record
from invbench.runs.resolve import RunConfig, resolve
from invbench.training.build import build_model, load_problem
from invbench.training.embedding import embed
from invbench.training.runner import Ended, run_one, run_together
from invbench.training.sufficient_statistics import training_examples

COUNT = 1200
Array = NDArray[np.float64]


def table() -> pd.DataFrame:
    """Return two laws, y = 2a - 1 and y = 1 - a, of which the second has a weight five times as large."""
    rng = np.random.default_rng(0)
    a, second = rng.normal(size=COUNT), np.arange(COUNT) % 2 == 0
    y = np.where(second, 1 - a, 2 * a - 1) + 0.1 * rng.normal(size=COUNT)
    part = np.where(rng.random(COUNT) < 0.2, "test", "train")
    frame = {"a": a, "y": y, "w": np.where(second, 5.0, 1.0), "town": rng.integers(0, 3, COUNT), "part": part}
    return pd.DataFrame(frame)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    table().to_csv(tmp_path / "towns.csv", index=False)
    return tmp_path / "towns.csv"


def settings_of(path: Path, **more: Any) -> dict[str, Any]:
    given = {"path": str(path), "target": "y", "split": "part", "weight": "w", "features": ["a"], "standardise": False}
    return {f"dataset.{name}": value for name, value in given.items()} | {"backbone.name": "linear", **more}


def config_of(method: str, path: Path, seed: int = 0, **more: Any) -> RunConfig:
    """Return a run of a few steps on the table, with its towns as environments."""
    given = settings_of(path, **{"dataset.environment": "town"})
    given |= {"backbone.name": "mlp", "backbone.width": 8, "trainer.batch_size": 16, "trainer.evaluate_every": 3}
    return small_config(method, "table", seed, **{k.replace(".", "__"): v for k, v in (given | more).items()})


def least_squares(frame: pd.DataFrame, weights: Array) -> Array:
    """Solve the normal equations Xᵀ W X β = Xᵀ W y for slope and intercept."""
    x = np.stack([frame["a"], np.ones(len(frame))], 1)
    return np.linalg.solve(x.T @ (weights[:, None] * x), x.T @ (weights * frame["y"]))


def line_of(predict: Callable[[Array], Array]) -> Array:
    """Return slope and intercept of a linear prediction."""
    at_zero, at_one = predict(np.array([[0.0], [1.0]]))
    return np.array([at_one - at_zero, at_zero])


TRAINED = {
    "trainer.epochs": None, "trainer.steps": 1500, "trainer.optimizer": "sgd", "trainer.learning_rate": 0.05,
    "trainer.schedule": "cosine", "dataset.validation_share": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("batch_size", [None, 128])
def test_erm_on_a_weighted_table_is_weighted_least_squares(path: Path, tmp_path: Path, batch_size: int | None) -> None:
    """Also where a step takes as many examples as there are: they are drawn, not condensed, and not all taken."""
    settings = settings_of(path, **TRAINED, **{"trainer.batch_size": batch_size})
    record = invbench.run("erm", "table", settings=settings, out=tmp_path, device="cpu")
    assert not record.engine["condensed"]
    run = invbench.load_run(tmp_path / record.run_id)
    task: Any = run.problem.task

    def predict(x: Array) -> Array:
        with torch.no_grad():
            outputs = run.model(torch.tensor(x, dtype=torch.float32))
        return getattr(outputs, "prediction", outputs)[:, 0].double().numpy() * task.std + task.mean

    train, test = (table().query(f"part == '{part}'") for part in ("train", "test"))
    found, weighted = line_of(predict), least_squares(train, train["w"].to_numpy())
    assert found == pytest.approx(weighted, abs=0.05)
    assert np.abs(weighted - least_squares(train, np.ones(len(train)))).min() > 0.5, "which the test can tell apart"
    errors = (test["y"] - predict(test[["a"]].to_numpy())) ** 2
    assert record.metrics["test_mean_squared_error"] == pytest.approx(errors.mean(), rel=1e-4), "every example once"


def test_fit_takes_weights() -> None:
    frame = table()
    given = {"x": frame[["a"]].to_numpy(), "y": frame["y"].to_numpy(), "weight": frame["w"].to_numpy()}
    settings = TRAINED | {"backbone.name": "linear", "trainer.batch_size": 128}
    predictor = invbench.fit("erm", **given, settings=settings, device="cpu")
    assert line_of(predictor.predict) == pytest.approx(least_squares(frame, given["weight"]), abs=0.05)
    for weight, line in ((frame["w"][1:], "weight has 1199 values"), (-frame["w"], "weight has the negative value -5")):
        with pytest.raises(UserError, match=line):
            invbench.fit("erm", given["x"], given["y"], weight=weight)


@pytest.mark.parametrize("method", ["erm", "irmv1", "adversary"])
@pytest.mark.parametrize("batch_size", [16, None])
def test_resumed_runs_are_the_same_to_the_bit(method: str, batch_size: int | None, path: Path, tmp_path: Path) -> None:
    config = config_of(method, path, **{"trainer.steps": 6, "trainer.batch_size": batch_size})
    whole, parted = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parted")
    for run in (whole, parted):
        run.path.mkdir()
    run_until(config, whole, 6)
    run_until(config, parted, 4)
    run_until(config, parted, 6)
    assert_same_training(whole, parted)


@pytest.mark.parametrize("batch_size", [16, None])
def test_runs_trained_together_are_those_alone(batch_size: int | None, path: Path, tmp_path: Path) -> None:
    """Their validation sets differ with the seed, and with these their weights."""
    more = {"trainer.steps": 12, "trainer.dtype": "float64", "trainer.batch_size": batch_size}
    configs = [config_of("irmv1", path, seed, **more) for seed in range(3)]
    ended: dict[int, Ended] = {}
    together = Options("cpu", tmp_path / "together", 0, fuse=3)
    run_together(configs, together, lambda config, end: ended.update({config.spec.seed: end}))
    for config in configs:
        record, alone = ended[config.spec.seed], run_one(config, Options("cpu", tmp_path / "alone"))
        assert isinstance(record, Record)
        assert record.engine["fused"] == 3
        for name, value in alone.metrics.items():
            assert record.metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_weights_change_the_training_and_what_is_recorded_of_the_data(path: Path, tmp_path: Path) -> None:
    weighted, plain = (
        run_one(config_of("erm", path, **{"dataset.weight": weight}), Options("cpu", tmp_path / str(weight)))
        for weight in ("w", None)
    )
    assert weighted.data["fingerprint"] != plain.data["fingerprint"]
    assert weighted.engine["steps_per_epoch"] == plain.engine["steps_per_epoch"]
    assert weighted.metrics != plain.metrics


def test_weighted_examples_are_not_condensed(path: Path) -> None:
    for weight, condensed in (("w", False), (None, True)):
        given = settings_of(path, **{"dataset.weight": weight, "trainer.batch_size": None})
        config = resolve("erm", "table", 0, given)
        problem = load_problem(config)
        train, model = problem.splits["train"], build_model(config, problem)
        examples = training_examples(train, problem, config.method, model, config.trainer)
        assert (examples is not train) == condensed


def test_a_file_holds_weights(path: Path, tmp_path: Path) -> None:
    problem = load_problem(config_of("erm", path))
    problem.save(tmp_path / "weighted.safetensors")
    loaded = invbench.Problem.load(tmp_path / "weighted.safetensors")
    assert loaded.identity() == problem.identity()
    for name, split in problem.splits.items():
        assert split.weights is not None
        weights = loaded.splits[name].weights
        assert weights is not None
        assert torch.equal(weights, split.weights)


def test_representations_keep_the_weights_of_their_examples(path: Path, tmp_path: Path) -> None:
    settings = settings_of(path, **{"backbone.name": "mlp", "backbone.width": 4})
    embedded = embed("table", "mlp", tmp_path / "t.safetensors", settings=settings, device="cpu")
    problem = invbench.load_problem("table", settings=settings_of(path, **{"dataset.validation_share": 0.0}))
    for name, split in embedded.splits.items():
        expected = problem.splits[name].weights
        assert split.weights is not None
        assert expected is not None
        assert torch.equal(split.weights, expected)


def test_icp_has_no_use_for_weights(path: Path, tmp_path: Path) -> None:
    settings = settings_of(path, **{"dataset.environment": "town", "dataset.task": "regression"})
    del settings["backbone.name"]
    with pytest.raises(UserError, match="ICP takes all training examples alike; leave out their weights"):
        invbench.run("icp", "table", settings=settings, out=tmp_path, device="cpu")


def test_an_environment_whose_weighted_examples_are_all_held_out_is_one_line(tmp_path: Path) -> None:
    """Only one example of an environment has a weight, and for some seed it is a validation example."""
    frame = table()
    frame.loc[frame["town"] == 1, "w"] = 0.0
    frame.loc[frame.query("town == 1 and part == 'train'").index[0], "w"] = 1.0
    frame.to_csv(tmp_path / "towns.csv", index=False)
    more = {"dataset.validation_share": 0.9, "trainer.batch_size": 4}
    with pytest.raises(UserError, match="environment 1 has no example with a weight above 0 left to train on"):
        run_one(config_of("erm", tmp_path / "towns.csv", **more), Options("cpu", tmp_path))


def test_environments_are_compared_by_all_their_examples_alike(path: Path, tmp_path: Path) -> None:
    config = config_of("erm", path, **{"trainer.steps": 2})
    run_one(config, Options("cpu", tmp_path))
    run = invbench.load_run(tmp_path / config.spec.run_id)
    compared = Environments.of(run, examples=50)
    assert all(len(x.unique()) == 50 for x in compared.x), "no example twice"
