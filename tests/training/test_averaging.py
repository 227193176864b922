"""Means of weights: which step counts how much, batch norm, resuming, what a finished run has."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import small_config
from torch import Tensor

import invbench
from invbench.core.hooks import Averaging
from invbench.errors import UserError
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
from invbench.testing.cells import assert_same_training, load, run_until
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop

LINEAR: dict[str, Any] = {
    "trainer.epochs": None,
    "trainer.steps": 12,
    "backbone.name": "mlp",
    "backbone.depth": 0,
    "trainer.evaluate_every": 4,
}


def weights_by_step(folder: Path, **settings: Any) -> tuple[list[dict[str, Tensor]], TrainingLoop]:
    """Train for a few steps. Returns the weights after each step, and the training."""
    config = small_config("erm", "spirals", **settings)
    problem = load(config)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(folder), "", 0)
    after = []
    for _ in range(8):
        training.step(training.next_batch())
        after.append({name: value.detach().clone() for name, value in training.parameters.items()})
    return after, training


@pytest.mark.parametrize("first", [1, 3, 8])
def test_all_weights_from_a_step_on_count_alike(tmp_path: Path, first: int) -> None:
    after, training = weights_by_step(tmp_path, trainer__average="mean", trainer__average_from=first)
    counted = after[min(first, len(after)) - 1 :]
    assert training.average is not None
    for name, mean in training.average.means.items():
        expected = np.mean([weights[name].double().numpy() for weights in counted], axis=0)
        np.testing.assert_allclose(mean.double().numpy(), expected, atol=1e-6)


def test_a_mean_that_begins_after_the_last_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"average_from is 20, but the run ends with step 12"):
        weights_by_step(tmp_path, trainer__average="mean", trainer__average_from=20)


def test_an_exponential_mean_forgets(tmp_path: Path) -> None:
    settings = {"trainer__average": "exponential", "trainer__average_from": 2, "trainer__average_decay": 0.75}
    after, training = weights_by_step(tmp_path, **settings)
    assert training.average is not None
    for name, mean in training.average.means.items():
        expected = after[1][name].double()
        for weights in after[2:]:
            expected = 0.75 * expected + 0.25 * weights[name].double()
        torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_shares_sum_to_one() -> None:
    rule, shares = Averaging(3), np.zeros(10)
    for step in range(1, 11):
        shares *= 1 - rule.weight(step)
        shares[step - 1] += rule.weight(step)
    np.testing.assert_allclose(shares, [0, 0, *[1 / 8] * 8], atol=1e-12)


def test_a_linear_model_predicts_the_mean_of_predictions(tmp_path: Path) -> None:
    """The finished run that is loaded again has the mean, and so have its metrics."""
    settings = LINEAR | {"trainer.average": "mean", "trainer.average_from": 5}
    record = invbench.run("erm", "digits", settings=settings, out=tmp_path)
    loaded = invbench.load_run(tmp_path / record.run_id)
    x = loaded.problem.splits["test"].x[:16]
    plain = {name: value for name, value in LINEAR.items() if name != "trainer.evaluate_every"}
    each = []
    for steps in range(5, 13):  # the same run, ended earlier: its schedule is constant
        part = plain | {"trainer.steps": steps, "trainer.schedule": "constant"}
        one = invbench.run("erm", "digits", settings=part, out=tmp_path)
        each.append(invbench.load_run(tmp_path / one.run_id).model(x).prediction.detach())
    constant = invbench.run("erm", "digits", settings=settings | {"trainer.schedule": "constant"}, out=tmp_path)
    mean = invbench.load_run(tmp_path / constant.run_id).model(x).prediction.detach()
    torch.testing.assert_close(mean, torch.stack(each).mean(0), rtol=1e-4, atol=1e-4)
    test = loaded.problem.splits["test"]
    accuracy = (loaded.model(test.x).prediction.argmax(1) == test.y).double().mean().item()
    assert record.metrics["test_accuracy"] == pytest.approx(accuracy)


def test_training_is_the_same_with_a_mean_beside_it(tmp_path: Path) -> None:
    """Dropout and batch norm see the same numbers: evaluating the mean draws none of training's."""
    settings = LINEAR | {"backbone.depth": 1, "backbone.batch_norm": True, "backbone.dropout": 0.5}
    means: tuple[dict[str, Any], ...] = ({}, {"trainer.average": "mean"})
    runs = [invbench.run("erm", "digits", settings=settings | mean, out=tmp_path) for mean in means]
    kept = [Checkpoint.load(RunFolder(tmp_path / run.run_id).checkpoint) for run in runs]
    assert kept[0] is not None
    assert kept[1] is not None
    for name, value in kept[0].tensors["model"].items():
        assert torch.equal(value, kept[1].tensors["model"][name]), name
    assert not torch.equal(
        kept[1].tensors["average"]["parameters"]["head.weight"], kept[1].tensors["model"]["head.weight"]
    )


def test_batch_norm_learns_the_statistics_of_the_mean(tmp_path: Path) -> None:
    settings = LINEAR | {"backbone.depth": 1, "backbone.batch_norm": True, "trainer.average": "mean"}
    record = invbench.run("erm", "digits", settings=settings | {"trainer.batch_size": None}, out=tmp_path)
    loaded = invbench.load_run(tmp_path / record.run_id)
    x = loaded.problem.splits["train"].x
    flat, linear, norm = list(loaded.model.features)[:3]
    torch.testing.assert_close(norm.running_mean, linear(flat(x)).mean(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("method", ["erm", "ermpp"])
def test_a_mean_survives_a_kill(tmp_path: Path, method: str) -> None:
    mean = {"trainer__average": "mean"} if method == "erm" else {"method__head_steps": 2, "method__average_from": 3}
    config = small_config(method, "spirals", trainer__steps=6, trainer__evaluate_every=3, **mean)
    whole, parted = (RunFolder(tmp_path / name) for name in ("whole", "parted"))
    for folder in (whole, parted):
        folder.path.mkdir()
    run_until(config, whole, 6)
    run_until(config, parted, 4)
    run_until(config, parted, 6)
    assert_same_training(whole, parted)


def test_one_mean_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ermpp averages weights by itself; leave trainer.average out"):
        invbench.run("ermpp", "spirals", settings={"trainer.average": "mean"}, out=tmp_path)


def test_ermpp_trains_the_head_first(tmp_path: Path) -> None:
    """By Adam with its own rate; then all parameters by an Adam that starts afresh."""
    config = small_config(
        "ermpp", "spirals", method__head_steps=3, method__head_learning_rate=0.02, trainer__optimizer="adam"
    )
    problem = load(config)
    model = build_model(config, problem)
    training = TrainingLoop(config, problem, model, RunFolder(tmp_path), "", 0)
    names = list(training.parameters)
    ours = {name: value.detach().clone().requires_grad_() for name, value in training.parameters.items()}
    head = [name for name in names if name.startswith("head.")]
    rate = config.trainer.learning_rate
    trainer = config.trainer
    options = {"betas": trainer.betas, "eps": trainer.epsilon, "weight_decay": trainer.weight_decay}
    optimizers = [
        torch.optim.Adam([ours[name] for name in head], lr=0.02, **options),
        torch.optim.Adam(list(ours.values()), lr=rate, **options),
    ]
    for number in range(6):
        batch = training.next_batch()
        prediction = torch.func.functional_call(model, ours, (batch.x.flatten(0, 1),)).prediction
        loss = problem.task.losses(prediction, batch.y.flatten(0, 1)).mean()
        gradients = torch.autograd.grad(loss, list(ours.values()))
        factor = trainer.rate_factor(number, training.sampler.steps_per_epoch)
        optimizer = optimizers[number >= 3]
        optimizer.param_groups[0]["lr"] = (0.02 if number < 3 else rate) * factor
        for name, gradient in zip(names, gradients, strict=True):
            ours[name].grad = gradient
        optimizer.step()
        training.step(batch)
        for name in names:
            torch.testing.assert_close(training.parameters[name], ours[name], rtol=1e-4, atol=1e-6)
