"""Affine transformations against scipy's exponential, torch's grids and geometry."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from cells import load, small_config
from hypothesis import given, settings

from invbench.components.affine import (
    action,
    basis,
    exponential,
    generators,
    random_motion,
    random_rotations,
    transform_images,
    transform_points,
)
from invbench.core.data import Problem


@pytest.fixture
def image_problem() -> Problem:
    return load(small_config("erm", "digits"), torch.float64)


@pytest.fixture
def point_problem(standins: object) -> Problem:
    return load(small_config("erm", "qm9"), torch.float64)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**16), size=st.floats(0.01, 8.0))
def test_exponential_is_scipys(seed: int, size: float) -> None:
    rng = np.random.default_rng(seed)
    for d, k in ((3, 6), (4, 12)):
        matrices, coefficients = rng.normal(size=(k, d, d)), rng.normal(size=(5, k))
        total = np.einsum("nk,kij->nij", coefficients, matrices)
        coefficients *= size / np.linalg.norm(total, axis=(1, 2), ord=2).max()
        expected = np.stack([scipy.linalg.expm(a) for a in np.einsum("nk,kij->nij", coefficients, matrices)])
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
            actual = exponential(torch.from_numpy(coefficients).to(dtype), torch.from_numpy(matrices).to(dtype))
            error = np.linalg.norm(actual.double().numpy() - expected, axis=(1, 2))
            assert (error <= tolerance * np.linalg.norm(expected, axis=(1, 2))).all()


def test_gradient_of_the_exponential() -> None:
    coefficients = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(6, 3, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: exponential(c, matrices), coefficients)


def test_generators_are_the_authors(image_problem: Problem, point_problem: Problem) -> None:
    """The matrices of the fact sheet, written out."""
    plane = dict(zip(generators(image_problem), basis(image_problem, generators(image_problem)), strict=True))
    assert plane["translation_x"].tolist() == [[0, 0, pytest.approx(0.1)], [0, 0, 0], [0, 0, 0]]
    assert plane["rotation"].tolist() == [[0, -1, 0], [1, 0, 0], [0, 0, 0]]
    assert plane["stretch"].tolist() == [[1, 0, 0], [0, -1, 0], [0, 0, 0]]
    z = torch.arange(1.0, 13.0)
    element = torch.einsum("k,kij->ij", z, basis(point_problem, generators(point_problem)))
    a, b, c = z[:3], z[3:6], z[6:9]
    cross = [[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]]
    shear = [[0, b[2], b[1]], [b[2], 0, b[0]], [b[1], b[0], 0]]
    squeeze = torch.diag(torch.stack([c[0] + c[2], -c[0] + c[1] + c[2], -c[1] + c[2]]))
    assert torch.equal(element[:3, :3], torch.tensor(cross) + torch.tensor(shear) + squeeze)
    assert torch.equal(element[:3, 3], 0.5 * z[9:])
    assert torch.equal(element[3], torch.zeros(4))


@pytest.mark.parametrize("shape", [(2, 3, 9, 9), (4, 1, 7, 11)])
def test_images_are_sampled_as_by_torchs_grid(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape, dtype=torch.float64)
    matrices = torch.eye(3, dtype=torch.float64) + 0.2 * torch.randn(len(x), 3, 3, dtype=torch.float64)
    grid = F.affine_grid(matrices[:, :2], list(shape), align_corners=True)
    assert torch.allclose(transform_images(x, matrices), F.grid_sample(x, grid, align_corners=True), atol=1e-12)


def test_a_quarter_turn_turns_by_a_quarter(image_problem: Problem) -> None:
    x = image_problem.splits["train"].x[:5]
    turn = exponential(torch.tensor([[math.pi / 2]], dtype=torch.float64), basis(image_problem, ["rotation"]).double())
    turned = action(image_problem)(x, turn.expand(5, -1, -1))
    assert torch.allclose(turned, torch.rot90(x, 1, (-2, -1)), atol=1e-9)


def test_outside_of_a_standardised_image_is_black(image_problem: Problem) -> None:
    x = image_problem.splits["train"].x[:2]
    far = torch.tensor([[1.0, 0, 5.0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64).expand(2, -1, -1)
    assert torch.allclose(action(image_problem)(x, far), torch.full_like(x, -2.0))


def test_points_move_and_padding_stays(point_problem: Problem) -> None:
    x = point_problem.splits["train"].x
    matrices = torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(len(x), 4, 4, dtype=torch.float64)
    moved = transform_points(x, matrices)
    for cloud, after, m in zip(x, moved, matrices, strict=True):
        there = cloud[:, 3] > 0
        expected = cloud[there][:, :3] @ m[:3, :3] + m[:3, 3]
        assert torch.allclose(after[there][:, :3], expected)
        assert torch.equal(after[~there], cloud[~there])
        assert torch.equal(after[:, 3], cloud[:, 3])


def test_random_motions_are_rigid(point_problem: Problem) -> None:
    x = point_problem.splits["train"].x
    moved = random_motion(x)
    for cloud, after in zip(x, moved, strict=True):
        there = cloud[:, 3] > 0
        assert torch.allclose(torch.pdist(after[there][:, :3]), torch.pdist(cloud[there][:, :3]))
    assert not torch.allclose(moved, x)


def test_random_rotations_are_uniform_on_the_group() -> None:
    turns = random_rotations(torch.empty(20_000, 1, dtype=torch.float64))
    assert torch.allclose(turns @ turns.mT, torch.eye(3, dtype=torch.float64).expand_as(turns), atol=1e-12)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(len(turns), dtype=torch.float64))
    # Haar measure: the mean is 0, and each entry's mean square is 1/3.
    assert turns.mean(0).abs().max() < 0.02
    assert (turns.square().mean(0) - 1 / 3).abs().max() < 0.02
