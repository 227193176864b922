"""The mean of weights over a valley of the validation loss: the paper's algorithm, and the weights after every step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import invbench
from invbench.core.hooks import Valley
from invbench.errors import UserError
from invbench.runs.curves import read_curves
from invbench.runs.folder import RunFolder
from invbench.testing.cells import assert_same_training, load, run_until
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.valley import ValleyWeights, valley

PAPER = Valley(3, 6, 0.3)


def by_the_paper(losses: list[float], rule: Valley) -> tuple[int, int] | None:
    """Algorithm 1, window by window: (first, one after the last), None without a start."""
    start = stop = limit = None
    for i in range(len(losses)):
        if start is None:
            begin = i - rule.start_windows + 1
            if begin >= 0 and losses[begin] == min(losses[begin : i + 1]):
                start, limit = begin, (1 + rule.tolerance) / rule.start_windows * sum(losses[begin : i + 1])
        elif i - rule.end_windows + 1 >= start and limit < min(losses[i - rule.end_windows + 1 : i + 1]):
            stop = i - rule.end_windows + 1
            break
    if start is None:
        return None
    if stop is None:  # what follows the last loss that is not too high does not count
        last = max(i for i in range(start, len(losses)) if losses[i] <= limit)
        stop = max(last, start + max(0, rule.start_windows - rule.end_windows)) + 1
    return start, stop


LOSSES = st.lists(st.floats(0.1, 3), min_size=1, max_size=24)
RULES = st.builds(Valley, st.integers(1, 4), st.integers(1, 7), st.sampled_from([1e-6, 0.1, 0.3]))
"""Without any tolerance equal losses are above their mean or not by the rounding of a sum."""


@given(LOSSES, RULES)
def test_windows_are_those_of_the_algorithm(losses: list[float], rule: Valley) -> None:
    assert valley(losses, rule, is_over=True) == (by_the_paper(losses, rule) or (len(losses) - 1, len(losses)))


@given(LOSSES, RULES)
def test_what_is_certain_stays(losses: list[float], rule: Valley) -> None:
    """What counts for certain after some windows counts at the end, and no window is joined that is not kept."""
    final = valley(losses, rule, is_over=True)
    earlier = 0
    for count in range(1, len(losses) + 1):
        start, stop = valley(losses[:count], rule, is_over=False)
        if stop:  # a valley has started
            assert start == final[0]
            assert stop <= final[1]
            kept = range(count - max(rule.start_windows, rule.end_windows), count)
            assert set(range(max(start, earlier), stop)) <= set(kept)
            earlier = stop


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5, 3, 2, 2.1, 2.2, 2, 2, 2], (2, 8)),
        ([5, 3, 2, 2.1, 2.2, 9, 9, 9, 9, 9, 9, 2], (2, 5)),
        ([5, 3, 2, 2.1, 2.2, 9, 9, 9, 9, 9, 2, 9], (2, 11)),
        ([5, 4, 3, 2, 1], (4, 5)),
    ],
)
def test_examples(losses: list[float], expected: tuple[int, int]) -> None:
    assert valley(losses, PAPER, is_over=True) == expected


@given(LOSSES, RULES, st.integers(0, 3))
def test_the_mean_is_that_of_every_step(losses: list[float], rule: Valley, seed: int) -> None:
    generator = np.random.default_rng(seed)
    weight = torch.zeros(2, dtype=torch.float64)
    mean = ValleyWeights(rule, torch.nn.Identity(), {"w": weight}, lambda most: None, len(losses))
    by_window: list[list[Tensor]] = []
    step = 0
    for count, loss in enumerate(losses, 1):
        by_window.append([])
        for _ in range(generator.integers(1, 4)):
            weight += torch.from_numpy(generator.standard_normal(2))
            step += 1
            mean.add(step)
            by_window[-1].append(weight.clone())
        mean.end_window(loss)
        start, stop = valley(losses[:count], rule, is_over=True)
        expected = torch.stack([each for window in by_window[start:stop] for each in window]).mean(0)
        torch.testing.assert_close(mean.means["w"], expected, rtol=1e-10, atol=1e-10)
        again = ValleyWeights(rule, torch.nn.Identity(), {"w": weight}, lambda most: None, len(losses))
        again.load(mean.tensors)
        mean = again


def test_a_run_has_the_mean_and_evaluates_the_weights_until_then(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer__steps": 20, "trainer__evaluate_every": 2, "trainer__learning_rate": 0.05}
    config = small_config("swad", "spirals", **settings)
    problem = load(config)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    losses, weights = [], []
    for step in range(1, 21):
        training.step(training.next_batch())
        weights.append({name: value.detach().clone() for name, value in training.parameters.items()})
        if step % 2 == 0 and step < 20:
            losses.append(training.measure(training.eval_splits)["validation_loss"])
    plain = training._evaluate(("validation",), last=False)["validation_loss"]
    metrics = training.measure(("validation", "test"), last=True)
    start, stop = valley([*losses, plain], PAPER, is_over=True)
    assert training.average is not None
    assert training.average.steps(20) == (2 * start + 1, 2 * stop)
    for name, mean in training.average.means.items():
        expected = torch.stack([each[name] for each in weights[2 * start : 2 * stop]]).mean(0)
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-6)
        assert torch.equal(training.parameters[name], weights[-1][name])
    with training.average.in_place():
        assert training._evaluate(("validation",), last=False)["validation_loss"] == metrics["validation_loss"]
    assert metrics["validation_loss"] != plain


def test_training_is_that_of_erm(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 12, "trainer.evaluate_every": 2}
    curves = []
    for method in ("erm", "swad", "vrex", "vrex+swad"):
        record = invbench.run(method, "spirals", settings=settings, out=tmp_path)
        rows = read_curves(RunFolder(tmp_path / record.run_id).curves)
        assert rows is not None
        curves.append(rows["validation_loss"].dropna().to_list())
    assert curves[0][:-1] == curves[1][:-1]
    assert curves[2][:-1] == curves[3][:-1]
    assert curves[0] != curves[1]


def test_a_loaded_run_has_the_mean(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 12, "trainer.evaluate_every": 2}
    record = invbench.run("swad", "penguins", settings=settings, out=tmp_path)
    loaded = invbench.load_run(tmp_path / record.run_id)
    test = loaded.problem.splits["test"]
    accuracy = (loaded.model(test.x).prediction.argmax(1) == test.y).double().mean().item()
    assert record.metrics["test_accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("method", "settings", "steps", "line"),
    [
        ("swad", {"method.start_windows": 1}, None, "the final weights are the mean of those after steps "),
        ("swad", {"method.start_windows": 7}, [11, 12],
         ("warning: the final weights are the mean of those after steps 11 to 12, the last window: the loss fell until "
          "the end, or so few windows (6) have no start (start_windows=7)")),
        ("erm", {"trainer.average": "mean", "trainer.average_from": 5}, [5, 12],
         "the final weights are the mean of those after steps 5 to 12"),
        ("erm", {}, None, ""),
    ],
)  # fmt: skip
def test_a_run_tells_of_which_steps_it_has_the_mean(
    method: str, settings: dict[str, Any], steps: list[int] | None, line: str, tmp_path: Path
) -> None:
    short: dict[str, Any] = {"trainer.epochs": None, "trainer.steps": 12, "trainer.evaluate_every": 2}
    record = invbench.run(method, "spirals", settings=short | settings, out=tmp_path)
    assert ("mean_of_steps" in record.engine) == bool(line)
    if steps:
        assert record.engine["mean_of_steps"] == steps
    log = RunFolder(tmp_path / record.run_id).log.read_text(encoding="utf-8")
    assert line in log
    assert ("final weights" in log) == bool(line)


def test_it_survives_a_kill(tmp_path: Path) -> None:
    config = small_config("swad", "spirals", trainer__steps=12, trainer__evaluate_every=2, method__start_windows=2)
    whole, parted = (RunFolder(tmp_path / name) for name in ("whole", "parted"))
    for folder in (whole, parted):
        folder.path.mkdir()
    run_until(config, whole, 12)
    for step in (3, 4, 9, 12):
        run_until(config, parted, step)
    assert_same_training(whole, parted)


def test_it_needs_the_validation_loss(tmp_path: Path) -> None:
    for settings, words in (
        ({"trainer.evaluate_splits": ["test"]}, "trainer.evaluate_splits leaves it out; set it to null"),
        ({"dataset.validation_share": 0}, "these data have no validation split; set dataset.validation_share=0.2"),
    ):
        with pytest.raises(UserError, match=f"swad goes by the validation loss, but {words}"):
            invbench.run("swad", "penguins", settings=settings, out=tmp_path)
    with pytest.raises(UserError, match="swad and ermpp both replace the final weights"):
        invbench.run("swad+ermpp", "spirals", out=tmp_path)
