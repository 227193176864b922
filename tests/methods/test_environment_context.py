"""Networks that predict the examples of one environment together: ARM and MTL, in training and in evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_config
from torch import Tensor, nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import as_outputs
from invbench.core.registry import METHODS
from invbench.core.task import Classification
from invbench.errors import UserError
from invbench.evaluation.metrics import outputs_of, split_metrics
from invbench.methods.arm import ARM, WithContext
from invbench.methods.mtl import MTL, WithMean
from invbench.runs.folder import RunFolder
from invbench.testing.cells import load
from invbench.training.build import build_model
from invbench.training.gradients import Objective, choose_strategy
from invbench.training.loop import TrainingLoop

E, B, C, SIZE, CLASSES = 3, 4, 2, 6, 3


def problem_of(rows: int = E * B) -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, C, SIZE, SIZE, generator=generator)
    env = torch.arange(rows) % E
    split = Split(x, torch.randint(CLASSES, (rows,), generator=generator), env)
    return Problem({"train": split, "test": split}, Classification(CLASSES), "image", "synthetic")


def network(channels: int) -> FeaturesAndHead:
    torch.manual_seed(1)
    features = nn.Sequential(nn.Flatten(), nn.Linear(channels * SIZE * SIZE, 5), nn.Tanh())
    return FeaturesAndHead(features, nn.Linear(5, CLASSES))


def batch_of(problem: Problem) -> Batch:
    train = problem.splits["train"]
    assert isinstance(train.x, Tensor)
    assert train.env is not None
    rows = torch.stack([torch.where(train.env == e)[0][:B] for e in range(E)])
    return Batch(train.x[rows], train.y[rows], torch.arange(E))


def arm(support: int = B) -> WithContext:
    method, problem = ARM(support=support), problem_of()
    assert method.inputs(problem).input_shape == (C + 1, SIZE, SIZE)
    model = method.build(network(C + 1), problem)
    assert isinstance(model, WithContext)
    return model


def test_arm_adds_the_mean_map_of_each_environment() -> None:
    model, batch = arm(), batch_of(problem_of())
    maps = model.context(batch.x.flatten(0, 1)).unflatten(0, (E, B))  # batch norm sees all of the step
    outputs = as_outputs(model(batch.x.flatten(0, 1), batch.env))
    for e in range(E):
        for i in range(B):
            channels = torch.cat([batch.x[e, i], maps[e].mean(0)])[None]
            torch.testing.assert_close(outputs.prediction[e * B + i : e * B + i + 1], model.model(channels).prediction)


def test_arms_context_network_is_domainbeds() -> None:
    sizes = [tuple(value.shape) for name, value in arm().context.named_parameters() if value.ndim == 4]
    assert sizes == [(64, C, 5, 5), (64, 64, 5, 5), (1, 64, 5, 5)]
    assert sum(value.numel() for value in arm().context.parameters()) == 64 * (25 * C + 3) + 64 * (25 * 64 + 3) + 1601


@pytest.mark.parametrize("support", [2, 5, 100])
def test_evaluation_takes_each_environment_apart(support: int) -> None:
    """Whatever order the examples are in, and in groups of the support's size."""
    problem, model = problem_of(13), arm(support).eval()
    split = problem.splits["test"]
    assert isinstance(split.x, Tensor)
    outputs = outputs_of(model, split.x, environment_rows=split.environment_rows)
    for rows in split.environment_rows:
        for index in rows.split(support):
            torch.testing.assert_close(outputs.prediction[index], model(split.x[index]).prediction)
    accuracy = (outputs.prediction.argmax(1) == split.y).double().mean().item()
    assert split_metrics(model, problem, "test")["accuracy"] == pytest.approx(accuracy)


def mtl(**settings: Any) -> WithMean:
    torch.manual_seed(2)
    model = MTL(**settings).build(network(C), problem_of())
    assert isinstance(model, WithMean)
    return model


def test_mtl_gives_the_head_the_running_mean() -> None:
    rate, model, batch = 0.7, mtl(rate=0.7), batch_of(problem_of())
    running = torch.zeros(E, 5)
    for _ in range(3):
        phi = model.network.features(batch.x.flatten(0, 1))
        outputs = as_outputs(model(batch.x.flatten(0, 1), batch.env))
        for e in range(E):
            mean = rate * phi[e * B : (e + 1) * B].mean(0) + (1 - rate) * running[e]
            both = torch.cat([phi[e * B : (e + 1) * B], mean.expand(B, -1)], 1)
            torch.testing.assert_close(outputs.prediction[e * B : (e + 1) * B], model.network.head(both))
            running[e] = mean.detach()
        torch.testing.assert_close(model.means, running)


def test_no_gradient_goes_through_earlier_means() -> None:
    rate, model, batch = 0.7, mtl(rate=0.7), batch_of(problem_of())
    model(batch.x.flatten(0, 1), batch.env)
    earlier = model.means.clone()
    loss = model(batch.x.flatten(0, 1), batch.env).prediction.square().sum()
    gradient = torch.autograd.grad(loss, model.network.features[1].weight)[0]
    phi = model.network.features(batch.x.flatten(0, 1)).unflatten(0, (E, B))
    mean = rate * phi.mean(1, keepdim=True) + (1 - rate) * earlier[:, None]
    both = torch.cat([phi, mean.expand_as(phi)], 2)
    expected = torch.autograd.grad(model.network.head(both).square().sum(), model.network.features[1].weight)[0]
    torch.testing.assert_close(gradient, expected)


def test_mtl_evaluates_by_the_mean_of_what_it_is_given() -> None:
    model = mtl().eval()
    before, x = model.means.clone(), batch_of(problem_of()).x[0]
    phi = model.network.features(x)
    both = torch.cat([phi, phi.mean(0).expand_as(phi)], 1)
    torch.testing.assert_close(model(x).prediction, model.network.head(both))
    assert torch.equal(model.means, before)


def test_mtl_as_released_is_told_noise() -> None:
    model, x = mtl(as_released=True).eval(), batch_of(problem_of()).x[0]
    torch.manual_seed(3)
    noise = torch.randn(1, B, 5)[0]
    torch.manual_seed(3)
    both = torch.cat([model.network.features(x), noise], 1)
    torch.testing.assert_close(model(x).prediction, model.network.head(both))


def test_a_single_rate_of_one_forgets_everything() -> None:
    """Then training and evaluation predict an environment alike."""
    model, batch = mtl(rate=1.0), batch_of(problem_of())
    trained = model(batch.x.flatten(0, 1), batch.env).prediction.unflatten(0, (E, B))
    torch.testing.assert_close(model.eval()(batch.x[1]).prediction, trained[1])


def test_environments_of_a_step_are_known_by_number() -> None:
    """In a step with some of the environments the means of the others stay."""
    model, batch = mtl(rate=0.5), batch_of(problem_of())
    model.means.fill_(1.0)
    model(batch.x[[2, 0]].flatten(0, 1), torch.tensor([2, 0]))
    phi = model.network.features(batch.x[2]).mean(0)
    torch.testing.assert_close(model.means[2], 0.5 * phi + 0.5)
    assert torch.equal(model.means[1], torch.ones(5))


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_single_environments_are_refused(strategy: str) -> None:
    config = small_config("mtl", "spirals", trainer__strategy=strategy)
    with pytest.raises(UserError, match=f"strategy={strategy} sees one environment at a time, but mtl couples"):
        choose_strategy(config.method, build_model(config, load(config)), config.trainer)


def test_composition_keeps_it_outermost() -> None:
    loaded = {name: METHODS.load(name)() for name in ("mtl", "selfreg", "vrex", "sam")}
    with pytest.raises(UserError, match="mtl must know environments, so it must come last: selfreg\\+mtl"):
        Composition({name: loaded[name] for name in ("mtl", "selfreg")})
    Composition({name: loaded[name] for name in ("mtl", "vrex", "sam")})
    with pytest.raises(UserError, match="mtl needs a network with one linear head, not changed by another method"):
        Composition({name: loaded[name] for name in ("selfreg", "mtl")}).build(network(C), problem_of(), 0)


def test_inner_steps_know_environments(tmp_path: Path) -> None:
    """`sam+mtl` at radius 0 is MTL: both passes have the environments' means, of which γ = 1 keeps none."""
    after = []
    for method in ("mtl", "mtl+sam"):
        settings = {"method__rate": 1.0} if method == "mtl" else {"method__mtl__rate": 1.0, "method__sam__radius": 0.0}
        config = small_config(method, "spirals", **settings)
        problem = load(config)
        training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
        for _ in range(3):
            training.step(training.next_batch())
        after.append({name: value.detach().clone() for name, value in training.parameters.items()})
    for name, value in after[0].items():
        torch.testing.assert_close(after[1][name], value, rtol=1e-5, atol=1e-7)


def test_gradient_rules_get_each_environments_gradient() -> None:
    """`mtl+and_mask` differentiates one graph once for each environment."""
    problem = problem_of()
    method = Composition({"mtl": MTL(rate=1.0), "and_mask": METHODS.load("and_mask")(threshold=0.0)})
    model = method.build(network(C), problem, 0)
    batch, parameters = batch_of(problem), dict(model.named_parameters())
    state = method.initial_state(parameters, E)
    step = Objective(method, problem.task, model, "joint").step(parameters, batch, state)
    loss = problem.task.losses(model(batch.x.flatten(0, 1), batch.env).prediction, batch.y.flatten()).mean()
    expected = torch.autograd.grad(loss, list(parameters.values()))
    for (name, gradient), g in zip(step.gradients.items(), expected, strict=True):
        torch.testing.assert_close(gradient, g, rtol=1e-4, atol=1e-6, msg=name)
