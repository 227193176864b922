"""Symmetrisation against the sum written out, and its limits."""

from typing import Any

import pytest
import torch
from torch import nn

from invbench.core.data import Problem, Split
from invbench.core.task import Classification
from invbench.methods.canonical import Canonical
from invbench.methods.symmetrised import GroupAverage, Symmetrised

KINDS = ["uniform", "learned", "frame"]


def problem_of(size: int = 9) -> Problem:
    torch.manual_seed(0)
    split = Split(torch.rand(5, 1, size, size), torch.arange(5) % 3)
    return Problem({"train": split, "test": split}, Classification(3), "image", "synthetic")


def network(kind: Any, problem: Problem, **settings: Any) -> GroupAverage:
    torch.manual_seed(1)
    size = problem.splits["train"].x[0].numel()
    body = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, 3))
    model = Symmetrised(distribution=kind, **settings).build(body, problem)
    assert isinstance(model, GroupAverage)
    return model


@pytest.mark.parametrize("reflections", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_the_weighted_sum_over_all_poses(kind: str, reflections: bool) -> None:
    problem = problem_of()
    model, x = network(kind, problem, reflections=reflections), problem.splits["test"].x
    weights, total = model.weights(x), torch.zeros(5, 3)
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    for g in range(weights.shape[1]):
        posed = torch.rot90(x, -(g % 4), (-2, -1))
        total += weights[:, g, None] * model.model(posed.flip(-1) if g >= 4 else posed)
    torch.testing.assert_close(model(x).prediction, total)
    poses = [torch.rot90(x, k, (-2, -1)) for k in range(1, 4)] + ([x.flip(-1)] if reflections else [])
    for posed in poses:
        assert (model(posed).prediction - total).abs().max() < 1e-5


def test_sharpness_leads_from_uniform_to_a_frame() -> None:
    problem = problem_of()
    x = problem.splits["test"].x
    flat, sharp = (network("learned", problem, sharpness=sharpness) for sharpness in (1e-6, 1e6))
    torch.testing.assert_close(flat.weights(x), network("uniform", problem).weights(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(sharp.weights(x), network("frame", problem).weights(x))


def test_a_frame_of_one_element_is_the_canonical_pose() -> None:
    problem = problem_of()
    model, x = network("frame", problem), problem.splits["test"].x
    posed = Canonical().build(model.model, problem)
    posed.pose.scores.load_state_dict(model.scores.state_dict())  # type: ignore[union-attr]
    torch.testing.assert_close(model(x).prediction, posed(x).prediction)


def test_a_frame_has_all_best_elements() -> None:
    problem = problem_of(8)
    model = network("frame", problem)
    half_turned = problem.splits["test"].x + torch.rot90(problem.splits["test"].x, 2, (-2, -1))
    assert sorted(model.weights(half_turned)[0].tolist()) == [0, 0, 0.5, 0.5]
