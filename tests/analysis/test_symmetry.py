"""Generators that leave functions unchanged: closed forms, trained networks, images, and the command."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import small_config
from conftest import Bench
from torch import Tensor, nn

import invbench
from invbench import Problem, Split
from invbench.analysis.symmetry import FoundSymmetry, NamedSpan, lie_null_space, symmetry, varimax
from invbench.core.data import AS_THEY_ARE, Pixels, Symmetry
from invbench.core.task import Regression
from invbench.errors import UserError
from invbench.evaluation.symmetry import principal_angles
from invbench.runs.options import Options
from invbench.training.restored import RestoredRun, load_run
from invbench.training.runner import run_one

ETA = torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=torch.float64)


def rotations(size: int) -> Tensor:
    """Return a basis of so(d), antisymmetric matrices."""
    matrices = []
    for row in range(size):
        for column in range(row):
            matrix = torch.zeros(size, size, dtype=torch.float64)
            matrix[row, column], matrix[column, row] = 1, -1
            matrices.append(matrix)
    return torch.stack(matrices)


def inputs(size: int) -> Tensor:
    return torch.randn(400, size, dtype=torch.float64)


def beside_the_first(size: int) -> Tensor:
    """Return the generators whose image is orthogonal to the first axis."""
    return torch.eye(size**2, dtype=torch.float64)[size:].view(-1, size, size)


def about_the_axis(x: Tensor) -> Tensor:
    return x[:, 2] / (1 + x[:, 0] ** 2 + x[:, 1] ** 2)


CLOSED: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "length": (lambda x: x.square().sum(1), rotations(3)),
    "Minkowski": (lambda x: (ETA * x.square()).sum(1), ETA[:, None] * rotations(4)),
    "first input": (lambda x: x[:, 0], beside_the_first(4)),
    # (1 + ρ²)² ∇fᵀ L x has a part of degree two, (L x)_3, and then x_3 (x_1 (L x)_1 + x_2 (L x)_2): both must be 0
    "axis": (about_the_axis, torch.tensor([[[0.0, -1, 0], [1, 0, 0], [0, 0, 0]]], dtype=torch.float64)),
    "two outputs": (lambda x: torch.stack([x[:, 0], x.square().sum(1)], 1), rotations(3)[2:]),
}
"""Functions with all of the generators that leave them unchanged."""


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms(name: str) -> None:
    function, algebra = CLOSED[name]
    space = lie_null_space(function, inputs(algebra.shape[1]))
    count = len(algebra)
    assert space.dimension() == space.dimension(1e-3) == count
    assert principal_angles(space.generators(count), algebra).max() < 1e-4
    assert space.change(algebra).max() < 1e-6
    assert space.changes[count] > 0.2
    assert space.trivial() == (count if name == "first input" else 0)


def test_changes_are_relative_to_random_generators() -> None:
    """Whatever the scales of the function and of the inputs."""
    x, function = inputs(4), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    space = lie_null_space(function, x)
    assert space.changes.square().mean().item() == pytest.approx(1)
    scaled = lie_null_space(lambda x: 30 * function(x / 5), 5 * x, rows=77)
    torch.testing.assert_close(scaled.changes, space.changes)
    assert scaled.typical == pytest.approx(30 * space.typical)
    generators = torch.randn(200, 4, 4, dtype=torch.float64)
    assert space.change(generators).square().mean().item() == pytest.approx(1, abs=0.2)
    one = generators[0]
    ahead, behind = (function(x @ torch.matrix_exp(step * one).T) for step in (1e-5, -1e-5))
    along = (ahead - behind) / 2e-5
    expected = along.square().mean().sqrt().item() / one.norm().item() / space.typical
    assert space.change(one[None]).item() == pytest.approx(expected, rel=1e-5)


def test_trivial_generators_are_counted() -> None:
    """Data in a plane of R^4, and a function that is flat in all directions but one of these two."""
    x = inputs(4) * torch.tensor([1.0, 1.0, 0.0, 0.0])
    length = lie_null_space(lambda x: x[:, :2].square().sum(1), x)
    assert (length.trivial(), length.dimension()) == (16 - 2 * 2, 16 - 2 * 2 + 1)
    first = lie_null_space(lambda x: x[:, 0].sin(), x)
    assert first.trivial() == first.dimension() == 16 - 2 * 1
    constant = lie_null_space(lambda x: torch.ones(len(x)), x)
    assert constant.trivial() == constant.dimension() == 16


def test_a_gap_makes_the_dimension() -> None:
    space = replace(lie_null_space(lambda x: x[:, 0], inputs(2)), changes=torch.tensor([0.05, 0.08, 0.9, 1.2]))
    assert [space.dimension(tolerance) for tolerance in (0.3, 0.06, 0.04)] == [2, 0, 0]
    none = replace(space, changes=torch.tensor([0.2, 0.25, 0.4, 0.7]))
    assert none.dimension() == 0, "nothing doubles"
    exact = replace(space, changes=torch.tensor([1e-9, 0.05, 0.06, 1.5]))
    assert [exact.dimension(tolerance) for tolerance in (0.3, 1e-3)] == [3, 1], "near invariance counts as exact"


def test_varimax_finds_the_axes() -> None:
    mixed = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q @ rotations(3).flatten(1) / 2**0.5
    found = varimax(mixed).abs().sort(dim=0, descending=True).values
    assert principal_angles(varimax(mixed).view(3, 3, 3), rotations(3)).max() < 1e-4
    torch.testing.assert_close((found > 0.7).sum(), torch.tensor(6))
    assert ((found < 1e-5) | (found > 0.7)).all()


def of_images(x: Tensor, pixels: Pixels = AS_THEY_ARE) -> Problem:
    split = Split(x, torch.zeros(len(x)))
    return Problem({"train": split, "test": split}, Regression(""), "image", "synthetic", pixels=pixels)


def dark_bordered() -> Tensor:
    x = torch.zeros(30, 1, 16, 16, dtype=torch.float64)
    x[..., 4:-4, 4:-4] = torch.rand(30, 1, 8, 8, dtype=torch.float64)
    return x


def test_the_mean_intensity_changes_with_areas_only() -> None:
    """Nothing leaves the picture: five of the six generators keep areas, and scaling is orthogonal to these."""
    x = dark_bordered()
    span = NamedSpan(of_images(x))
    space = lie_null_space(lambda x: x.mean((1, 2, 3)), x, span)
    assert space.dimension(1e-3) == 5
    scale = span.by_name(space.generators(6)[5:])[0].abs()
    assert scale.tolist() == pytest.approx([float(name == "scale") for name in span.names], abs=1e-5)
    assert space.trivial() == 0


@pytest.mark.parametrize("pixels", [AS_THEY_ARE, Pixels((0.3,), (0.5,))])
def test_the_second_moment_is_left_unchanged_by_rotation(pixels: Pixels) -> None:
    """Of standardised images, too, whose black pixels are not 0."""
    x = pixels.standardised(dark_bordered())
    line = torch.linspace(-1, 1, 16, dtype=torch.float64).square()
    span = NamedSpan(of_images(x, pixels))
    space = lie_null_space(lambda x: (pixels.restored(x) * (line[:, None] + line)).mean((1, 2, 3)), x, span)
    assert space.dimension(1e-3) == 1
    rotation = [float(name == "rotation") for name in span.names]
    assert span.by_name(space.generators(1)).abs()[0].tolist() == pytest.approx(rotation, abs=1e-4)


def test_distances_are_left_unchanged_by_rigid_motions() -> None:
    """Sums over pairs of a function of the distance of two atoms, with padding."""
    x = torch.randn(40, 5, 4, dtype=torch.float64)
    x[..., 3] = 1.0
    x[:20, 4] = 0.0
    split = Split(x, torch.zeros(len(x)))
    problem = Problem({"train": split, "test": split}, Regression(""), "point_cloud", "synthetic")

    def energy(x: Tensor) -> Tensor:
        between = (x[:, :, None, :3] - x[:, None, :, :3]).square().sum(-1)
        return (torch.exp(-between) * x[:, :, None, 3] * x[:, None, :, 3]).sum((1, 2))

    span = NamedSpan(problem)
    space = lie_null_space(energy, x, span)
    assert space.dimension(1e-3) == 6
    named = span.by_name(space.generators(6)).abs().amax(0)
    rigid = torch.tensor([name.startswith(("rotation", "translation")) for name in span.names])
    assert named[~rigid].max() < 1e-6


@pytest.fixture(scope="module")
def sphere(tmp_path_factory: pytest.TempPathFactory) -> RestoredRun:
    """Return a small MLP that has learned the length of vectors in space."""
    out = tmp_path_factory.mktemp("sphere")
    x = np.random.default_rng(0).standard_normal((2000, 3))
    problem = Problem.from_arrays(x, np.linalg.norm(x, axis=1))
    settings = {"backbone.width": 32, "trainer.epochs": None, "trainer.steps": 600, "trainer.learning_rate": 5e-3}
    record = invbench.run("erm", problem, settings=settings, out=out)
    run = load_run(out / record.run_id)
    return run._replace(problem=replace(run.problem, symmetry=Symmetry(algebra=rotations(3))))


def test_a_trained_network_is_near_its_symmetry(sphere: RestoredRun) -> None:
    """The rotations are the three generators that change it least, by far."""
    counted: list[int] = []
    found = symmetry(sphere, examples=300, on_progress=counted.append)
    assert counted[-1] == found.examples == 300
    assert found.dimension == len(found.angles) == 3
    assert found.angles[-1] < 5
    assert found.changes[3] > 3 * found.changes[2]
    assert max(found.true_changes.values()) < 2 * found.changes[2]
    assert np.shape(found.generators) == (3, 3, 3)
    assert found.generator_changes == sorted(found.generator_changes)
    strict = symmetry(sphere, examples=300, tolerance=1e-3)
    assert (strict.dimension, len(strict.generators), strict.angles) == (0, 3, found.angles)
    assert not symmetry(sphere._replace(problem=replace(sphere.problem, symmetry=None))).angles


def test_a_truth_within_a_larger_symmetry_has_no_angle(sphere: RestoredRun) -> None:
    """Nothing changes a constant network, so no rotation does."""
    constant = symmetry(sphere._replace(model=Constant()))
    assert constant.dimension == constant.trivial == len(constant.generators) == 9
    assert len(constant.angles) == 3
    assert constant.angles[-1] < 1e-4
    assert set(constant.true_changes.values()) == {0.0}


class Constant(nn.Module):
    """A network whose output is 0."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), 1)


def trained(out: Path, method: str, dataset: str, **settings: object) -> RestoredRun:
    config = small_config(method, dataset, 0, **settings)
    run_one(config, Options("cpu", out))
    return load_run(out / config.spec.run_id)


def test_random_networks_keep_their_draws(tmp_path: Path) -> None:
    """Augerino averages over random copies: the same ones each time."""
    run = trained(tmp_path, "augerino", "digits", trainer__steps=2, method__test_copies=2)
    first, second = (symmetry(run, 20) for _ in range(2))
    assert first.changes == pytest.approx(second.changes, rel=1e-9)
    assert first.names[2] == "rotation"
    assert list(first.true_changes) == ["rotation"]
    assert first.true_changes["rotation"] > 0


def test_common_shifts_of_logits_do_not_count(tmp_path: Path) -> None:
    """The class probabilities do not depend on them."""
    run = trained(tmp_path, "erm", "digits", trainer__steps=2)
    shifted = Shifted(run.model)
    expected = symmetry(run, 20)
    assert symmetry(run._replace(model=shifted), 20).changes == pytest.approx(expected.changes, rel=1e-3)


class Shifted(nn.Module):
    """A network with a number added to all logits of an input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        prediction: Tensor = self.model(x).prediction
        return prediction + x.flatten(1).square().sum(1, keepdim=True)


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inputs have 65 features; generators are found of vectors of 64 at most"):
        lie_null_space(lambda x: x[:, 0], torch.randn(10, 65))
    with pytest.raises(UserError, match="8 examples have 8 derivatives, too few for 9 generators"):
        lie_null_space(lambda x: x[:, 0], torch.randn(8, 3))
    with pytest.raises(UserError, match="derivatives that are not finite"):
        lie_null_space(lambda x: (x[:, 0] - x[:, 0]).sqrt(), torch.randn(10, 3))
    with pytest.raises(UserError, match="predicts the examples of an environment together"):
        symmetry(trained(tmp_path, "arm", "digits", trainer__steps=1))


def test_the_command(bench: Bench, tmp_path: Path) -> None:
    run = trained(tmp_path / "results", "erm", "digits", trainer__steps=3)
    vectors = trained(tmp_path / "results", "erm", "penguins", trainer__steps=3)
    command = ["analyze", "symmetry", "results", "--examples", "50"]
    status, table, said = bench(*command, "--out", "symmetry.png")
    assert status == 0, said
    assert "of 16" in table
    assert "a matrix" in table
    assert (tmp_path / "symmetry.png").stat().st_size > 10_000
    path = tmp_path / "results" / run.config.spec.run_id / "symmetry.json"
    kept = FoundSymmetry.model_validate_json(path.read_text())
    assert kept.examples == 50
    assert f"{kept.angles[-1]:.3g}°" in table
    assert f"{max(kept.coefficients[0], key=abs):+.2f}" in table
    assert bench(*command, "--tolerance", "0")[2] == "error: --tolerance must be above 0\n"
    status, table, said = bench("analyze", "symmetry", "results", "--examples", "3")
    assert status == 0, "one of two can be analysed"
    assert "of 16" not in table
    assert "left out: " in said
    assert "too few for 16 generators" in said
    few = bench("analyze", "symmetry", str(tmp_path / "results" / vectors.config.spec.run_id), "--examples", "3")
    assert few[0] == 2
    assert few[2].count("\n") == 1
    assert "too few for 16 generators" in few[2]
    status, _, said = bench("analyze", "symmetry", "nowhere")
    assert status == 2
    assert "nowhere" in said
