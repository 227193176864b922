"""Canonicalisation: predictions do not change with the pose, whatever the network."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import objective_of
from torch import Tensor, nn
from torch.func import functional_call

import invbench
from invbench.components.images import rotate
from invbench.core.data import Problem, Split
from invbench.core.pixels import Pixels
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.methods._plane_group import SteerableScores, Turns
from invbench.methods.canonical import Canonical, Canonicalised
from invbench.runs.resolve import resolve

GROUPS: list[dict[str, Any]] = [
    {"rotations": 4},
    {"rotations": 8},
    {"rotations": 4, "reflections": True},
    {"rotations": 8, "reflections": True},
    {"rotations": 8, "continuous": True},
    {"rotations": 4, "continuous": True, "reflections": True},
]


def problem_of(size: int = 11, channels: int = 1) -> Problem:
    torch.manual_seed(0)
    split = Split(torch.rand(6, channels, size, size), torch.arange(6) % 3)
    pixels = Pixels((0.5,) * channels, (0.25,) * channels)
    return Problem({"train": split, "test": split}, Classification(3), "image", "synthetic", pixels=pixels)


def network(problem: Problem, **settings: Any) -> nn.Module:
    body = nn.Sequential(nn.Flatten(), nn.Linear(problem.splits["train"].x[0].numel(), 3))
    return Canonical(**settings).build(body, problem)


@pytest.mark.parametrize("size", [8, 11])
@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_quarter_turns_and_reflections_change_nothing(size: int, settings: dict[str, Any]) -> None:
    problem = problem_of(size, channels=3 if size == 8 else 1)
    model, x = network(problem, **settings), problem.splits["test"].x
    plain = next(part for part in model.modules() if isinstance(part, nn.Sequential) and len(part) == 2)
    tolerance = 1e-4 if settings.get("continuous") else 1e-5  # the angle is rounded
    for context in (torch.no_grad(), torch.enable_grad()):
        with context:
            before = model(x).prediction
            poses = [torch.rot90(x, k, (-2, -1)) for k in range(1, 4)]
            if settings.get("reflections"):
                poses += [torch.rot90(x.flip(-1), k, (-2, -1)) for k in range(4)]
            for posed in poses:
                assert (model(posed).prediction - before).abs().max() < tolerance
                assert (plain(posed) - plain(x)).abs().max() > 1e-2, "the network itself sees the difference"


def test_without_reflections_a_reflection_changes_predictions() -> None:
    problem = problem_of()
    model, x = network(problem, rotations=4), problem.splits["test"].x
    assert (model(x.flip(-1)).prediction - model(x).prediction).abs().max() > 1e-2


@pytest.mark.parametrize("angle", [0.4, 2.0, -3.0])
def test_turns_undo_turns(angle: float) -> None:
    problem = replace(problem_of(41), pixels=Pixels())
    blob = torch.zeros(1, 1, 41, 41)
    blob[..., 12:20, 18:30] = 1
    x = nn.functional.avg_pool2d(blob, 5, 1, 2).expand(2, -1, -1, -1)
    turned = rotate(x, torch.full((2,), angle))
    back = Turns(problem).back(turned, torch.full((2,), angle), torch.tensor([False, True]))
    assert (back[0] - x[0]).abs().max() < 0.12
    assert (back[1] - x[1].flip(-1)).abs().max() < 0.12


def test_copies_are_turns_back_by_each_element() -> None:
    problem = problem_of(9)
    turns, x = Turns(problem), problem.splits["test"].x
    copies = turns.copies(x, 8, reflections=True)
    for index, copy in enumerate(copies):
        angle = torch.full((6,), 2 * torch.pi * (index % 8) / 8)
        torch.testing.assert_close(turns.back(x, angle, torch.full((6,), index >= 8)), copy, rtol=0, atol=1e-4)


def scores_of(x: Tensor, problem: Problem, **settings: Any) -> Tensor:
    torch.manual_seed(1)
    return SteerableScores(problem, **settings)(x)


def test_scores_follow_the_group() -> None:
    problem = problem_of()
    x = problem.splits["test"].x
    settings = {"rotations": 4, "reflections": True, "fields": 3}
    before = scores_of(x, problem, **settings)
    turned, mirrored = (
        scores_of(torch.rot90(x, 1, (-2, -1)), problem, **settings),
        scores_of(x.flip(-1), problem, **settings),
    )
    torch.testing.assert_close(turned, before[:, [3, 0, 1, 2, 7, 4, 5, 6]], rtol=0, atol=1e-5)
    torch.testing.assert_close(mirrored, before[:, [4, 7, 6, 5, 0, 3, 2, 1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings", GROUPS, ids=str)
def test_gradients_reach_the_scores(settings: dict[str, Any]) -> None:
    problem = problem_of()
    model = network(problem, **settings)
    assert isinstance(model, Canonicalised)
    model(problem.splits["train"].x).prediction.square().sum().backward()
    for parameter in model.pose.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_prior_of_upright_scores() -> None:
    problem = problem_of()
    x = problem.splits["train"].x
    model = network(problem, rotations=4)
    away = model(x).further["away_from_identity"]
    scores = next(part for part in model.modules() if isinstance(part, SteerableScores))(x)
    torch.testing.assert_close(away, nn.functional.cross_entropy(scores, torch.zeros(6).long(), reduction="none"))
    model = network(problem, rotations=8, continuous=True, reflections=True)
    vectors = next(part for part in model.modules() if isinstance(part, SteerableScores))(x).detach()
    for away, (first, second) in zip(model(x).further["away_from_identity"], vectors, strict=True):
        first = first / first.norm()
        second = second - (second @ first) * first
        matrix = torch.stack([first, second / second.norm()], 1)
        assert (matrix - torch.eye(2)).square().sum() == pytest.approx(away.item(), abs=1e-4)


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_gradients_of_environments_in_pose_are_masked(engine: str) -> None:
    rule = {"method.and_mask.threshold": 0.5, "method.and_mask.scale_by_inverse_sparsity": False}
    settings = {"method.canonical.prior_weight": 0.5, "backbone.name": "mlp", "trainer.batch_size": 6}
    config = resolve("canonical+and_mask", "digits", 0, settings | rule)
    objective, parameters, batch, state = objective_of(config, engine)
    step = objective.step(parameters, batch, state)
    names, values = list(parameters), [value.requires_grad_() for value in parameters.values()]
    outputs = [functional_call(objective.model, parameters, (x,)) for x in batch.x]
    risks = [nn.functional.cross_entropy(out.prediction, y) for out, y in zip(outputs, batch.y, strict=True)]
    each = [torch.autograd.grad(risk, values, retain_graph=True) for risk in risks]
    away = torch.cat([out.further["away_from_identity"] for out in outputs]).mean()
    prior = torch.autograd.grad(0.5 * away, values, allow_unused=True)
    for name, penalty, *gradients in zip(names, prior, *each, strict=True):
        stacked = torch.stack(gradients)
        masked = stacked.mean(0) * (stacked.sign().mean(0).abs() >= 0.5)
        torch.testing.assert_close(step.gradients[name], masked + (0 if penalty is None else penalty))


def test_only_square_images() -> None:
    split = Split(torch.rand(4, 1, 8, 9), torch.arange(4) % 2)
    problem = Problem({"train": split, "test": split}, Classification(2), "image", "synthetic")
    with pytest.raises(UserError, match="only square images can be turned by quarters, these are 8x9"):
        network(problem)


@pytest.mark.slow
def test_upright_digits_are_told_as_well_as_by_erm(tmp_path: Path) -> None:
    settings = {"dataset.max_rotation": 0.0, "backbone.width": 8, "trainer.epochs": 60}
    erm = invbench.run("erm", "digits", settings=settings, out=tmp_path).metrics
    prior = {"method.prior_weight": 10.0}
    posed = invbench.run("canonical", "digits", settings=settings | prior, out=tmp_path)
    assert posed.metrics["test_accuracy"] > erm["test_accuracy"] - 0.02
    assert posed.invariance["quarter_turns_error"] < 1e-4
