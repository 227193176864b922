"""Methods with a second body: MIRO, whose one stays as it was at first, and ADRMX, whose one tells environments."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cells import load, small_config
from torch import Tensor, nn

import invbench
from invbench.components.draws import of_examples
from invbench.core.backbone import FeaturesAndHead, features_rates
from invbench.core.registry import BACKBONES
from invbench.errors import UserError
from invbench.methods.adrmx import ADRMX, contrast, remix_loss
from invbench.methods.miro import MIRO, Guided, parts_of, recorded
from invbench.runs.folder import RunFolder
from invbench.system.workarounds import torchvision
from invbench.testing.cells import objective_of
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop

MLP: dict[str, Any] = {"backbone__name": "mlp", "backbone__depth": 2, "backbone__width": 6}


def leaves(model: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def moved(model: nn.Module) -> None:
    """Change the weights that are trained, so that they are not the first ones."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in leaves(model).values():
            value += 0.1 * torch.randn(value.shape, generator=generator, dtype=value.dtype)


# --- MIRO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["joint", "loop", "vmap"])
def test_miro_is_the_divergence_of_every_layer(strategy: Any) -> None:
    config = small_config("miro", "spirals", method__weight=0.7, method__variance=0.3, **MLP)
    objective, _, batch, state = objective_of(config, strategy)
    model: Any = objective.model.double()
    moved(model)
    parameters = leaves(model)
    step = objective.step(parameters, batch, state)

    linear = [layer for layer in model.network.features if isinstance(layer, nn.Linear)]
    first = [layer for layer in model.first if isinstance(layer, nn.Linear)]
    assert len(linear) == len(model.variances) == 2
    expected = torch.zeros((), dtype=torch.float64)
    for e in range(len(batch.env)):
        for x, y in zip(batch.x[e], batch.y[e], strict=True):
            h = h0 = x
            for layer, old, b in zip(linear, first, model.variances, strict=True):
                h, h0 = layer(h), old(h0)
                variance = torch.log(1 + b.exp()) + 1e-5
                terms = [(a - c) ** 2 / v + v.log() for a, c, v in zip(h, h0, variance, strict=True)]
                expected = expected + 0.7 * sum(terms) / len(terms) / 2 / batch.y.numel()
                h, h0 = (torch.where(part > 0, part, 0.01 * part) for part in (h, h0))
            risk = F.binary_cross_entropy_with_logits(model.network.head(h)[0], y.double())
            expected = expected + risk / batch.y.numel()
    torch.testing.assert_close(step.objective, expected, rtol=1e-10, atol=1e-12)
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    for (name, _), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-8, atol=1e-12, msg=name)


def test_miro_begins_with_the_variance_alone() -> None:
    """With the first weights every difference is 0, so each layer's term is half the log of the variance."""
    objective, parameters, batch, state = objective_of(small_config("miro", "spirals", **MLP), "joint")
    step = objective.step(parameters, batch, state)
    assert step.penalty.item() == pytest.approx(0.1 * 2 * math.log(0.1) / 2, rel=1e-6)


def test_the_first_weights_stay_and_variances_learn_faster(tmp_path: Any) -> None:
    settings = {"trainer__optimizer": "sgd", "trainer__momentum": 0.0, "trainer__schedule": "constant"}
    config = small_config("miro", "spirals", method__weight=2.0, **MLP, **settings)
    problem = load(config)
    training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
    model: Any = training.model
    kept = {name: value.clone() for name, value in model.first.state_dict().items()}
    before = model.variances[0].detach().clone()
    training.step(training.next_batch())
    # ∂/∂b of λ mean(log σ²) / 2, at difference 0: λ σ'(b) / (2 σ² n) for each of n channels
    variance = F.softplus(before) + 1e-5
    slope = 2.0 * torch.sigmoid(before) / (2 * variance) / before.numel()
    rate = 10 * config.trainer.learning_rate
    decay = config.trainer.weight_decay * before
    torch.testing.assert_close(model.variances[0].detach(), before - rate * (slope + decay), rtol=1e-4, atol=1e-6)
    training.step(training.next_batch())
    for name, value in model.first.state_dict().items():
        assert torch.equal(value, kept[name])
    assert not torch.equal(model.network.features.state_dict()["1.weight"], kept["1.weight"])


def test_without_weight_miro_is_erm(tmp_path: Any) -> None:
    weights = []
    for method, values in (("erm", {}), ("miro", {"method__weight": 0.0})):
        config = small_config(method, "spirals", **MLP, **values)
        problem = load(config)
        training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
        for _ in range(5):
            training.step(training.next_batch())
        weights.append({name.removeprefix("network."): value for name, value in training.model.state_dict().items()})
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-5, atol=1e-7)


def test_layers_that_are_named_and_parts_of_pretrained_networks() -> None:
    problem = load(small_config("erm", "colored_digits"))
    network: Any = BACKBONES.load("torchvision").parse({"model": "resnet18"}, "backbone").build(problem)
    parts = parts_of(network.features)
    assert parts == tuple(f"network.{name}" for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4"))
    x = problem.splits["train"].x[:2]
    guided = Guided(network, ("network.layer1", "network.layer4"), x, 0.1)
    assert [tuple(b.shape) for b in guided.variances] == [(64, 1, 1), (512, 1, 1)]
    with recorded(guided.network.features, guided.layers) as values:
        guided.eval()(x)
    assert all(len(value) == 2 for value in values.values())
    assert not any(module._forward_hooks for module in guided.modules())
    assert not guided.train().first.training


@pytest.mark.parametrize(
    ("layers", "words"),
    [(["nothing"], "the body has no module 'nothing'"), (["0", "7"], "the body has no module '7'")],
)
def test_layers_that_are_not_there(layers: list[str], words: str) -> None:
    config = small_config("miro", "spirals", method__layers=layers, **MLP)
    with pytest.raises(UserError, match=words):
        build_model(config, load(config))


def test_a_network_that_another_method_changed_is_refused() -> None:
    for name in ("miro", "adrmx"):
        config = small_config(f"augerino+{name}", "colored_digits")
        with pytest.raises(UserError, match=f"{name} needs a network with one linear head"):
            build_model(config, load(config))


@pytest.mark.parametrize("method", ["miro+arm", "miro+urm", "urm+miro", "miro+swad"])
def test_miro_beside_methods_that_change_the_network(method: str, tmp_path: Any) -> None:
    settings = {"trainer.epochs": None, "trainer.steps": 4, "trainer.batch_size": 4}
    assert invbench.run(method, "colored_digits", settings=settings, out=tmp_path).status == "done"


def test_modules_in_lists_are_parts() -> None:
    body = nn.Sequential(nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.ModuleList([nn.Linear(2, 2)])}), nn.Linear(2, 2))
    assert parts_of(body) == ("0.a", "0.b.0", "1")


def test_a_body_that_is_not_trained_is_refused() -> None:
    problem = load(small_config("erm", "colored_digits"))
    frozen: Any = BACKBONES.load("torchvision").parse({"model": "resnet18", "freeze": True}, "backbone").build(problem)
    with pytest.raises(UserError, match=r"it is not trained; leave out backbone\.freeze"):
        MIRO().build(frozen, problem)
    with pytest.raises(UserError, match=r"trains a second body .*; leave out backbone\.freeze"):
        ADRMX().build_of_two(frozen, frozen, problem)


@pytest.mark.parametrize(("model", "shape"), [("swin_t", (1, 1, 96)), ("convnext_tiny", (96, 1, 1))])
def test_variances_are_those_of_channels(model: str, shape: tuple[int, ...]) -> None:
    body: nn.Module = torchvision().models.get_model(model).features
    guided = Guided(FeaturesAndHead(body, nn.Linear(768, 2)), ["1"], torch.zeros(2, 3, 64, 64), 0.1)
    assert [tuple(b.shape) for b in guided.variances] == [shape]


# --- ADRMX -----------------------------------------------------------------------------------------------------------


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second) / (first.norm().clamp(min=1e-12) * second.norm().clamp(min=1e-12))


def contrast_by_loops(phi: Tensor, label: Tensor, temperature: float) -> Tensor:
    each = []
    for i in range(len(phi)):
        others = [j for j in range(len(phi)) if j != i]
        total = sum(torch.exp(cosine(phi[i], phi[k]) / temperature) for k in others)
        alike = [j for j in others if label[j] == label[i]]
        if alike:
            logs = [torch.log(torch.exp(cosine(phi[i], phi[j]) / temperature) / total) for j in alike]
            each.append(-sum(logs) / len(alike))
    return sum(each, torch.zeros((), dtype=phi.dtype)) / max(len(each), 1)


@pytest.mark.parametrize(
    "label", [[0, 0, 1, 1, 2, 0], [0, 1, 2, 3, 4, 5], [1, 1, 1, 1, 1, 1]], ids=["mixed", "all alone", "one class"]
)
def test_contrast(label: list[int]) -> None:
    phi = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    value = contrast(phi, torch.tensor(label), 0.3)
    expected = contrast_by_loops(phi, torch.tensor(label), 0.3)
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    (gradient,) = torch.autograd.grad(value, phi)
    assert torch.isfinite(gradient).all()
    if expected.requires_grad:
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, phi)[0], rtol=1e-9, atol=1e-12)


def test_remixed_pairs_are_of_one_class_and_two_environments() -> None:
    """A class that only one environment has, and one that none has, count as 0."""
    generator = torch.Generator().manual_seed(1)
    phi, g = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    head = torch.randn(4, 3, generator=generator, dtype=torch.float64), torch.randn(4, generator=generator).double()
    label, environment = torch.tensor([0, 0, 1, 1, 0, 2]), torch.tensor([0, 1, 0, 0, 1, 1])
    keys = [torch.tensor([0.5, 0.2, 0.9, 0.1, 0.4, 0.3]), torch.tensor([0.9, 0.1, 0.2, 0.3, 0.7, 0.5])]
    # Class 0: the first is example 0, of environment 0; of 1 and 4 in environment 1 the larger key is that of 4.
    logits = head[0] @ (phi[0] + g[4]) + head[1]
    expected = -logits.log_softmax(0)[0] / 4
    torch.testing.assert_close(remix_loss(phi, g, head, label, environment, keys), expected)


@pytest.mark.parametrize("dataset", ["colored_digits", "digits"])
def test_adrmx_is_the_sum_of_its_terms(dataset: str) -> None:
    values = {"environment": 0.9, "remix": 0.8, "contrast": 0.7, "critic": 0.6}
    weights = {f"method__{name}_weight": value for name, value in values.items()}
    more = {"dataset__environments": "rotation_bins"} if dataset == "digits" else {}
    config = small_config("adrmx", dataset, **MLP, **more, **weights)
    objective, _, batch, state = objective_of(config, "joint")
    model: Any = objective.model
    parameters = leaves(model)
    step = objective.step(parameters, batch, state)

    x, y = batch.x.flatten(0, 1), batch.y.flatten().long()
    e = torch.repeat_interleave(batch.env, batch.y.shape[1])
    outputs = model(x)
    f, g = outputs.representation, outputs.further["second"]
    phi = f - g

    def loss(logits: Tensor, label: Tensor) -> Tensor:
        logits = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
        return -logits.log_softmax(1)[torch.arange(len(label)), label].mean()

    keys = [of_examples(state["adrmx"], purpose, batch.env, batch.y.shape[1], f).flatten() for purpose in (0, 1)]
    classes, remixed = max(model.network.head.out_features, 2), 0.0
    for c in range(classes):
        of_class = [i for i in range(len(y)) if y[i] == c]
        i = max(of_class, key=lambda row: keys[0][row].item(), default=None)
        others = [j for j in of_class if e[j] != e[i]]
        if others:
            j = max(others, key=lambda row: keys[1][row].item())
            remixed = remixed + loss(model.network.head(phi[[i]] + g[[j]]), torch.tensor([c])) / classes
    critic = next(iter(objective.critics.values())).module
    expected = loss(model.network.head(f), y) + loss(model.of_difference(phi), y) + 0.9 * loss(model.of_second(g), e)
    expected = expected + 0.8 * remixed - 0.6 * loss(critic(phi), e)
    expected = expected + 0.7 * (contrast_by_loops(f, y, 0.07) + contrast_by_loops(phi, y, 0.07))
    torch.testing.assert_close(step.objective, expected, rtol=1e-9, atol=1e-10)
    gradients = torch.autograd.grad(expected, list(parameters.values()))
    for (name, _), gradient in zip(parameters.items(), gradients, strict=True):
        torch.testing.assert_close(step.gradients[name], gradient, rtol=1e-7, atol=1e-10, msg=name)


def test_the_second_body_learns_as_slowly_as_the_first() -> None:
    problem = load(small_config("erm", "colored_digits"))
    slow: Any = [
        BACKBONES.load("torchvision").parse({"model": "resnet18", "body_learning_rate": 0.1}, "backbone").build(problem)
        for _ in range(2)
    ]
    model = ADRMX().build_of_two(*slow, problem)
    rates = features_rates(model)
    assert {name.split(".")[0] for name in rates} == {"network", "second"}
    assert set(rates) == {name for name, _ in model.named_parameters() if ".features." in name}


def test_the_second_body_is_drawn_apart() -> None:
    config = small_config("adrmx", "spirals", **MLP)
    model: Any = build_model(config, load(config))
    plain: Any = build_model(small_config("erm", "spirals", **MLP), load(config))
    weights = [body[1].weight for body in (model.network.features, plain.features, model.second.features)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    again: Any = build_model(config, load(config))
    assert torch.equal(again.second.features[1].weight, weights[2])
    with pytest.raises(TypeError, match="built of two backbones"):
        ADRMX().build(plain, load(config))
