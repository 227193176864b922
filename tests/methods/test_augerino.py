"""Learned and fixed augmentation against the formulas of their papers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cells import load, objective_of, small_config
from torch import Tensor, nn

from invbench.components.affine import generators
from invbench.components.augmentation import Averaged, RandomAffine
from invbench.components.learned import LearnedScalars, learned_parameters
from invbench.core.data import Batch, Problem
from invbench.core.method import Outputs, as_outputs
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.methods.augerino import Augerino
from invbench.methods.augerino_color import RandomColor
from invbench.results.load import load_curves
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, resolve
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.optimizers import Optimizer
from invbench.training.runner import run

pytestmark = pytest.mark.usefixtures("standins")


def model_of(method: str, dataset: str, **settings: Any) -> tuple[RunConfig, Problem, Averaged]:
    config = small_config(method, dataset, **settings)
    problem = load(config, torch.float64)
    model = build_model(config, problem).double()
    assert isinstance(model, Averaged)
    return config, problem, model


@pytest.mark.parametrize("dataset", ["mario_iggy", "digits", "qm9"])
def test_widths_of_zero_are_the_identity(dataset: str) -> None:
    initial = {} if dataset == "qm9" else {"rotation": -50.0}
    _, problem, model = model_of("augerino", dataset, method__initial_width=-50.0, method__initial_widths=initial)
    x = problem.splits["train"].x[:6]
    assert torch.allclose(model.transformation(x), x, atol=1e-10)


def test_a_rotation_of_width_w_turns_by_less_than_half_of_it() -> None:
    _, problem, model = model_of(
        "augerino", "digits", method__generators=["rotation"], method__initial_widths={"rotation": 1.5}
    )
    layer = model.transformation
    assert isinstance(layer, RandomAffine)
    seen: list[Tensor] = []
    layer.act = lambda x, matrices: seen.append(matrices) or x  # type: ignore[func-returns-value]
    x = problem.splits["train"].x[:1]
    layer(x.expand(5000, -1, -1, -1))
    angles = torch.atan2(seen[0][:, 1, 0], seen[0][:, 0, 0])
    width = F.softplus(torch.tensor(1.5)).item()
    assert angles.abs().max() <= width / 2
    assert angles.min() < -0.48 * width
    assert angles.max() > 0.48 * width
    assert abs(angles.mean()) < 0.02 * width


def test_the_interval_can_be_one_sided() -> None:
    _, problem, model = model_of("augerino", "qm9", method__generators=["scale"])
    layer = model.transformation
    assert isinstance(layer, RandomAffine)
    x = problem.splits["train"].x[:4]
    noise = torch.zeros(4, 1, dtype=torch.float64)
    assert torch.allclose(layer.transformed(x, noise), x)
    width = F.softplus(torch.tensor(0.54, dtype=torch.float64))
    grown = layer.transformed(x, noise + 1)
    assert torch.allclose(grown[..., :3], width.exp() * x[..., :3], atol=1e-6)


@pytest.mark.parametrize("cutoff", [10.0, None])
def test_gradient_of_the_regulariser(cutoff: float | None) -> None:
    """d/dρ_k of -λ‖softplus(ρ)‖ is -λ (w_k/‖w‖) σ(ρ_k)."""
    method = Augerino(regularisation=0.3, cutoff=cutoff)
    rho = torch.randn(6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(penalty_of(method, F.softplus(rho)), rho)
    w = F.softplus(rho)
    assert torch.allclose(gradient, -0.3 * w / w.norm() * rho.sigmoid())


def test_the_cutoff_switches_the_norm_off_altogether() -> None:
    large = torch.tensor([1.0, 10.0, 2.0])
    assert penalty_of(Augerino(), large) == 0
    assert penalty_of(Augerino(cutoff=None), large) == pytest.approx(-0.01 * large.norm().item())


def test_the_cutoff_switches_squares_off_one_by_one() -> None:
    widths = torch.tensor([1.0, 10.0, 2.0])
    penalty = penalty_of(Augerino(regulariser="squares", regularisation=0.001), widths)
    assert penalty.item() == pytest.approx(-0.001 * 5)


def penalty_of(method: Augerino, widths: Tensor) -> Tensor:
    outputs = Outputs(torch.zeros(1), learned={"width": widths})
    value, state = method.penalty(torch.zeros(1), outputs, Batch(*torch.zeros(3, 1)), {})
    assert state == {}
    return value


@pytest.mark.parametrize(
    ("method", "dataset"), [("augerino", "digits"), ("augerino", "qm9"), ("augerino_color", "digits")]
)
def test_copies_in_one_pass_equal_copies_in_a_loop(method: str, dataset: str) -> None:
    """Under the same noise, in evaluation, where each row is by itself."""
    _, problem, model = model_of(method, dataset, method__test_copies=3)
    model.eval()
    x = problem.splits["test"].x[:5]
    layer = model.transformation
    size = 2 if isinstance(layer, RandomColor) else len(layer.basis)  # type: ignore[arg-type]
    torch.manual_seed(3)
    noise = torch.rand(3 * len(x), size, dtype=torch.float64).unflatten(0, (3, len(x)))
    torch.manual_seed(3)
    together = model(x).prediction
    alone = [as_outputs(model.model(layer.transformed(x, u))).prediction for u in noise]  # type: ignore[operator]
    assert torch.allclose(together, model.task.average(torch.stack(alone), "log_probabilities"), atol=1e-10)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("method", "dataset"), [("augerino", "digits"), ("augerino", "qm9"), ("augerino_color", "digits")]
)
def test_gradients_reach_what_is_learned(method: str, dataset: str, training: bool) -> None:
    _, problem, model = model_of(method, dataset)
    model.train(training)
    split = problem.splits["train"].rows(slice(0, 8))
    loss = problem.task.losses(model(split.x).prediction, split.y).mean()
    ((name, part),) = learned_parameters(model).items()
    assert name == ("transformation.limits.raw" if method == "augerino_color" else "transformation.widths.raw")
    (gradient,) = torch.autograd.grad(loss, part.raw)
    assert (gradient != 0).all()


def test_gradient_of_the_risk_by_a_width_is_that_of_finite_differences() -> None:
    _, problem, model = model_of("augerino", "digits", backbone__name="mlp")
    layer, task, split = model.transformation, problem.task, problem.splits["train"].rows(slice(0, 10))
    assert isinstance(layer, RandomAffine)
    assert isinstance(layer.widths, LearnedScalars)
    noise, raw = torch.rand(10, 6, dtype=torch.float64), layer.widths.raw

    def risk() -> Tensor:
        return task.losses(as_outputs(model.model(layer.transformed(split.x, noise))).prediction, split.y).mean()

    (gradient,) = torch.autograd.grad(risk(), raw)
    for k in range(6):
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                raw[k] += sign * 1e-6
                values.append(risk().item())
                raw[k] -= sign * 1e-6
        assert gradient[k].item() == pytest.approx((values[0] - values[1]) / 2e-6, abs=1e-6)


def test_averages() -> None:
    logits = torch.randn(4, 7, 3, dtype=torch.float64)
    task = Classification(3)
    mean = task.average(logits, "logits")
    assert torch.allclose(mean, logits.mean(0))
    averaged = task.average(logits, "log_probabilities")
    assert torch.allclose(averaged, logits.log_softmax(-1).mean(0))
    assert torch.allclose(averaged.softmax(-1), mean.softmax(-1))
    assert torch.allclose(task.average(logits, "probabilities").softmax(-1), logits.softmax(-1).mean(0))
    binary, one = BinaryClassification(), logits[..., :1]
    assert torch.allclose(binary.average(one, "probabilities").sigmoid(), one.sigmoid().mean(0))
    assert torch.allclose(binary.average(one, "log_probabilities"), one.mean(0))
    assert torch.allclose(Regression("m").average(one, "log_probabilities"), one.mean(0))


def test_a_regression_is_not_zero_in_evaluation() -> None:
    _, problem, model = model_of("augerino", "olivetti")
    model.eval()
    assert model(problem.splits["test"].x[:4]).prediction.abs().min() > 0


def test_binary_and_two_class_changes_agree() -> None:
    first, second = torch.randn(2, 5, 1, dtype=torch.float64)
    as_two = [torch.cat([torch.zeros_like(z), z], dim=-1) for z in (first, second)]
    assert torch.allclose(BinaryClassification().change(first, second), Classification(2).change(*as_two))


def test_no_copies_take_inputs_as_they_are() -> None:
    _, problem, model = model_of("fixed_augmentation", "digits", method__test_copies=0)
    model.eval()
    x = problem.splits["test"].x[:4]
    assert torch.equal(model(x).prediction, as_outputs(model.model(x)).prediction)


def test_learned_and_fixed_with_equal_widths_are_the_same_distribution() -> None:
    rho = {"rotation": 1.0, "scale": -1.0}
    widths = {name: F.softplus(torch.tensor(value, dtype=torch.float64)).item() for name, value in rho.items()}
    *_, learned = model_of("augerino", "digits", method__generators=list(rho), method__initial_widths=rho)
    *_, fixed = model_of("fixed_augmentation", "mario_iggy", method__widths=widths)
    noise, x = torch.rand(4, 2, dtype=torch.float64), torch.rand(4, 3, 9, 9, dtype=torch.float64)
    first, second = learned.transformation, fixed.transformation
    assert isinstance(first, RandomAffine)
    assert isinstance(second, RandomAffine)
    first.act = second.act
    assert torch.allclose(first.transformed(x, noise), second.transformed(x, noise), atol=1e-6)


def test_colours_against_the_authors_arithmetic() -> None:
    _, problem, model = model_of("augerino_color", "digits")
    layer = model.transformation
    assert isinstance(layer, RandomColor)
    x, noise = problem.splits["train"].x[:3], torch.rand(3, 2, dtype=torch.float64)
    images = problem.pixels.restored(layer.transformed(x, noise))
    limit = 2 / (1 + math.exp(-2)) - 1
    assert layer.limits().tolist() == pytest.approx([-limit, limit, -limit, limit])  # type: ignore[operator]
    for image, result, (u, v) in zip(problem.pixels.restored(x), images, noise, strict=True):
        p = (image + limit * (2 * u - 1)).clamp(0, 1)
        c = 255 * limit * (2 * v - 1)
        factor = 259 * (c + 255) / (255 * (259 - c))
        assert torch.allclose(result, ((factor * (255 * p - 128) + 128).clamp(0, 255) / 255), atol=1e-9)


def test_widths_learn_at_their_own_rate_and_do_not_decay() -> None:
    settings = TrainerConfig(steps=1, learning_rate=0.1, weight_decay=0.5, l1=0.5)
    parameters = {"weight": torch.ones(1), "raw": torch.ones(1)}
    optimizer = Optimizer.of(settings, parameters, {"raw": 0.02})
    zero = {name: torch.zeros(1) for name in parameters}
    after, _ = optimizer.step(parameters, zero, optimizer.initial_state(parameters), 0, settings.learning_rate)
    assert after["raw"] == 1
    assert after["weight"] < 1
    one = {name: torch.ones(1) for name in parameters}
    after, _ = optimizer.step(parameters, one, optimizer.initial_state(parameters), 0, settings.learning_rate)
    assert after["raw"].item() == pytest.approx(0.98)


def test_curves_hold_widths_and_their_gradients(tmp_path: Any) -> None:
    run("augerino", "digits", settings={"trainer.steps": 8, "backbone.width": 2}, out=tmp_path)
    curves = load_curves(tmp_path)
    assert curves["step"].tolist() == list(range(1, 9))
    for name in ("rotation", "translation_x"):
        assert curves[f"width.{name}"].notna().all()
        assert (curves[f"width_gradient.{name}"] != 0).all()
    assert curves["width.rotation"].iloc[0] == pytest.approx(F.softplus(torch.tensor(1.0)).item(), abs=0.02)


def test_the_gradient_in_the_curves_is_the_objectives(tmp_path: Any) -> None:
    """With every transformation switched off it is the regulariser's alone."""
    config = small_config("augerino", "digits", method__train_copies=0, method__regularisation=0.5)
    problem = load(config)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    (part,) = training.learned.values()
    w, sigma = part().detach(), part.raw.detach().sigmoid()
    training.step(training.next_batch())
    assert training.last is not None
    assert torch.allclose(training.last.gradients["transformation.widths.raw"], -0.5 * w / w.norm() * sigma)


def test_augmentation_composes_with_a_gradient_rule() -> None:
    config = resolve("augerino+and_mask", "digits", 0, {"backbone.name": "mlp", "backbone.width": 8})
    objective, parameters, batch, state = objective_of(config, "vmap")
    step = objective.step(parameters, batch, state)
    assert len(batch.x) == 4
    assert all(torch.isfinite(gradient).all() for gradient in step.gradients.values())
    assert 0 < step.state["and_mask"]["surviving_fraction"] < 1


def test_unknown_generators_are_named() -> None:
    with pytest.raises(UserError, match=r"method\.generators: images have no generator 'rotatoin'; did you mean 'rot"):
        model_of("augerino", "digits", method__generators=["rotatoin"])
    with pytest.raises(UserError, match=r"initial_widths: images have no generator 'rotation_x'; did you mean"):
        model_of("augerino", "digits", method__initial_widths={"rotation_x": 1.0})
    with pytest.raises(UserError, match=r"method\.widths: point clouds have no generator 'rotation'"):
        model_of("fixed_augmentation", "qm9", method__distribution="affine")
    with pytest.raises(UserError, match="crop_flip is for image inputs, these are point_cloud"):
        model_of("fixed_augmentation", "qm9", method__distribution="crop_flip")


def test_every_generator_has_a_width_by_default() -> None:
    _, problem, model = model_of("augerino", "qm9")
    (part,) = learned_parameters(model).values()
    assert part.names == tuple(generators(problem))
    assert len(part.names) == 12
    assert torch.allclose(part(), F.softplus(torch.tensor(0.54, dtype=torch.float64)).expand(12), atol=1e-6)


def test_a_module_that_learns_nothing_has_nothing_to_show() -> None:
    assert learned_parameters(nn.Linear(2, 2)) == {}
