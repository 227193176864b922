"""Consistency of minima: two-parameter examples that can be worked out, and runs of the suite."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import small_config
from conftest import Bench
from torch import Tensor

from invbench.analysis.consistency import (
    Consistency,
    Environments,
    Risks,
    by_path,
    by_sampling,
    consistency,
    largest,
    plane,
)
from invbench.errors import UserError
from invbench.runs.options import Options
from invbench.training.restored import RestoredRun, load_run
from invbench.training.runner import run_one

EPSILON = 0.01
AWAY = torch.tensor([0.6, 0.8], dtype=torch.float64)


def valleys(*curvatures: tuple[float, float]) -> Risks:
    """Return the risks a_e θ₁² + b_e θ₂² of environments."""
    return lambda theta: torch.stack([a * theta[..., 0] ** 2 + b * theta[..., 1] ** 2 for a, b in curvatures])


def rays(count: int) -> Tensor:
    angles = torch.linspace(0, 2 * torch.pi, count + 1, dtype=torch.float64)[:-1]
    return torch.stack([angles.cos(), angles.sin()], 1)


def both(risks: Risks, reach: float = 2.0) -> tuple[Tensor, Tensor]:
    """Return the gaps at 0 by sampling and by path."""
    zero = torch.zeros(2, dtype=torch.float64)
    return by_sampling(risks, zero, EPSILON, rays(360), reach), by_path(risks, zero, EPSILON, 200, reach, AWAY)


def test_equal_environments_are_consistent() -> None:
    """Nobody's risk changes by more than ε where one's does not."""
    for gaps in both(valleys((1.0, 1.0), (1.0, 1.0))):
        assert gaps.max() <= EPSILON + 1e-6


def test_a_patchwork_minimum_is_not() -> None:
    """A sees the first coordinate only and B the second: each is flat where the other is steep, up to the reach.

    Both find the square of the reach, the path but for its first step.
    """
    for gaps, tolerance in zip(both(valleys((1.0, 0.0), (0.0, 1.0))), (1e-6, 0.02), strict=True):
        assert gaps[0, 1] == pytest.approx(4.0, rel=tolerance)
        assert gaps[1, 0] == pytest.approx(4.0, rel=tolerance)


def test_the_level_set_bounds_the_gap() -> None:
    """R_A = θ₁² + θ₂², R_B = 4 θ₁² + 4 θ₂²: within N(A), R_B is at most 4 ε; in the smaller N(B), R_A at most ε / 4."""
    for gaps in both(valleys((1.0, 1.0), (4.0, 4.0))):
        assert 2 * EPSILON < gaps[0, 1] <= 4 * EPSILON + 1e-6  # the grid has steps of 1.5, squared 2.25
        assert gaps[1, 0] <= EPSILON


def test_what_is_behind_a_ridge_does_not_count() -> None:
    """R_A is low again beyond a ridge, where R_B is high: that place is not connected with the minimum."""

    def risks(theta: Tensor) -> Tensor:
        ridge = torch.sin(theta[0]) ** 2
        return torch.stack([ridge + theta[1] ** 2, theta[0] ** 2 + theta[1] ** 2])

    zero = torch.zeros(2, dtype=torch.float64)
    along = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    assert by_sampling(risks, zero, EPSILON, along, torch.pi)[0, 1] < 2 * EPSILON
    assert by_path(risks, zero, EPSILON, 200, 4.0, AWAY)[0, 1] < 2 * EPSILON


def test_the_plane_goes_through_its_points() -> None:
    """Risks at the marked points are those of the parameters."""
    risks = valleys((1.0, 2.0), (3.0, 0.5))
    points = [torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.0], [0.5, 1.0], [-1.0, 0.25])]
    surface = plane(risks, *points, points=41)
    assert surface.risks.shape == (2, 41, 41)
    for point, (x, y) in zip(points, surface.points, strict=True):
        column, row = np.abs(surface.x - x).argmin(), np.abs(surface.y - y).argmin()
        assert surface.x[column] == pytest.approx(x, abs=0.03)
        assert surface.risks[:, row, column] == pytest.approx(risks(point).numpy(), abs=0.1)
    assert surface.points[0] == (0, 0)


def run_of(out: Path, method: str, dataset: str, **settings: object) -> RestoredRun:
    config = small_config(method, dataset, 0, **settings)
    run_one(config, Options("cpu", out))
    return load_run(out / config.spec.run_id)


def test_of_a_run(tmp_path: Path) -> None:
    """Risks are those of the environments, signs agree as counted one by one, and the same call finds the same."""
    run = run_of(tmp_path, "erm", "spirals", trainer__steps=60, trainer__learning_rate=1e-2, trainer__dtype="float64")
    environments = Environments.of(run, 48)
    split = run.problem.splits["train"]
    assert split.env is not None
    total = [torch.zeros_like(part) for part in run.model.parameters()]
    for e, risk in enumerate(environments.risks(environments.theta)):
        members = split.rows(split.env == e)
        expected = run.problem.task.losses(run.model(members.x).prediction, members.y).mean()
        assert risk.item() == pytest.approx(expected.item())
        run.model.zero_grad()
        expected.backward()
        total = [
            part + p.grad.sign() for part, p in zip(total, run.model.parameters(), strict=True) if p.grad is not None
        ]
    shares = [(part.abs() / len(environments.x)).mean().item() for part in total]
    assert list(environments.agreement().values()) == pytest.approx(shares)
    first = consistency(run, directions=4, steps=3)
    assert first == consistency(run, directions=4, steps=3)
    assert first.score == -max(largest(first.sampling), largest(first.path))
    assert first.score < -(max(first.risks) - min(first.risks)) + 1e-9, "θ* itself is in every level set"


def test_without_environments_there_is_nothing_to_compare(tmp_path: Path) -> None:
    run = run_of(tmp_path, "erm", "mi_toy", trainer__steps=2)
    with pytest.raises(UserError, match="no training environments"):
        consistency(run)


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    for method in ("erm", "and_mask"):
        bench("run", "-m", method, "-d", "spirals", "--set", "trainer.steps=5", "--set", "backbone.width=8")
    command = ["analyze", "consistency", "results", "--directions", "2", "--steps", "2", "--examples", "32"]
    status, table, said = bench(*command, "--out", "plane.png")
    assert status == 0, said
    assert "AND-mask on spirals, seed 0" in table
    assert (tmp_path / "plane.png").stat().st_size > 10_000
    kept = [Consistency(**json.loads(path.read_text())) for path in (tmp_path / "results").glob("*/consistency.json")]
    assert len(kept) == 2
    assert all(f"{one.score:.4g}" in table for one in kept)
    one = next((tmp_path / "results").iterdir())
    assert bench(*command[:2], str(one), *command[3:], "--out", "single.png")[0] == 0
