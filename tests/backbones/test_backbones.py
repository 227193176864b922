"""Networks of the papers: sizes, and what must not change their answer."""

from typing import Any

import pytest
import torch
from cells import load, small_config
from torch import Tensor, nn

from invbench.components.affine import random_motion
from invbench.components.point_clouds import charge_features, points
from invbench.core.data import Problem, Split
from invbench.core.method import as_outputs
from invbench.core.registry import BACKBONES
from invbench.core.task import Classification, Regression

POINT_NETWORKS: list[tuple[str, dict[str, Any]]] = [
    ("point_resnet", {"width": 16, "depth": 2, "group": "translation"}),
    ("point_resnet", {"width": 16, "depth": 2, "group": "trivial"}),
    ("egnn", {"width": 8, "depth": 2}),
    ("deep_sets", {"width": 8}),
]


def built(name: str, problem: Problem, **settings: Any) -> nn.Module:
    model: nn.Module = BACKBONES.load(name).parse(settings, "backbone").build(problem)
    return model


def images(size: int, channels: int, outputs: int) -> Problem:
    split = Split(torch.rand(3, channels, size, size), torch.zeros(3, dtype=torch.long))
    task = Classification(outputs) if outputs > 1 else Regression("degrees")
    return Problem({"train": split, "test": split}, task, "image", "synthetic")


@pytest.mark.parametrize(
    ("name", "size", "channels", "outputs", "parameters"),
    [
        ("cnn_small", 28, 1, 10, 1_628_810),
        ("domainbed_cnn", 28, 2, 2, 371_136 + 2 * 129),
        ("domainbed_cnn", 28, 1, 10, 370_560 + 10 * 129),
        ("simple_conv", 32, 3, 4, 390_404),
        ("simple_conv", 45, 1, 1, 389_057),
        ("conv13", 32, 3, 10, 3_993_482),
        ("resnet9", 32, 3, 10, 6_573_120),
    ],
)
def test_published_numbers_of_parameters(name: str, size: int, channels: int, outputs: int, parameters: int) -> None:
    problem = images(size, channels, outputs)
    model = built(name, problem)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert as_outputs(model(problem.splits["train"].x)).prediction.shape == (3, outputs)


@pytest.mark.parametrize("name", ["simple_conv", "conv13", "resnet9"])
def test_image_networks_take_small_images(name: str) -> None:
    problem = images(8, 2, 2)
    out = as_outputs(built(name, problem, width=4)(problem.splits["train"].x))
    assert out.prediction.shape == (3, 2)
    assert out.representation is not None


def test_group_norm_treats_each_image_by_itself() -> None:
    problem = images(16, 3, 4)
    x = problem.splits["train"].x
    for norm, alike in (("group", True), ("batch", False)):
        model = built("resnet9", problem, width=4, norm=norm)
        together, alone = model(x).prediction[:1], model(x[:1]).prediction
        assert torch.allclose(together, alone, atol=1e-5) == alike


def test_the_logits_of_resnet9_are_an_eighth() -> None:
    problem = images(16, 3, 4)
    model = built("resnet9", problem, width=4, norm="group")
    out = model(problem.splits["train"].x)
    assert torch.allclose(out.prediction, out.representation @ model.head.weight.T / 8)  # type: ignore[operator, union-attr]


@pytest.fixture
def molecules(standins: object) -> Problem:
    return load(small_config("erm", "qm9"), torch.float64)


def trained_a_little(name: str, problem: Problem, **settings: Any) -> nn.Module:
    """Return a backbone in evaluation mode whose statistics and biases are not the initial ones."""
    model = built(name, problem, **settings).double()
    with torch.no_grad():
        for _ in range(3):
            model(problem.splits["train"].x)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


@pytest.mark.parametrize(("name", "settings"), POINT_NETWORKS, ids=str)
def test_order_and_padding_of_points_change_nothing(name: str, settings: dict[str, Any], molecules: Problem) -> None:
    model, x = trained_a_little(name, molecules, **settings), molecules.splits["train"].x
    for mode in (True, False):
        model.train(mode)
        before = answer(model, x)
        assert before.std() > 1e-4
        order = torch.randperm(x.shape[1])
        assert torch.allclose(answer(model, x[:, order]), before, atol=1e-8)
        assert torch.allclose(answer(model, torch.cat([x, torch.zeros_like(x[:, :3])], dim=1)), before, atol=1e-8)


@pytest.mark.parametrize(("name", "settings"), POINT_NETWORKS, ids=str)
def test_what_shifts_and_turns_change(name: str, settings: dict[str, Any], molecules: Problem) -> None:
    model, x = trained_a_little(name, molecules, **settings), molecules.splits["train"].x
    before = answer(model, x)
    there = points(x).mask[..., None].to(x)
    shifted = torch.cat([x[..., :3] + there * torch.tensor([1.0, -2.0, 0.5]), x[..., 3:]], dim=-1)
    shifts_matter = settings.get("group") == "trivial"
    assert torch.allclose(answer(model, shifted), before, atol=1e-8) != shifts_matter
    assert torch.allclose(answer(model, random_motion(x)), before, atol=1e-8) == (name == "egnn")


def answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return as_outputs(model(x)).prediction


def test_batch_norm_sees_only_what_is_there(molecules: Problem) -> None:
    """Running statistics after one pass are those of the points, and of the pairs, one by one."""
    model = built("point_resnet", molecules, width=8, depth=1).double()
    x = molecules.splits["train"].x[:5]
    model(x)
    features = model.features
    rows, differences = [], []
    for cloud in x:
        there = cloud[cloud[:, 3] > 0]
        rows.append(features.embedding(charge_features(there[:, 3])))  # type: ignore[operator, union-attr]
        differences.append((there[:, None, :3] - there[None, :, :3]).flatten(0, 1))
    norm, kernel = features.blocks[0].reduce[0], features.blocks[0].convolution.kernel  # type: ignore[index, union-attr]
    for layer, values in ((norm, torch.cat(rows)), (kernel[1], kernel[0](torch.cat(differences)))):  # type: ignore[index, operator, union-attr]
        assert torch.allclose(layer.running_mean, 0.1 * values.mean(0))  # type: ignore[union-attr, arg-type]
        assert torch.allclose(layer.running_var, 0.9 + 0.1 * values.var(0))  # type: ignore[union-attr, arg-type]


def test_the_convolution_is_a_sum_over_pairs(molecules: Problem) -> None:
    """y_i = W (1/n) Σ_j v_j ⊗ φ(a_ij) + b, one pair at a time."""
    model = trained_a_little("point_resnet", molecules, width=8, depth=1, group="translation")
    part = model.features.blocks[0].convolution  # type: ignore[union-attr, index]
    seen: list[Tensor] = []
    part.register_forward_hook(lambda _, given, out: seen.extend([*given[:2], out]))  # type: ignore[operator]
    x = molecules.splits["train"].x[:1]
    answer(model, x)
    values, elements, outputs = seen
    positions, _, mask = points(x)
    positions = positions[mask]
    for i in range(len(positions)):
        total = torch.zeros(16, 2, dtype=x.dtype)
        for j in range(len(positions)):
            element = positions[i] - positions[j]
            assert torch.allclose(elements[i * len(positions) + j], element)
            total += torch.outer(part.kernel(element[None])[0], values[j])  # type: ignore[operator]
        assert torch.allclose(outputs[i], part.mix(total.flatten() / len(positions)), atol=1e-8)  # type: ignore[operator]


def test_memory_of_the_convolution_does_not_grow_with_pairs_times_channels() -> None:
    """The largest tensor kept for the backward pass is of points times channels times 16, or of pairs times 32."""
    n, width = 12, 64
    split = Split(torch.rand(4, n, 4) + 1, torch.zeros(4))
    problem = Problem({"train": split, "test": split}, Regression("eV"), "point_cloud", "synthetic")
    model = built("point_resnet", problem, width=width, depth=1)
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):  # type: ignore[func-returns-value]
        model(split.x)
    assert max(sizes) <= 4 * max(n * 16 * width // 4, n * n * 32, n * width)
