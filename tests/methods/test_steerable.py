"""Steerable networks: equivariance on the pixels, e2cnn's own numbers, plain convolutions in evaluation."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import load, small_config
from torch import Tensor, nn

from invbench.core.data import Problem, Split
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.evaluation import metrics
from invbench.evaluation.invariance import measure
from invbench.methods._steerable_convolution import (
    BlurPool,
    Exporting,
    Fitted,
    SteerableConvolution,
    e2cnn,
    functions,
    group,
    image,
    without_reflections,
)
from invbench.runs.resolve import resolve
from invbench.training.build import build_model
from invbench.training.gradients import choose_strategy
from invbench.training.runner import run

ARCHITECTURES: list[dict[str, Any]] = [
    {"architecture": "small", "rotations": 4},
    {"architecture": "small", "rotations": 8},
    {"architecture": "small", "rotations": 4, "reflections": True},
    {"architecture": "c8"},
    {"architecture": "c16"},
]


def problem_of(size: int, channels: int = 1) -> Problem:
    x = torch.rand(6, channels, size, size)
    split = Split(x, torch.arange(6) % 3)
    return Problem({"train": split, "test": split}, Classification(3), "image", "synthetic")


def network(problem: Problem, settings: dict[str, Any], width: float = 0.1) -> nn.Module:
    config = resolve(
        "steerable", "digits", 0, {f"method.{k}": v for k, v in settings.items()} | {"method.width": width}
    )
    model = build_model(config, problem)
    with torch.no_grad():  # as after some training: batch statistics, and biases that are not zero
        for _ in range(3):
            model(problem.splits["train"].x)
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("size", [28, 29, 32, 45])
@pytest.mark.parametrize("settings", ARCHITECTURES, ids=str)
def test_quarter_turns_change_nothing(size: int, settings: dict[str, Any]) -> None:
    problem = problem_of(size, channels=3 if size == 32 else 1)
    model = network(problem, settings)
    x = problem.splits["test"].x
    for training in (True, False):
        model.train(training)
        if training:  # batch statistics, but no dropout
            for part in model.modules():
                if isinstance(part, nn.Dropout):
                    part.eval()
        before = model(x).prediction
        assert before.std() > 1e-3
        for turns in (1, 2, 3):
            assert torch.allclose(model(torch.rot90(x, turns, (-2, -1))).prediction, before, atol=1e-4)


@pytest.mark.slow
def test_d16_is_equivariant_to_turns_only_and_has_as_many_parameters_as_the_authors_network() -> None:
    """On digits of ten classes, with int(C / √2) fields; theirs has a bias for each in front of a batch norm."""
    problem = replace(problem_of(28), task=Classification(10))
    model = network(problem, {"architecture": "d16"}, width=1.0).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_069_353 - (16 + 22 + 25 + 25 + 45 + 96)
    x = problem.splits["test"].x
    with torch.no_grad():
        before = model(x).prediction
        assert torch.allclose(model(torch.rot90(x, 1, (-2, -1))).prediction, before, atol=1e-4)
        assert not torch.allclose(model(x.flip(-1)).prediction, before, atol=1e-4)


def test_reflections_change_nothing_where_they_belong_to_the_group() -> None:
    problem = problem_of(28)
    x = problem.splits["test"].x
    with_them, without = ({"architecture": "small", "rotations": 4, "reflections": r} for r in (True, False))
    assert not torch.allclose(*self_and_mirror(network(problem, without), x), atol=1e-4)
    assert torch.allclose(*self_and_mirror(network(problem, with_them), x), atol=1e-4)


def self_and_mirror(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    model.eval()
    return model(x).prediction, model(x.flip(-1)).prediction


@pytest.mark.parametrize("settings", ARCHITECTURES, ids=str)
def test_plain_convolutions_say_the_same(settings: dict[str, Any]) -> None:
    problem = problem_of(28)
    model = network(problem, settings).eval()
    (body,) = (part for part in model.modules() if isinstance(part, Exporting))
    assert not any(isinstance(part, SteerableConvolution) for part in body.export().modules())
    assert any(isinstance(part, nn.Conv2d) for part in body.export().modules())
    x = problem.splits["test"].x
    steerable = model(x).prediction
    with torch.no_grad():
        plain = model(x).prediction
    assert torch.allclose(plain, steerable, atol=1e-5)


def test_evaluation_follows_the_weights() -> None:
    """Whichever way they change: by training, by loading, by another precision."""
    problem = problem_of(28)
    model = network(problem, ARCHITECTURES[0]).eval()
    x = problem.splits["test"].x
    (body,) = (part for part in model.modules() if isinstance(part, Exporting))
    with torch.no_grad():
        before, first = model(x).prediction, body.export()
        assert body.export() is first
        kept = copy.deepcopy(model.state_dict())
        next(iter(body.parameters())).mul_(2.0)
        assert body.export() is not first
        assert not torch.allclose(model(x).prediction, before)
        model.load_state_dict(kept)
        assert torch.equal(model(x).prediction, before)
        assert torch.allclose(model.double()(x.double()).prediction.float(), before, atol=1e-5)


def test_evaluation_leaves_no_trace_in_the_state() -> None:
    problem = problem_of(28)
    model = network(problem, ARCHITECTURES[0])
    names = list(model.state_dict())
    with torch.no_grad():
        model.eval()(problem.splits["test"].x)
    assert list(model.state_dict()) == names
    assert sum(value.numel() for value in model.state_dict().values()) < 20_000


@pytest.mark.parametrize(("rotations", "reflections"), [(4, False), (8, False), (4, True)])
@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:indexing with dtype torch.uint8")
def test_kernels_and_first_weights_are_e2cnns(rotations: int, reflections: bool, size: int) -> None:
    """The basis of a pair of fields, repeated, spans what e2cnn builds for all fields at once, weight for weight."""
    layers, space = e2cnn().nn, group(rotations, reflections)
    for inputs in (image(space, 2), functions(space, 3)):
        outputs = functions(space, 2)
        ours = SteerableConvolution(inputs, outputs, size)
        kinds = [layers.FieldType(space, [side.representation] * side.count) for side in (inputs, outputs)]
        theirs = layers.R2Conv(*kinds, size, bias=False, initialize=False)
        theirs.weights.data = ours.weights.data.flatten()
        kernel, _ = theirs.expand_parameters()
        assert torch.allclose(ours.kernel()[0], kernel, atol=1e-6)
        deviations = e2cnn().init._generalized_he_init_variances(theirs.basisexpansion)
        torch.manual_seed(5)
        noise = torch.randn(outputs.count, inputs.count, len(ours.basis))
        torch.manual_seed(5)
        again = SteerableConvolution(inputs, outputs, size)
        assert torch.allclose(again.weights.flatten(), noise.flatten() * deviations, atol=1e-6)


def test_a_convolution_turns_with_its_input() -> None:
    space = group(4, False)
    first = SteerableConvolution(image(space, 1), functions(space, 2), 5, padding=2, bias=True)
    second = SteerableConvolution(functions(space, 2), functions(space, 3), 3, padding=1)
    x = torch.randn(2, 1, 9, 9)
    before, after = (second(first(y)).unflatten(1, (3, 4)) for y in (x, torch.rot90(x, 1, (-2, -1))))
    turned = torch.rot90(before, 1, (-2, -1)).roll(1, dims=2)  # a turn also moves on the group
    assert torch.allclose(after, turned, atol=1e-5)


def test_restricted_fields_have_the_same_channels() -> None:
    space = group(4, True)
    fields = functions(space, 3)
    restricted = without_reflections(fields, 4)
    assert restricted.channels == fields.channels == 24
    x = torch.randn(2, fields.channels, 7, 7)
    assert SteerableConvolution(restricted, functions(group(4, False), 2), 3)(x).shape == (2, 8, 5, 5)


@pytest.mark.parametrize(("height", "side"), [(8, 11), (8, 12), (9, 12), (9, 13)])
def test_images_keep_their_centre_on_a_larger_square(height: int, side: int) -> None:
    fitted = Fitted(side, torch.tensor([[[-2.0]]]))
    x = torch.randn(3, 1, height, height)
    y = fitted(x)
    assert y.shape == (3, 1, side, side)
    assert torch.allclose(fitted(torch.rot90(x, 1, (-2, -1))), torch.rot90(y, 1, (-2, -1)), atol=1e-6)
    assert fitted(torch.full_like(x, -2.0)).abs().max() == 0
    assert y.sum().item() == pytest.approx((x + 2).sum().item(), rel=1e-5)


def test_blur_pooling_keeps_constants_and_symmetry() -> None:
    pool = BlurPool(0.66, 2)
    assert torch.allclose(pool(torch.ones(1, 2, 9, 9))[..., 1:-1, 1:-1], torch.ones(1, 2, 3, 3))
    x = torch.randn(1, 2, 9, 9)
    assert torch.allclose(pool(torch.rot90(x, 1, (-2, -1))), torch.rot90(pool(x), 1, (-2, -1)), atol=1e-6)


def test_only_the_joint_strategy_trains_it() -> None:
    config = small_config("steerable", "digits")
    model = build_model(config, load(config))
    assert choose_strategy(config.method, model, config.trainer) == "joint"
    looped = small_config("steerable", "digits", trainer__strategy="loop")
    with pytest.raises(UserError, match="batch normalisation couples"):
        choose_strategy(looped.method, model, looped.trainer)


def test_it_brings_its_own_network() -> None:
    config = resolve("steerable", "digits")
    assert (config.spec.backbone, config.spec.backbone_settings, config.backbone) == ("", {}, None)
    with pytest.raises(UserError, match="steerable brings its own network"):
        resolve("steerable", "digits", 0, {"backbone.width": 3})
    with pytest.raises(UserError, match=r"steerable makes a network of its own, .* steerable\+augerino"):
        resolve("augerino+steerable", "digits")
    with pytest.raises(UserError, match="rotations and reflections belong to architecture small, c8 has its own"):
        resolve("steerable", "digits", 0, {"method.architecture": "c8", "method.rotations": 4})
    assert resolve("steerable+augerino", "digits").spec.backbone == ""


def test_invariance_is_measured_as_exact(tmp_path: Path) -> None:
    record = run("steerable", "digits", settings={"trainer.steps": 3}, out=tmp_path)
    assert record.invariance["quarter_turns_error"] < 1e-4
    assert record.invariance["reflection_error"] > 1e-4
    plain = run("erm", "digits", settings={"trainer.steps": 3, "backbone.width": 2}, out=tmp_path)
    assert plain.invariance["quarter_turns_error"] > 1e-4
    assert record.engine["parameters"] < 5000
    layers = [f"features.1.network.{name}" for name in ("first", "middle", "middle 2", "last")]
    assert list(record.invariance["layers"]) == layers
    assert max(record.invariance["layers"].values()) < 1e-5
    assert "layers" not in plain.invariance


@pytest.mark.parametrize(("rotations", "reflections"), [(4, False), (4, True)])
def test_a_layer_that_does_not_turn_is_found(rotations: int, reflections: bool) -> None:
    settings = {"method.rotations": rotations, "method.reflections": reflections}
    config = resolve("steerable", "digits", 0, settings)
    problem = load(config, torch.float64)
    model = build_model(config, problem).double()
    profile = measure(model, problem, 0, 0, examples=8)
    assert max(profile["layers"].values()) < 1e-12
    middle = model.get_submodule("features.1.network.middle")
    basis = middle.get_buffer("basis")
    basis += 0.1 * torch.randn_like(basis)
    errors = measure(model, problem, 0, 0, examples=8)["layers"]
    wrong = {name: error for name, error in errors.items() if ".middle" in name}  # called twice
    assert min(wrong.values()) > 1e-3
    assert max(error for name, error in errors.items() if name not in wrong) < 1e-12


@pytest.mark.parametrize(
    ("method", "settings", "count"),
    [
        ("steerable+canonical", {"method.canonical.fields": 2}, 7),
        ("canonical", {"method.fields": 2}, 3),
        ("partial_steerable", {"method.partial": False, "method.channels": 3}, 3),
        ("partial_steerable", {"method.first_share": 0.5, "method.channels": 3}, 1),
    ],
)
def test_layers_turn_what_they_are_given(method: str, settings: dict[str, Any], count: int) -> None:
    """Also where another part turns images ahead of them; layers on a part of the turns have no such symmetry."""
    problem = load(resolve(method, "digits", 0, settings), torch.float64)
    model = build_model(resolve(method, "digits", 0, settings), problem).double()
    errors = measure(model, problem, 0, 0, examples=8)["layers"]
    assert len(errors) == count
    assert max(errors.values()) < 1e-6  # angles are in single precision


def test_inputs_that_are_predicted_in_parts_call_a_layer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = resolve("steerable", "digits")
    problem = load(config, torch.float64)
    model = build_model(config, problem).double()
    expected = measure(model, problem, 0, 0, examples=8)["layers"]
    monkeypatch.setattr(metrics, "MOST_NUMBERS_OF_CPU", 3 * 64)
    assert measure(model, problem, 0, 0, examples=8)["layers"].keys() == expected.keys()


def test_layers_of_a_group_without_quarter_turns_are_not_measured() -> None:
    config = resolve("steerable", "digits", 0, {"method.rotations": 6})
    problem = load(config, torch.float64)
    assert "layers" not in measure(build_model(config, problem).double(), problem, 0, 0)


def test_measuring_leaves_the_mode_alone() -> None:
    problem = problem_of(28)
    model = network(problem, ARCHITECTURES[0])
    assert measure(model.train(), problem, 0, 0)["quarter_turns"] < 1e-5
    assert model.training


def test_evaluation_knows_what_training_learned() -> None:
    """Running statistics converge to those of the batch that they have seen again and again."""
    problem = problem_of(28)
    model, x = network(problem, ARCHITECTURES[0], width=0.25), problem.splits["train"].x
    for part in model.modules():
        if isinstance(part, nn.BatchNorm3d):
            part.momentum = 0.5
    with torch.no_grad():
        for _ in range(30):
            batch_statistics = model.train()(x).prediction
        evaluated = model.eval()(x).prediction
    assert torch.allclose(evaluated, batch_statistics, atol=0.02 * batch_statistics.std().item())
