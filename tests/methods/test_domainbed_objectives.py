"""EQRM, TRM, SelfReg, SagNet, DANN and URM against loops over environments and examples."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
import torch.nn.functional as F
from cells import small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invbench.components.draws import of_examples, partners, uniform
from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs, State
from invbench.core.registry import METHODS
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.methods.dann import DANN, Discriminator
from invbench.methods.eqrm import EQRM, kernel_quantile
from invbench.methods.sagnet import SagNet
from invbench.methods.selfreg import SelfReg
from invbench.methods.trm import TRM
from invbench.methods.urm import URM
from invbench.runs.folder import RunFolder
from invbench.testing.cells import load
from invbench.training.build import build_model
from invbench.training.gradients import Objective
from invbench.training.loop import TrainingLoop

E, B, D, WIDTH, CLASSES = 3, 6, 4, 5, 3
TASKS: dict[str, Task] = {"logistic": BinaryClassification(), "three classes": Classification(CLASSES)}
RISKS = st.lists(st.floats(0.01, 5), min_size=2, max_size=8)


def batch_of(task: Task, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(E, B, D, generator=generator, dtype=torch.float64)
    y = torch.randint(2 if task.outputs == 1 else CLASSES, (E, B), generator=generator)
    return Batch(x, y.double() if task.outputs == 1 else y, torch.arange(E))


def network(task: Task) -> FeaturesAndHead:
    torch.manual_seed(0)
    return FeaturesAndHead(nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh()), nn.Linear(WIDTH, task.outputs)).double()


def problem_of(task: Task) -> Problem:
    batch = batch_of(task)
    split = Split(batch.x.flatten(0, 1), batch.y.flatten(), torch.arange(E).repeat_interleave(B))
    return Problem({"train": split, "test": split}, task, "vector", "synthetic")


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Compute each loss, of logits of all classes or one."""
    if logits.shape[-1] == 1:
        return F.binary_cross_entropy_with_logits(logits[..., 0], y, reduction="none")
    return F.cross_entropy(logits, y, reduction="none")


# --- EQRM ------------------------------------------------------------------------------------------------------------


def root(risks: np.ndarray, alpha: float) -> float:
    """Find the quantile of the kernel estimate."""
    width = 1.06 * risks.std(ddof=1) * len(risks) ** -0.2
    excess = lambda t: scipy.stats.norm.cdf((t - risks) / width).mean() - alpha  # noqa: E731
    return float(scipy.optimize.brentq(excess, risks.min() - 10 * width, risks.max() + 10 * width, xtol=1e-14))


@settings(max_examples=60, deadline=None)
@given(RISKS, st.floats(0.02, 0.98))
def test_the_quantile_is_that_of_the_kernel_estimate(values: list[float], alpha: float) -> None:
    risks = np.array(values)
    if risks.std() < 1e-3:
        return
    quantile = kernel_quantile(torch.tensor(values, dtype=torch.float64), alpha).item()
    assert quantile == pytest.approx(root(risks, alpha), rel=1e-9, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(RISKS, st.floats(0.1, 0.95))
def test_its_gradient_is_that_of_finite_differences(values: list[float], alpha: float) -> None:
    risks = np.array(values)
    if risks.std() < 1e-2:
        return
    leaf = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    gradient = torch.autograd.grad(kernel_quantile(leaf, alpha), leaf)[0].numpy()
    small = 1e-5 * np.eye(len(risks))
    expected = [(root(risks + d, alpha) - root(risks - d, alpha)) / 2e-5 for d in small]
    np.testing.assert_allclose(gradient, expected, atol=2e-5)
    assert gradient.sum() == pytest.approx(1.0), "risks that all rise by one raise their quantile by one"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 0.7, 1e4])
def test_equal_risks_are_their_own_quantile(dtype: torch.dtype, level: float) -> None:
    leaf = torch.full((4,), level, dtype=dtype, requires_grad=True)
    quantile = kernel_quantile(leaf, 0.75)
    assert quantile.item() == pytest.approx(level, rel=1e-6, abs=1e-6)
    gradient = torch.autograd.grad(quantile, leaf)[0]
    torch.testing.assert_close(gradient, torch.full((4,), 0.25, dtype=dtype), rtol=1e-3, atol=1e-3)


def test_a_quantile_near_one_is_the_worst_case() -> None:
    risks = torch.tensor([0.3, 1.7, 0.9], dtype=torch.float64, requires_grad=True)
    state = {"step": torch.tensor(0)}
    method = EQRM(quantile=1 - 1e-9, burn_in=0, estimate="empirical")
    value, _ = method.risk(risks, torch.arange(3), state)
    assert value.item() == pytest.approx(1.7)
    np.testing.assert_allclose(torch.autograd.grad(value, risks)[0], [0, 1, 0], atol=1e-8)


@given(RISKS, st.floats(0.01, 0.99))
def test_the_empirical_quantile_is_numpys(values: list[float], alpha: float) -> None:
    method = EQRM(quantile=alpha, burn_in=0, estimate="empirical")
    risks = torch.tensor(values, dtype=torch.float64)
    value, _ = method.risk(risks, torch.arange(len(values)), {"step": torch.tensor(0)})
    assert value.item() == pytest.approx(np.quantile(values, alpha))


def test_eqrm_begins_as_erm_and_goes_on_with_another_rate(tmp_path: Path) -> None:
    """By torch's Adam: two steps of the mean, then an Adam that starts afresh, of the quantile."""
    given_settings = {"method__burn_in": 2, "method__learning_rate_after": 0.01, "trainer__optimizer": "adam"}
    config = small_config("eqrm", "spirals", trainer__dtype="float64", trainer__schedule="constant", **given_settings)
    problem = load(config, torch.float64)
    model = build_model(config, problem).double()
    training = TrainingLoop(config, problem, model, RunFolder(tmp_path), "", 0)
    ours = {name: value.detach().clone().requires_grad_() for name, value in training.parameters.items()}
    trainer = config.trainer
    options = {"betas": trainer.betas, "eps": trainer.epsilon, "weight_decay": trainer.weight_decay}
    rates = (trainer.learning_rate, 0.01)
    optimizers = [torch.optim.Adam(list(ours.values()), lr=rate, **options) for rate in rates]
    for number in range(5):
        batch = training.next_batch()
        prediction = torch.func.functional_call(model, ours, (batch.x.flatten(0, 1),)).prediction
        risks = problem.task.losses(prediction.unflatten(0, batch.y.shape), batch.y).mean(1)
        objective = risks.mean() if number < 2 else kernel_quantile(risks, config.method.parts["eqrm"].quantile)
        for value, g in zip(ours.values(), torch.autograd.grad(objective, list(ours.values())), strict=True):
            value.grad = g
        optimizers[number >= 2].step()
        training.step(batch)
        for name, value in ours.items():
            torch.testing.assert_close(training.parameters[name], value, rtol=1e-6, atol=1e-8, msg=f"{name} {number}")


# --- TRM -------------------------------------------------------------------------------------------------------------


def naive_trm(
    phi: Tensor, y: Tensor, heads: list[nn.Linear], shares: Tensor, follow: float, grow: float
) -> tuple[Tensor, Tensor]:
    """Compute penalty and new shares, with Hessians by autograd; heads have been fitted."""
    terms, after = [], shares.clone()
    for q in range(E):
        risk_of = lambda weight, e, bias=heads[q].bias: cross_entropy(F.linear(phi[e], weight, bias), y[e]).mean()  # noqa: E731
        weight = heads[q].weight
        crossed = {p: risk_of(weight, p) for p in range(E) if p != q}
        loss = sum((shares[q, p] * crossed[p] for p in crossed), torch.zeros(()))
        slope = torch.autograd.grad(loss, weight, create_graph=True)[0].detach()
        hessian = torch.autograd.functional.hessian(lambda w, q=q, f=risk_of: f(w, q), weight.detach())
        matrix = hessian.reshape(weight.numel(), -1).detach()
        term, total = slope.flatten(), slope.flatten().clone()
        for _ in range(10):
            term = term - matrix @ term
            total = total + term
            if total.abs().max() > 10:
                break
        own = torch.autograd.grad(risk_of(weight, q), weight, create_graph=True)[0]
        terms.append(loss - follow * (total.view_as(own) * own).sum())
        for p, risk in crossed.items():
            after[q, p] = shares[q, p] * math.exp(grow * risk.item())
    return torch.stack(terms).mean(), after.detach()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("rate", [0.1, 3.0])
def test_trm_step_by_step(task: str, rate: float) -> None:
    """Heads and shares last from step to step; the penalty's gradient treats them as constants."""
    of, model = TASKS[task], network(TASKS[task])
    method = Composition({"trm": TRM(warm_up=1, inner_steps=4, head_rate=rate, follow_weight=0.3, group_rate=0.5)})
    state = method.initial_state(dict(model.named_parameters()), E)
    heads = [nn.Linear(WIDTH, of.outputs).double() for _ in range(E)]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    shares = torch.ones(E, E, dtype=torch.float64) - torch.eye(E)
    for number in range(4):
        batch, parameters = batch_of(of, number), dict(model.named_parameters())
        phi = model.features(batch.x.flatten(0, 1)).unflatten(0, (E, B))
        risk = (
            cross_entropy(model.head(phi), batch.y).mean()
            if of.outputs == 1
            else F.cross_entropy(model.head(phi).flatten(0, 1), batch.y.flatten())
        )
        penalty = torch.zeros((), dtype=torch.float64)
        if number >= 1:
            for e, head in enumerate(heads):
                optimizer = torch.optim.SGD(head.parameters(), lr=rate)
                for _ in range(4):
                    optimizer.zero_grad()
                    cross_entropy(head(phi[e].detach()), batch.y[e]).mean().backward()
                    optimizer.step()
            shares = shares / shares.sum(1, keepdim=True)
            penalty, shares = naive_trm(phi, batch.y, heads, shares, 0.3, 0.5)
        step = Objective(method, of, model, "joint").step(parameters, batch, state)
        assert step.penalty.item() == pytest.approx(penalty.item(), rel=1e-9)
        expected = torch.autograd.grad(risk + penalty, list(parameters.values()))
        for (name, gradient), g in zip(step.gradients.items(), expected, strict=True):
            torch.testing.assert_close(gradient, g, rtol=1e-8, atol=1e-10, msg=name)
        state = method.advance(step.state)
        kept = state["trm"]["shares"]
        torch.testing.assert_close(kept / kept.sum(1, keepdim=True), shares / shares.sum(1, keepdim=True))
    torch.testing.assert_close(state["trm"]["weights"], torch.stack([head.weight for head in heads]).detach())


def test_trm_with_some_of_the_environments_leaves_the_others() -> None:
    task = Classification(CLASSES)
    model, method = network(task), Composition({"trm": TRM(warm_up=0, inner_steps=2)})
    parameters = dict(model.named_parameters())
    objective = Objective(method, task, model, "joint")
    state = objective.step(parameters, batch_of(task), method.initial_state(parameters, E)).state
    some = batch_of(task, 1).environments(slice(1, 3))
    after = objective.step(parameters, some, state).state["trm"]
    before = state["trm"]
    assert torch.equal(after["weights"][0], before["weights"][0])
    assert torch.equal(after["shares"][0], before["shares"][0])
    assert not torch.equal(after["weights"][1], before["weights"][1])


# --- SelfReg ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_selfreg_pulls_classes_together(task: str, scale: float) -> None:
    of = TASKS[task]
    method = Composition({"selfreg": SelfReg()})
    model = method.build(network(of), problem_of(of), 0).double()
    batch, parameters = batch_of(of), dict(model.named_parameters())
    with torch.no_grad():
        parameters["model.head.weight"] *= scale  # risks above 1
    state = method.initial_state(parameters, E, seed=3)
    outputs = model(batch.x.flatten(0, 1))
    z, phi, projection = outputs.prediction, outputs.representation, outputs.further["projection"]
    label, draws = batch.y.flatten().long(), state["selfreg"]
    first, second = (partners(of_examples(draws, k, batch.env, B, z).flatten(), label) for k in (0, 1))
    share = math.sin(math.pi / 2 * uniform(draws, 2, like=z).item()) ** 2
    assert torch.equal(label[first], label)
    individual, heterogeneous = [], []
    for i in range(E * B):
        j, k = int(first[i]), int(second[i])
        mixed = share * z[j] + (1 - share) * z[k], share * projection[j] + (1 - share) * projection[k]
        individual.append(F.mse_loss(z[i], z[j]) + 0.3 * F.mse_loss(phi[i], projection[j]))
        heterogeneous.append(F.mse_loss(z[i], mixed[0]) + 0.3 * F.mse_loss(phi[i], mixed[1]))
    risk = of.losses(z, batch.y.flatten()).mean()
    terms = share * torch.stack(individual).mean() + (1 - share) * torch.stack(heterogeneous).mean()
    penalty = min(risk.item(), 1.0) * terms
    step = Objective(method, of, model, "joint").step(parameters, batch, state)
    assert step.penalty.item() == pytest.approx(penalty.item(), rel=1e-9)
    expected = torch.autograd.grad(risk + penalty, list(parameters.values()))
    for (name, gradient), g in zip(step.gradients.items(), expected, strict=True):
        torch.testing.assert_close(gradient, g, rtol=1e-8, atol=1e-10, msg=name)


def test_selfregs_share_has_the_beta_distribution() -> None:
    shares = [
        math.sin(
            math.pi / 2 * uniform({"draws": torch.tensor([1]), "step": torch.tensor(t)}, 2, like=torch.zeros(1)).item()
        )
        ** 2
        for t in range(2000)
    ]
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.5, 0.5).cdf).pvalue > 1e-3


def test_selfregs_projection_is_domainbeds() -> None:
    model = SelfReg().build(network(Classification(CLASSES)), problem_of(Classification(CLASSES)))
    sizes = [tuple(layer.weight.shape) for layer in model.projection if isinstance(layer, nn.Linear)]
    assert sizes == [(2 * WIDTH, WIDTH), (2 * WIDTH, 2 * WIDTH), (WIDTH, 2 * WIDTH)]
    assert [type(layer).__name__ for layer in model.projection][-1] == "BatchNorm1d"


# --- second players --------------------------------------------------------------------------------------------------


def outputs_of(batch: Batch, model: FeaturesAndHead) -> Outputs:
    outputs: Outputs = model(batch.x.flatten(0, 1))
    return outputs.map(lambda part: part.unflatten(0, (E, B)))


def state_of(name: str, seed: int = 0) -> State:
    method = Composition({name: METHODS.load(name)()})
    return dict(method.initial_state({"w": torch.zeros(1)}, E, seed)[name])


def style_parts(phi: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, variance = phi.mean(), phi.var()
    return (phi - mean) / (variance + 1e-5).sqrt(), mean, variance


def other_of(purpose: int, state: State) -> list[int]:
    keys = of_examples(state, purpose, torch.arange(E), B, torch.zeros((), dtype=torch.float64))
    return partners(keys.flatten()).tolist()


@pytest.mark.parametrize("task", TASKS)
def test_sagnet_changes_style_and_content(task: str) -> None:
    of = TASKS[task]
    batch, model, method, state = batch_of(of), network(of), SagNet(weight=0.7), state_of("sagnet")
    outputs = outputs_of(batch, model)
    phi = outputs.representation
    assert phi is not None
    rows = list(phi.flatten(0, 1))
    alpha = of_examples(state, 0, batch.env, B, phi).flatten()
    changed = []
    for i, j in enumerate(other_of(1, state)):
        (content, mean, variance), (_, mean_j, variance_j) = style_parts(rows[i]), style_parts(rows[j])
        mixed = alpha[i] * mean + (1 - alpha[i]) * mean_j, alpha[i] * variance + (1 - alpha[i]) * variance_j
        changed.append(content * (mixed[1] + 1e-5).sqrt() + mixed[0])
    ours = method.features(phi, model.head, batch, state)
    torch.testing.assert_close(ours.flatten(0, 1), torch.stack(changed))
    style = nn.Linear(WIDTH, of.outputs).double()
    for purpose, what in ((2, "loss"), (3, "penalty")):
        changed = []
        for i, j in enumerate(other_of(purpose, state)):
            (_, mean, variance), (content, _, _) = style_parts(rows[i]), style_parts(rows[j])
            changed.append(content.detach() * (variance + 1e-5).sqrt() + mean)
        logits = style(torch.stack(changed))
        if what == "loss":
            expected = cross_entropy(logits, batch.y.flatten()).mean()
            value, _ = method.critic_loss(style, outputs, batch, state)
        else:
            both = torch.cat([torch.zeros_like(logits), logits], 1) if of.outputs == 1 else logits
            expected = -0.7 * both.log_softmax(1).mean(1).mean()
            value, _ = method.critic_penalty(style, outputs._replace(representation=ours, body=phi), batch, state)
        torch.testing.assert_close(value, expected)
        leaves = list(model.features.parameters())
        for g, h in zip(
            torch.autograd.grad(value, leaves, retain_graph=True),
            torch.autograd.grad(expected, leaves, retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("penalty", [0.0, 0.8])
def test_dann_tells_environments(task: str, conditional: bool, penalty: float) -> None:
    of = TASKS[task]
    batch, model = batch_of(of), network(of)
    method = DANN(weight=0.6, conditional=conditional, gradient_penalty=penalty, critic_width=7, critic_depth=2)
    outputs = outputs_of(batch, model)
    critic = method.critic(problem_of(of), outputs)
    discriminator = critic.network.double()
    assert isinstance(discriminator, Discriminator)
    assert (critic.steps, critic.simultaneous, critic.trainer.betas) == (1, False, (0.5, 0.9))
    labels = batch.y.flatten().long().tolist()
    total, slopes = torch.zeros((), dtype=torch.float64), []
    assert outputs.representation is not None
    classes = max(of.outputs, 2)
    for i, phi in enumerate(outputs.representation.flatten(0, 1)):
        given_phi = phi
        if conditional:
            assert discriminator.of_label is not None
            given_phi = phi + discriminator.of_label[labels[i]]
        loss = F.cross_entropy(discriminator.layers(given_phi)[None], torch.tensor([i // B]))
        total = total + loss * (1 / (labels.count(labels[i]) * classes) if conditional else 1 / (E * B))
        slopes.append(torch.autograd.grad(loss, phi, create_graph=True)[0].square().sum())
    total = total + penalty * torch.stack(slopes).mean()
    value, _ = method.critic_loss(discriminator, outputs, batch, {})
    torch.testing.assert_close(value, total)
    leaves = [*discriminator.parameters(), *model.features.parameters()]
    pairs = zip(*(torch.autograd.grad(v, leaves, retain_graph=True) for v in (value, total)), strict=True)
    for g, h in pairs:
        torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(method.critic_penalty(discriminator, outputs, batch, {})[0], -0.6 * total)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_urm_tells_noise_from_representations(activation: Any) -> None:
    of = Classification(CLASSES)
    batch, method = batch_of(of), URM(weight=0.4, activation=activation)
    model = method.build(network(of), problem_of(of))
    assert isinstance(model, FeaturesAndHead)
    outputs = outputs_of(batch, model)
    phi = outputs.representation
    assert phi is not None
    assert phi.abs().max() < 1 if activation == "tanh" else phi.min() == 0
    critic = method.critic(problem_of(of), outputs).network.double()
    sizes = [tuple(layer.weight.shape) for layer in critic if isinstance(layer, nn.Linear)]
    assert sizes == [(100, WIDTH), (100, 100), (1, 100)]
    torch.manual_seed(5)
    noise = torch.rand(E, B, WIDTH, dtype=torch.float64)
    noise = 2 * noise - 1 if activation == "tanh" else noise
    ones = torch.ones(E, B, 1, dtype=torch.float64)
    loss = F.binary_cross_entropy_with_logits(critic(noise), ones)
    loss = loss + 0.4 * F.binary_cross_entropy_with_logits(critic(phi), 0 * ones)
    torch.manual_seed(5)
    torch.testing.assert_close(method.critic_loss(critic, outputs, batch, {})[0], loss)
    fooled = 0.4 * F.binary_cross_entropy_with_logits(critic(phi), ones)
    torch.testing.assert_close(method.critic_penalty(critic, outputs, batch, {})[0], fooled)


@pytest.mark.parametrize("name", ["dann", "urm", "sagnet"])
def test_without_weight_the_second_player_moves_nothing(name: str, tmp_path: Path) -> None:
    """The network's run is that of weight 0 whatever the critic does."""
    after = []
    for rate in (1e-3, 1e-1):
        config = small_config(name, "spirals", method__weight=0.0, method__critic_learning_rate=rate)
        problem = load(config)
        training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
        for _ in range(3):
            training.step(training.next_batch())
        after.append({name: value.detach().clone() for name, value in training.parameters.items()})
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())
