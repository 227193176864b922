"""InstaAug: ranges per input, the controller of their entropy, and what is reported of them."""

import math
from pathlib import Path

import pytest
import torch
from cells import small_config
from torch import nn

from invbench.components.affine import action, basis, exponential
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.methods.insta_aug import AveragedByInput, InstaAug, RandomRange
from invbench.runs.options import Options
from invbench.training.runner import run_one

BATCH = Batch(torch.zeros(2, 3, 1, 4, 4), torch.zeros(2, 3).long(), torch.arange(2))


def problem_of() -> Problem:
    torch.manual_seed(0)
    split = Split(torch.rand(6, 1, 8, 8), torch.arange(6) % 3)
    return Problem({"train": split, "test": split}, Classification(3), "image", "synthetic")


def transformation(**settings: object) -> RandomRange:
    part = InstaAug(**settings).transformation(problem_of())  # type: ignore[arg-type]
    assert isinstance(part, RandomRange)
    return part


def test_first_ranges_are_alike_and_narrow() -> None:
    x = problem_of().splits["test"].x
    part = transformation(generators=("rotation", "scale"), first_range=-3.0)
    share = 1 / (1 + math.exp(3))
    expected = torch.tensor([[-math.pi, math.pi], [-1.0, 1.0]]) * share
    torch.testing.assert_close(part.ranges(x), expected.expand(6, 2, 2))
    low, high = part.extent(x)["rotation"]
    torch.testing.assert_close(high, torch.full((6,), math.pi * share))
    torch.testing.assert_close(low, -high)


def test_inputs_move_within_their_own_range() -> None:
    problem, part = problem_of(), transformation(channels=2)
    nn.init.normal_(part.network.features.last.weight, std=50)  # type: ignore[union-attr, arg-type]
    x = problem.splits["test"].x
    ranges = part.ranges(x)
    assert ranges[:, 0, 1].std() > 1e-3, "they differ"
    torch.manual_seed(3)
    moved = part(x)
    torch.manual_seed(3)
    noise = torch.rand(6, 1)
    angle = ranges[..., 0] + noise * (ranges[..., 1] - ranges[..., 0])
    expected = action(problem)(x, exponential(angle, basis(problem, ["rotation"])))
    torch.testing.assert_close(moved, expected)


@pytest.mark.parametrize(("width", "factor"), [(0.5, 1.2), (1.5, 1.0), (3.0, 1 / 1.2)])
def test_the_controller_keeps_mean_widths_between_its_thresholds(width: float, factor: float) -> None:
    method = InstaAug(weight=0.3, thresholds=(1.0, 2.0))
    state = method.initial_state({"w": torch.zeros(1)}, 2)
    ranges = torch.tensor([-0.25, 0.75]) * width + torch.randn(2, 3, 1, 1)
    outputs = Outputs(torch.zeros(2, 3, 3), further={"ranges": ranges})
    first, state = method.penalty(torch.zeros(2), outputs, BATCH, state)
    second, state = method.penalty(torch.zeros(2), outputs, BATCH, state)
    assert first.item() == pytest.approx(-0.3 * width, rel=1e-5)
    assert second.item() == pytest.approx(-0.3 * width * factor, rel=1e-5)
    for _ in range(200):
        _, state = method.penalty(torch.zeros(2), outputs, BATCH, state)
    assert state["factors"].item() == pytest.approx(1.2 ** (50 * ((factor > 1) - (factor < 1))), rel=1e-4)


def test_gradients_reach_the_network_of_ranges_through_the_risk() -> None:
    problem = problem_of()
    model = InstaAug().build(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), problem)
    assert isinstance(model, AveragedByInput)
    model(problem.splits["train"].x).prediction.square().sum().backward()
    gradient = model.random_range.network.features.last.bias.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert (gradient != 0).all()


def test_runs_report_errors_of_each_class(tmp_path: Path) -> None:
    config = small_config("insta_aug", "mario_iggy")
    metrics = run_one(config, Options(out=tmp_path, quiet=True)).metrics
    errors = [metrics[f"symmetry_error_class{k}"] for k in range(4)]
    assert sum(errors) / 4 == pytest.approx(metrics["symmetry_error"], rel=1e-4), "classes are equally frequent"


def test_generators_that_images_do_not_have_are_named() -> None:
    with pytest.raises(UserError, match="images have no generator 'rotate'"):
        transformation(generators=("rotate",))
