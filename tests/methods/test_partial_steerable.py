"""Partial equivariance: turns change nothing as long as the shares are 1, and shares can leave 1."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import load, small_config
from torch import Tensor, nn

import invbench
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs
from invbench.core.pixels import Pixels
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.evaluation.symmetry import symmetry_metrics
from invbench.methods.partial_steerable import PartialFeatures, PartialSteerable, TurnedConvolution, reflected


def problem_of(size: int = 9, channels: int = 1) -> Problem:
    torch.manual_seed(0)
    split = Split(torch.rand(6, channels, size, size), torch.arange(6) % 3)
    pixels = Pixels((0.5,) * channels, (0.25,) * channels)
    return Problem({"train": split, "test": split}, Classification(3), "image", "synthetic", pixels=pixels)


def network(problem: Problem, **settings: Any) -> nn.Module:
    torch.manual_seed(1)
    return PartialSteerable(**({"channels": 4} | settings)).build(nn.Identity(), problem)


def features_of(model: nn.Module) -> PartialFeatures:
    return next(part for part in model.modules() if isinstance(part, PartialFeatures))


def share_gradient(model: nn.Module) -> Tensor:
    shares = features_of(model).shares
    assert shares is not None
    assert shares.raw.grad is not None
    return shares.raw.grad


def change_by_quarter_turns(model: nn.Module, x: Tensor) -> float:
    before = model(x).prediction
    turned = [model(torch.rot90(x, k, (-2, -1))).prediction for k in (1, 2, 3)]
    return max((after - before).abs().max().item() for after in turned)


@pytest.mark.parametrize("size", [8, 11])
@pytest.mark.parametrize("partial", [True, False])
@pytest.mark.parametrize("samples", [4, 8])
def test_quarter_turns_change_nothing_where_all_shares_are_1(size: int, partial: bool, samples: int) -> None:
    problem = problem_of(size, channels=3 if size == 8 else 1)
    model, x = network(problem, partial=partial, samples=samples), problem.splits["test"].x
    for training in (True, False):
        model.train(training)
        for context in (torch.no_grad(), torch.enable_grad()):
            with context:
                assert model(x).prediction.std() > 1e-3
                assert change_by_quarter_turns(model, x) < 1e-5


@pytest.mark.parametrize("kernel", [3, 5, 7])
def test_maps_turn_with_the_image(kernel: int) -> None:
    """A quarter turn of the input turns each map, and moves it on by a quarter of the angles."""
    torch.manual_seed(0)
    grid = (2 * torch.arange(8).double() + 1 - 8) * (math.pi / 8)
    lift, convolution = TurnedConvolution(2, 3, kernel).double(), TurnedConvolution(3, 4, kernel, 8).double()
    x = torch.randn(5, 2, 1, 10, 10).double()
    first = lift(x, None, grid)
    second = convolution(first, grid, grid)
    turned_first = lift(torch.rot90(x, 1, (-2, -1)), None, grid)
    turned_second = convolution(turned_first, grid, grid)
    for before, after in ((first, turned_first), (second, turned_second)):
        expected = torch.rot90(before, 1, (-2, -1)).roll(2, 2)
        torch.testing.assert_close(after, expected, rtol=0, atol=1e-5)
        assert (after - before).abs().max() > 0.1


def test_kernels_are_those_of_the_formula() -> None:
    torch.manual_seed(0)
    before, after = torch.tensor([0.3, -1.0]), torch.tensor([0.5, 2.0, -0.7])
    convolution = TurnedConvolution(2, 3, 5, 2)
    kernel = convolution.kernel(before, after).unflatten(0, (3, 3)).unflatten(2, (2, 2))
    inside = [(row, column) for row in range(5) for column in range(5) if math.hypot(row - 2, column - 2) <= 2]
    for i, b in enumerate(after.tolist()):
        for j, a in enumerate(before.tolist()):
            for row in range(5):
                for column in range(5):
                    right, up = (column - 2) / 2, (2 - row) / 2
                    back = [
                        math.cos(b) * right + math.sin(b) * up,
                        math.cos(b) * up - math.sin(b) * right,
                        math.cos(a - b),
                        math.sin(a - b),
                    ]
                    value = convolution.kernel_network(torch.tensor(back)).unflatten(0, (3, 2))
                    expected = value / math.sqrt(2 * 2 * len(inside)) * ((row, column) in inside)
                    torch.testing.assert_close(kernel[:, i, :, j, row, column], expected, rtol=0, atol=1e-5)


def test_with_small_shares_the_network_sees_how_images_are_turned() -> None:
    problem = problem_of()
    model, x = network(problem, first_share=1e-6), problem.splits["test"].x
    assert change_by_quarter_turns(model, x) > 100 * change_by_quarter_turns(network(problem), x)
    features = features_of(model)
    angles = [features.grid, *(0 * features.grid for _ in range(2))]
    maps = torch.relu(features.norms[0](features.lift((x - features.black)[:, :, None], None, angles[0])))
    for number, convolution in enumerate(features.convolutions, 1):
        maps = torch.relu(features.norms[number](convolution(maps, angles[number - 1], angles[number])))
        assert (maps - maps[:, :, :1]).abs().max() < 1e-5, "n copies of one function"
    torch.testing.assert_close(features(x), maps[:, :, 0].mean((-2, -1)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("first", [1.0, 0.4])
def test_gradients_reach_every_share_and_agree_with_differences(layers: int, first: float) -> None:
    problem = problem_of()
    model, x = network(problem, layers=layers, first_share=first).double(), problem.splits["train"].x.double()
    features = features_of(model)
    assert features.shares is not None
    weights = torch.linspace(-1, 1, 18).double().reshape(6, 3)

    def objective() -> Tensor:
        return (model(x).prediction * weights).sum()

    objective().backward()
    gradient = share_gradient(model).clone()
    assert gradient.abs().min() > 1e-4
    if first < 1:  # at 1 the two sides have different slopes
        for index in range(layers):
            values = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    features.shares.raw[index] += step
                    values.append(objective())
                    features.shares.raw[index] -= step
            torch.testing.assert_close((values[0] - values[1]) / 2e-5, gradient[index], rtol=1e-3, atol=1e-6)


def test_at_1_the_risk_of_sixes_moves_shares_but_no_kernel() -> None:
    """Why shares are reflected: an image and its half turn are alike to all weights until a share is below 1."""
    x = problem_of(8).splits["train"].x
    both, y = torch.cat([x, x.rot90(2, (-2, -1))]), torch.arange(2.0).repeat_interleave(len(x))
    problem = Problem(
        {"train": Split(both, y.long()), "test": Split(both, y.long())}, Classification(2), "image", "synthetic"
    )
    model = network(problem).double()
    prediction = model(both.double()).prediction
    logit = prediction[:, 1] - prediction[:, 0]
    centred = logit - logit.detach()  # a risk of log 2, as training on both has at best
    nn.functional.binary_cross_entropy_with_logits(centred, y.double()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        largest = parameter.grad.abs().max()
        assert (largest > 1e-6) if name.endswith(".raw") else (largest < 1e-6), name


def test_shares_are_reflected_at_both_ends() -> None:
    raw = torch.tensor([-0.2, 0.0, 0.3, 1.0, 1.1, 1.9, 2.2], requires_grad=True)
    shares = reflected(raw)
    torch.testing.assert_close(shares, torch.tensor([0.2, 0.0, 0.3, 1.0, 0.9, 0.1, 0.2]))
    (slope,) = torch.autograd.grad(shares.sum(), raw)
    assert slope.tolist() == [-1, 1, 1, 1, -1, -1, 1]


def test_penalty_of_shares_that_grow() -> None:
    method = PartialSteerable(monotone_weight=0.5)
    batch = Batch(torch.zeros(1, 1, 1), torch.zeros(1, 1), None, torch.zeros(1))
    for shares in ([0.5], [0.9, 0.4, 0.7, 0.2, 0.3], [1.0, 0.5, 0.1]):
        outputs = Outputs(torch.zeros(1, 1, 1), learned={"share": torch.tensor(shares)})
        penalty, _ = method.penalty(torch.zeros(1), outputs, batch, {})
        naive = 0.0
        for layer in range(len(shares) - 1):
            naive += 0.5 * max(0.0, shares[layer + 1] - shares[layer])
        assert penalty.item() == pytest.approx(naive, abs=1e-6)
    penalty, _ = PartialSteerable(partial=False).penalty(torch.zeros(1), Outputs(torch.zeros(1, 1, 1)), batch, {})
    assert penalty == 0


def test_half_width_is_that_of_the_smallest_share() -> None:
    problem = load(small_config("partial_steerable", "sixes"))
    for settings, expected in (({"first_share": 0.25}, math.pi / 4), ({"partial": False}, math.pi)):
        model = network(problem, **settings)
        assert problem.symmetry is not None
        assert symmetry_metrics(model, problem, problem.symmetry)["symmetry_error"] == pytest.approx(expected)
    model = network(problem)
    shares = features_of(model).shares
    assert shares is not None
    with torch.no_grad():
        shares.raw.copy_(torch.tensor([0.3, 0.8]))
    assert features_of(model).extent(problem.splits["test"].x)["rotation"][1].tolist() == pytest.approx([0.3 * math.pi])


def test_mistakes_are_named() -> None:
    split = Split(torch.rand(4, 1, 8, 9), torch.arange(4) % 2)
    problem = Problem({"train": split, "test": split}, Classification(2), "image", "synthetic")
    with pytest.raises(UserError, match="only square images can be turned by quarters, these are 8x9"):
        network(problem)
    with pytest.raises(ValueError, match="give an odd number"):
        PartialSteerable(kernel=4)
    split = Split(torch.rand(4, 1, 8, 8), torch.arange(4) % 2)
    problem = Problem({"train": split, "test": split}, Classification(2), "image", "synthetic")
    network(problem, kernel=15)
    with pytest.raises(UserError, match="method.kernel: 17 is more than the images of 8 pixels reach, 15"):
        network(problem, kernel=17)


@pytest.mark.slow
def test_sixes_are_told_from_turned_ones_by_a_part_of_the_group_only(tmp_path: Path, seed: int = 0) -> None:
    partial = invbench.run("partial_steerable", "sixes", seed=seed, out=tmp_path)
    assert partial.metrics["test_accuracy"] > 0.9
    assert partial.metrics["symmetry_error"] < 0.95 * math.pi, "π times the smallest share, the truth being 0"
    full = invbench.run(
        "partial_steerable", "sixes", seed=seed, settings={"method.partial": False, "trainer.epochs": 10}, out=tmp_path
    )
    assert full.metrics["test_accuracy"] == pytest.approx(0.5, abs=0.05)
    assert full.invariance["quarter_turns_error"] < 1e-4
