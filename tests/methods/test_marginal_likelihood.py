"""LILA's objective is a Laplace approximation of the evidence, and widths follow it."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import invbench
from invbench.components.augmentation import RandomAffine
from invbench.components.learned import LearnedScalars
from invbench.core.data import Batch, Problem, Split
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.errors import UserError
from invbench.methods.marginal_likelihood import MarginalLikelihood, WithEvidence, full_widths, hessian_root
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training.attempt import build_training
from invbench.training.build import load_problem

EXAMPLES, SIDE, CLASSES = 7, 5, 3
BODIES = {
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, CLASSES)),
    "hidden": lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE**2, 4), nn.Tanh(), nn.Linear(4, CLASSES, bias=False)),
    "convolution": lambda: nn.Sequential(nn.Conv2d(1, 2, 2, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)),
    "normalised": lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.BatchNorm2d(2, momentum=0.0),
        nn.ReLU(),
        nn.Dropout2d(0.5),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    ),
}


def network(body: nn.Module, task: Task | None = None, examples: int = EXAMPLES, **settings: Any) -> WithEvidence:
    torch.manual_seed(1)
    split = Split(torch.rand(examples, 1, SIDE, SIDE).double(), torch.arange(examples) % CLASSES)
    problem = Problem({"train": split, "test": split}, task or Classification(CLASSES), "image", "synthetic")
    model = MarginalLikelihood(generators=("rotation",), **settings).build(body, problem).double()
    assert isinstance(model, WithEvidence)
    return model


def body(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return BODIES[kind]().double()


def images(*leading: int) -> Tensor:
    return torch.rand(*leading, 1, SIDE, SIDE, dtype=torch.float64)


def test_root_of_the_hessian() -> None:
    logits = torch.randn(4, CLASSES, dtype=torch.float64)
    root = hessian_root(logits, Classification(CLASSES))
    for row, one in zip(logits, root, strict=True):
        hessian = torch.autograd.functional.hessian(lambda z: F.cross_entropy(z, torch.tensor(1)), row)
        torch.testing.assert_close(one @ one.T, hessian)
    (root,) = hessian_root(logits[:1, :1], BinaryClassification())
    p = logits[0, 0].sigmoid()
    assert (root @ root.T).item() == pytest.approx((p * (1 - p)).item())


def test_root_of_a_certain_prediction_has_a_gradient() -> None:
    logits = torch.tensor([[0.0, 1000.0]], requires_grad=True)
    hessian_root(logits, Classification(2)).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["linear", "hidden"])
def test_one_example_has_the_blocks_of_the_gauss_newton_matrix(kind: str) -> None:
    """For one example and copy a Kronecker product is no approximation of a linear layer's block."""
    plain = body(kind)
    model = network(plain, examples=1, first_precision=0.3)
    x = images(1)
    weights = dict(plain.named_parameters())
    slopes = torch.func.jacrev(lambda theta: functional_call(plain, theta, (x,))[0])(weights)
    p = plain(x)[0].softmax(0)
    hessian_of_loss = torch.diag(p) - torch.outer(p, p)
    expected = 0.3 * sum(value.square().sum() for value in weights.values())
    for name, layer in plain.named_children():
        own = [slopes[f"{name}.{part}"].flatten(1) for part, _ in layer.named_parameters()]
        if own:
            jacobian = torch.cat(own, 1)
            hessian = jacobian.T @ hessian_of_loss @ jacobian
            expected = expected + torch.logdet(torch.eye(len(hessian)).double() + hessian / 0.3)
    torch.testing.assert_close(model.occam_factor(x[None]), expected / 2)


@pytest.mark.parametrize("kind", ["hidden", "convolution"])
def test_the_log_determinant_is_that_of_naive_kronecker_factors(kind: str) -> None:
    """Autograd, example by example and copy by copy; the determinants are of whole matrices."""
    plain = body(kind)
    model = network(plain, first_precision=0.7)
    copies = images(3, EXAMPLES)
    expected = 0.7 * sum(value.square().sum() for value in plain.parameters())
    mean = plain(copies.flatten(0, 1)).unflatten(0, (3, EXAMPLES)).mean(0)
    inputs, slopes = naive_inputs_and_slopes(plain, copies)
    for layer, given in inputs.items():
        a, b = given.new_zeros(()), given.new_zeros(())
        for n in range(EXAMPLES):
            p = mean[n].softmax(0)
            places = given[:, n].mean(0).T  # (T, I)
            outgoing = slopes[layer][:, n].mean(0).permute(2, 0, 1)  # (T, K, O)
            a = a + sum(torch.outer(place, place) for place in places) / EXAMPLES
            b = b + sum(g.T @ (torch.diag(p) - torch.outer(p, p)) @ g for g in outgoing) / EXAMPLES / len(places)
        matrix = EXAMPLES * torch.kron(b, a) / 0.7
        expected = expected + torch.logdet(torch.eye(len(matrix)).double() + matrix)
    torch.testing.assert_close(model.occam_factor(copies), expected / (2 * EXAMPLES))


def naive_inputs_and_slopes(
    plain: nn.Sequential, copies: Tensor
) -> tuple[dict[nn.Module, Tensor], dict[nn.Module, Tensor]]:
    """Return inputs (J, M, I, T), with ones for biases, and slopes (J, M, K, O, T) of each layer."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    slopes: dict[nn.Module, list[Tensor]] = {}
    for x in copies.flatten(0, 1):
        value, returned = x[None], {}
        for layer in plain:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                given = (
                    F.unfold(value, layer.kernel_size, stride=layer.stride) if isinstance(layer, nn.Conv2d) else value
                )
                given = given[..., None] if given.ndim == 2 else given
                ones = [] if layer.bias is None else [torch.ones_like(given[:, :1])]
                inputs.setdefault(layer, []).append(torch.cat([given, *ones], 1)[0].detach())
                value = returned[layer] = layer(value)
            else:
                value = layer(value)
        for layer, output in returned.items():
            rows = [torch.autograd.grad(z, output, retain_graph=True)[0][0] for z in value[0]]
            slopes.setdefault(layer, []).append(
                torch.stack([row.flatten(1) if row.ndim > 1 else row[:, None] for row in rows])
            )
    size = copies.shape[:2]
    return (
        {layer: torch.stack(each).unflatten(0, size) for layer, each in inputs.items()},
        {layer: torch.stack(each).unflatten(0, size) for layer, each in slopes.items()},
    )


@pytest.mark.parametrize("kind", BODIES)
def test_what_each_number_follows(kind: str) -> None:
    """Weights: loss and prior. Widths and precisions: all of -log Z / N, as finite differences have it."""
    model = network(body(kind), train_copies=4, first_width=0.6, first_precision=0.5)
    layer = model.transformation
    assert isinstance(layer, RandomAffine)
    assert isinstance(layer.widths, LearnedScalars)
    x, y = images(EXAMPLES), torch.arange(EXAMPLES) % CLASSES

    def parts() -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        outputs = model.train()(x)
        batch = Batch(x[None], y[None], torch.zeros(1))
        return F.cross_entropy(outputs.prediction, y), model.settings.penalty(batch.x, outputs, batch, {})[0]

    risk, penalty = parts()
    weights = dict(model.model.named_parameters())
    own = [p for name in model.layers for p in model.model.get_submodule(name).parameters()]
    prior = 0.5 * sum(value.square().sum() for value in own) / (2 * EXAMPLES)
    ours = torch.autograd.grad(risk + penalty, list(weights.values()), retain_graph=True)
    theirs = torch.autograd.grad(risk + prior, list(weights.values()), retain_graph=True)
    torch.testing.assert_close(ours, theirs)
    for raw in (layer.widths.raw, model.precisions.raw):
        (gradient,) = torch.autograd.grad(risk + penalty, raw, retain_graph=True)
        for index in range(len(raw)):
            values = []
            for step in (1e-6, -2e-6):
                raw.data[index] += step
                values.append(torch.stack(parts()).sum().item())
            raw.data[index] += 1e-6
            assert gradient[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-7)


def test_the_evidence_of_a_logistic_regression_is_its_integral() -> None:
    """One weight, one input: the objective at the mode is -log ∫ p(data | w) p(w) dw / N."""
    labels, precision = torch.tensor([1.0] * 30 + [0.0] * 10).double(), 0.8
    pixel = torch.zeros(1, SIDE, SIDE).double()
    pixel[0, 2, 2] = 1
    layer = nn.Linear(SIDE**2, 1, bias=False).double()
    split = Split(pixel.expand(40, 1, SIDE, SIDE), labels)
    problem = Problem({"train": split, "test": split}, BinaryClassification(), "image", "synthetic")
    method = MarginalLikelihood(generators=("rotation",), first_precision=precision, train_copies=0)
    model = method.build(nn.Sequential(nn.Flatten(), layer), problem).double()
    w = torch.linspace(-10, 10, 20001).double()
    exponents = 30 * F.logsigmoid(w) + 10 * F.logsigmoid(-w) - precision * w.square() / 2
    integral = exponents.logsumexp(0) + math.log(1e-3) + 0.5 * math.log(precision / (2 * math.pi))
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 12] = w[exponents.argmax()]
    outputs = model.train()(split.x)
    loss = F.binary_cross_entropy_with_logits(outputs.prediction[:, 0], labels)
    assert -40 * (loss + outputs.learned["occam_factor"]).item() == pytest.approx(integral.item(), abs=0.02)


def test_widths_turn_back_at_zero_and_at_half_a_turn() -> None:
    theta = torch.tensor([0.0, -0.5, math.pi + 0.5, 4.0], requires_grad=True)
    widths = full_widths(theta, (math.pi, math.pi, math.pi, math.inf))
    torch.testing.assert_close(widths, torch.tensor([0.0, 1.0, 2 * math.pi - 1, 8.0]))
    (gradient,) = torch.autograd.grad(widths.sum(), theta)
    assert gradient.tolist() == [2, -2, -2, 2]


def test_the_network_stays_as_it_was() -> None:
    """What the factors need, evaluation and hooks, is undone; running means move by one forward pass."""
    plain = body("normalised")
    model = network(plain).train()
    model(images(4))
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks for part in model.modules())
    assert plain[1].num_batches_tracked == 1
    assert "occam_factor" not in model.eval()(images(4)).learned


def test_the_last_layer_alone() -> None:
    plain = body("hidden")
    model = network(plain, curvature="last_layer")
    assert model.layers == ["3"]
    model.occam_factor(images(2, 4)).backward()
    weights = dict(plain.named_parameters())
    assert weights["1.weight"].grad is None
    torch.testing.assert_close(weights["3.weight"].grad, weights["3.weight"].detach() / EXAMPLES)


def test_networks_without_such_layers_are_refused() -> None:
    with pytest.raises(UserError, match="needs linear layers or convolutions"):
        network(nn.Flatten())


@pytest.mark.parametrize("other", ["insta_aug", "partial_steerable"])
def test_networks_whose_layers_see_copies_are_refused_ahead_of_training(other: str) -> None:
    config = resolve(f"{other}+marginal_likelihood", "sixes", 0, {"trainer.steps": 1})
    problem = load_problem(config)
    with pytest.raises(UserError, match="use one of the methods at a time"):
        build_training(config, problem, RunFolder(Path()), torch.device("cpu"), "", Options("cpu", Path()))


@pytest.mark.slow
def test_no_width_where_a_turn_changes_the_class(tmp_path: Path) -> None:
    """docs/examples/which_symmetry.py, which is tested, shows that it finds the width of turned digits."""
    record = invbench.run("marginal_likelihood", "sixes", settings={"dataset.max_rotation": 0.0}, out=tmp_path)
    assert record.metrics["symmetry_error"] < 0.1
