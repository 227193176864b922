"""LieGAN and Augerino with free generators: their terms written out. docs/examples/which_symmetry.py tests a toy."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import small_config
from scipy.linalg import expm
from torch import nn

from invbench.components.algebra import LearnedAlgebra, draw_coefficients, normalised, one_parameter_group, overlap
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs
from invbench.core.task import BinaryClassification, Regression
from invbench.errors import UserError
from invbench.methods.augerino_groups import AugerinoGroups
from invbench.methods.lie_gan import Discriminator, LieGAN
from invbench.runs.options import Options
from invbench.training.runner import run_one


def problem_of(features: int = 6, regression: bool = False) -> Problem:
    torch.manual_seed(0)
    x = torch.randn(8, features)
    split = Split(x, torch.randn(8) if regression else torch.arange(8) % 2)
    task = Regression("", 0.5, 2.0) if regression else BinaryClassification()
    return Problem({"train": split, "test": split}, task, "vector", "synthetic")


def algebra_of(count: int, block: int | None) -> LearnedAlgebra:
    return LearnedAlgebra(problem_of(), count, block, 0.5, None)


@pytest.mark.parametrize(("count", "block"), [(1, None), (3, 2), (2, 3)])
def test_vectors_are_moved_by_the_exponential(count: int, block: int | None) -> None:
    algebra, x = algebra_of(count, block), problem_of().splits["train"].x
    z = draw_coefficients(x, count, "normal", 1.0)
    moved = algebra.transformed(x, z)
    whole = algebra.algebra().detach().double().numpy()
    assert whole.shape == (count, 6, 6)
    for row, coefficients, result in zip(x.numpy(), z.numpy(), moved.detach().numpy(), strict=True):
        expected = expm(np.einsum("k,kij->ij", coefficients, whole)) @ row
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("count", "block"), [(1, None), (1, 2), (2, 3)])
def test_coefficients_within_one_give_the_same(count: int, block: int | None) -> None:
    algebra, x = algebra_of(count, block), problem_of().splits["train"].x
    z = draw_coefficients(x, count, "uniform", 1.0)
    torch.testing.assert_close(algebra.within_one(x, z), algebra.transformed(x, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", [0.0, 0.1, 3.0, 60.0])
def test_one_parameter_group(norm: float) -> None:
    torch.manual_seed(0)
    rotation = torch.randn(4, 4, dtype=torch.float64)
    generator = norm * (rotation - rotation.T) / (rotation - rotation.T).norm()
    z, x = (
        torch.tensor([1.0, -1.0, 0.0, 1 / 3, -0.77, 1 / 32, -3 / 32], dtype=torch.float64),
        torch.randn(7, 4).double(),
    )
    expected = [expm(one.item() * generator.numpy()) @ row for one, row in zip(z, x.numpy(), strict=True)]
    np.testing.assert_allclose(one_parameter_group(x, generator, z).numpy(), expected, atol=1e-7)


def test_gradient_of_the_one_parameter_group() -> None:
    torch.manual_seed(0)
    generator, z, x = torch.randn(4, 4).double(), 2 * torch.rand(6).double() - 1, torch.randn(6, 4).double()
    generator.requires_grad_()
    assert torch.autograd.gradcheck(lambda matrix: one_parameter_group(x, matrix, z), generator)
    matrices = torch.linalg.matrix_exp(z[:, None, None] * generator)
    (expected,) = torch.autograd.grad((matrices @ x[..., None]).square().sum(), generator)
    single = generator.detach().float().requires_grad_()
    one_parameter_group(x.float(), single, z.float()).square().sum().backward()
    torch.testing.assert_close(single.grad, expected.float(), rtol=1e-4, atol=1e-4)


def test_more_generators_than_there_are_matrices_are_refused() -> None:
    algebra_of(9, 3)
    with pytest.raises(UserError, match="method.generators: matrices of 3 rows have 9 directions, not 10"):
        algebra_of(10, 3)


def test_vectors_that_cannot_be_cut_are_named() -> None:
    with pytest.raises(UserError, match="method.block: 6 inputs cannot be cut into parts of 4"):
        algebra_of(1, 4)


@pytest.mark.parametrize(("kind", "values"), [("integers", set(range(-3, 3))), ("normal", None), ("uniform", None)])
def test_coefficients(kind: Any, values: set[int] | None) -> None:
    z = draw_coefficients(torch.zeros(5000, 1), 2, kind, 3.0)
    assert z.shape == (5000, 2)
    if values is not None:
        assert set(z.unique().tolist()) == values
    deviation = {"integers": math.sqrt(35 / 12), "normal": 3.0, "uniform": math.sqrt(3)}[kind]
    assert z.std().item() == pytest.approx(deviation, rel=0.05)


def test_overlap_is_the_sum_over_pairs() -> None:
    matrices = algebra_of(3, 2).generators().detach()
    scaled = [matrix / (matrix.norm() / math.sqrt(2)) for matrix in matrices]
    expected = sum(abs((scaled[i] * scaled[j]).sum().item()) for i in range(3) for j in range(i))
    assert overlap(matrices).item() == pytest.approx(expected, rel=1e-4)
    assert normalised(matrices)[0].norm().item() == pytest.approx(math.sqrt(2), rel=1e-4)
    assert overlap(7 * matrices).item() == pytest.approx(expected, rel=1e-4), "whatever their size"


def test_the_penalty_of_lie_gan() -> None:
    method = LieGAN(generators=2, block=3, distance_weight=0.5, overlap_weight=0.25)
    problem = problem_of()
    x, y = (part.reshape(2, 4, *part.shape[1:]) for part in (problem.splits["train"].x, problem.splits["train"].y))
    model = method.build(nn.Linear(6, 1), problem)
    outputs = model(x.flatten(0, 1)).map(lambda part: part.unflatten(0, (2, 4)))
    batch = Batch(x, y, torch.arange(2))
    value, _ = method.penalty(torch.zeros(2), outputs, batch, {})
    cosine = torch.stack(
        [
            a @ b / (a.norm() * b.norm())
            for a, b in zip(outputs.further["moved"].flatten(0, 1), x.flatten(0, 1), strict=True)
        ]
    )
    entries = outputs.learned["generator"].reshape(2, 3, 3)
    torch.testing.assert_close(value, 0.5 * cosine.mean().abs() + 0.25 * overlap(entries))


@pytest.mark.parametrize("regression", [False, True])
def test_the_discriminator_tells_moved_inputs(regression: bool) -> None:
    method, problem = LieGAN(critic_width=4), problem_of(regression=regression)
    critic = method.critic(problem, Outputs(torch.zeros(1, 2, 1)))
    assert isinstance(critic.network, Discriminator)
    assert critic.simultaneous
    x, y = problem.splits["train"].x[None], problem.splits["train"].y[None]
    outputs = Outputs(torch.zeros(1, 8, 1), further={"moved": x.flip(-1)})
    batch = Batch(x, y, torch.zeros(1).long())
    real, fake = critic.network(x[0], y[0]).sigmoid(), critic.network(x[0].flip(-1), y[0]).sigmoid()
    loss, _ = method.critic_loss(critic.network, outputs, batch, {})
    torch.testing.assert_close(loss, -(real.log().mean() + (1 - fake).log().mean()))
    penalty, _ = method.critic_penalty(critic.network, outputs, batch, {})
    torch.testing.assert_close(penalty, -fake.log().mean())
    target = (y[0] - 0.5) / 2 if regression else torch.nn.functional.one_hot(y[0], 2).float()
    expected = critic.network.layers(torch.cat([x[0], target.reshape(8, -1)], 1))[:, 0]
    torch.testing.assert_close(critic.network(x[0], y[0]), expected)


def test_the_regulariser_of_free_generators_ends_at_the_cutoff() -> None:
    method = AugerinoGroups(regularisation=2.0, cutoff=3.0)
    batch = Batch(torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(1).long())
    for entries, expected in ((torch.tensor([1.2, 1.6]), -4.0), (torch.tensor([3.0, 4.0]), 0.0)):
        outputs = Outputs(torch.zeros(1, 1, 1), learned={"generator": entries})
        assert method.penalty(torch.zeros(1), outputs, batch, {})[0].item() == pytest.approx(expected)


def test_generators_are_in_records(tmp_path: Path) -> None:
    record = run_one(small_config("lie_gan", "discrete_rotation"), Options(out=tmp_path, quiet=True))
    assert {f"generator.0.{i}.{j}" for i in range(3) for j in range(3)} < set(record.metrics)
    assert 0 <= record.metrics["symmetry_angle"] <= 90
