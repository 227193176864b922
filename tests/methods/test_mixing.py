"""Methods that change what the network, or its head, gets: Mixup and RSC, against numpy."""

import numpy as np
import pytest
import scipy.stats
import torch
from cells import small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch, PairedTargets
from invbench.core.registry import METHODS
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.core.trainer import Strategy
from invbench.errors import UserError
from invbench.methods.erm import ERM
from invbench.methods.mixup import Mixup
from invbench.methods.rsc import RSC, quantile
from invbench.training.gradients import Objective, choose_strategy

E, B, D, CLASSES = 3, 7, 5, 4


def batch_of(seed: int, task: Task) -> Batch:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2 if task.outputs == 1 else CLASSES, (E, B))
    x = torch.tensor(rng.normal(size=(E, B, D)))
    return Batch(x, torch.tensor(y, dtype=torch.float64 if task.outputs == 1 else torch.int64), torch.arange(E))


def network(seed: int, outputs: int) -> FeaturesAndHead:
    torch.manual_seed(seed)
    return FeaturesAndHead(nn.Sequential(nn.Linear(D, 6), nn.Tanh()), nn.Linear(6, outputs)).double()


def losses(prediction: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute the cross-entropy of logits (N, classes), or (N, 1), in nats."""
    if prediction.shape[1] == 1:
        prediction = np.hstack([np.zeros_like(prediction), prediction])
    return -np.log(softmax(prediction)[np.arange(len(y)), y.astype(int)])


def softmax(z: np.ndarray) -> np.ndarray:
    exponentials = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(1, keepdims=True))


@pytest.mark.parametrize("task", [BinaryClassification(), Classification(outputs=CLASSES)])
def test_mixup_trains_on_both_targets(task: Task) -> None:
    batch, model = batch_of(0, task), network(1, task.outputs)
    method = Composition({"mixup": Mixup(alpha=0.5)})
    state = method.initial_state(dict(model.named_parameters()), E)
    torch.manual_seed(2)
    mixed = method.mix(batch, state)
    assert isinstance(mixed.y, PairedTargets)
    second = torch.roll(mixed.env, -1)
    assert sorted(mixed.env.tolist()) == list(range(E)), "a ring of all environments"
    share = mixed.y.share[:, 0]
    assert torch.equal(mixed.y.first, batch.y[mixed.env])
    assert torch.equal(mixed.y.second, batch.y[second])
    weight = share[:, None, None]
    torch.testing.assert_close(mixed.x, weight * batch.x[mixed.env] + (1 - weight) * batch.x[second])
    prediction = model(mixed.x.flatten(0, 1)).prediction.detach().numpy()
    one, other = (losses(prediction, y.flatten().numpy()) for y in (mixed.y.first, mixed.y.second))
    rest = mixed.y.share.flatten().numpy()
    torch.manual_seed(2)
    step = Objective(method, task, model, "joint").step(dict(model.named_parameters()), batch, state)
    assert step.objective.item() == pytest.approx((rest * one + (1 - rest) * other).mean(), rel=1e-12)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
def test_mixup_is_the_same_by_every_strategy(strategy: Strategy) -> None:
    task = Classification(outputs=CLASSES)
    batch, model, method = batch_of(3, task), network(4, CLASSES), Composition({"mixup": Mixup()})
    parameters = dict(model.named_parameters())
    state = method.initial_state(parameters, E)
    steps = []
    for way in ("joint", strategy):
        torch.manual_seed(5)
        steps.append(Objective(method, task, model, way).step(parameters, batch, state))  # type: ignore[arg-type]
    for name in parameters:
        torch.testing.assert_close(steps[0].gradients[name], steps[1].gradients[name], rtol=1e-10, atol=1e-14)


def test_mixup_draws_from_the_beta_distribution() -> None:
    batch = batch_of(0, BinaryClassification())
    torch.manual_seed(0)
    shares = np.concatenate([Mixup(alpha=0.3).mix(batch, {}).y.share[:, 0].numpy() for _ in range(700)])  # type: ignore[attr-defined]
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.3, 0.3).cdf).pvalue > 0.001


def naive_rsc(phi: np.ndarray, weight: np.ndarray, bias: np.ndarray, y: np.ndarray, f: float, b: float) -> np.ndarray:
    """Compute the masked representation by the paper's construction in DomainBed, example by example."""
    if len(weight) == 1:  # a logit of class 1 against one of class 0 that is its negative
        weight, bias = np.stack([-weight[0], weight[0]]), np.stack([-bias[0], bias[0]])
        probability = lambda z, label: 1 / (1 + np.exp(-z[label]))  # noqa: E731
    else:
        probability = lambda z, label: softmax(z[None])[0, label]  # noqa: E731
    kept = np.stack([weight[label] < np.percentile(weight[label], 100 * (1 - f)) for label in y])
    changes = np.array(
        [
            probability(weight @ row + bias, label) - probability(weight @ (row * mask) + bias, label)
            for row, mask, label in zip(phi, kept, y, strict=True)
        ]
    )
    whole = changes < np.percentile(changes, 100 * (1 - b))
    return phi * (kept | whole[:, None])


@pytest.mark.parametrize("outputs", [1, CLASSES])
@given(seed=st.integers(0, 1000), f=st.floats(0, 0.9), b=st.floats(0, 0.9))
def test_rsc_mutes_what_matters(outputs: int, seed: int, f: float, b: float) -> None:
    rng = np.random.default_rng(seed)
    phi, head = rng.normal(size=(11, 6)), nn.Linear(6, outputs).double()
    y = rng.integers(0, max(2, outputs), 11)
    given_y = torch.tensor(y, dtype=torch.float64 if outputs == 1 else torch.int64)
    batch = Batch(torch.zeros(1, 11, 1), given_y[None], torch.arange(1))
    masked = RSC(feature_share=f, batch_share=b).features(torch.tensor(phi)[None], head, batch, {})[0]
    weight, bias = head.weight.detach().numpy(), head.bias.detach().numpy()
    np.testing.assert_allclose(masked.detach().numpy(), naive_rsc(phi, weight, bias, y, f, b), atol=1e-12)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.floats(0, 1))
def test_quantiles_are_numpys(values: list[float], share: float) -> None:
    ours = quantile(torch.tensor(values, dtype=torch.float64), share).item()
    assert ours == pytest.approx(np.quantile(values, share), abs=1e-9)


def test_rsc_trains_body_and_head_through_the_mask() -> None:
    """The gradient is that of the loss of the masked representation, the mask a constant."""
    task = Classification(outputs=CLASSES)
    batch, model, method = batch_of(6, task), network(7, CLASSES), Composition({"rsc": RSC()})
    parameters = dict(model.named_parameters())
    assert choose_strategy(method, model, small_config("erm", "spirals").trainer) == "joint"
    step = Objective(method, task, model, "joint").step(parameters, batch, method.initial_state(parameters, E))
    phi = model.features(batch.x.flatten(0, 1))
    y = batch.y.flatten()
    masked = RSC().features(phi.unflatten(0, (E, B)), model.head, batch, {}).flatten(0, 1)
    mask = (masked != 0).double().detach()
    loss = nn.functional.cross_entropy(model.head(phi * mask), y)
    assert step.objective.item() == pytest.approx(loss.item(), rel=1e-12)
    for (name, parameter), expected in zip(
        parameters.items(), torch.autograd.grad(loss, list(parameters.values())), strict=True
    ):
        assert parameter.shape == expected.shape
        torch.testing.assert_close(step.gradients[name], expected, rtol=1e-10, atol=1e-14)


def test_what_does_not_go_together() -> None:
    with pytest.raises(UserError, match="mixup gives each example two targets, and rsc needs one"):
        Composition({"mixup": Mixup(), "rsc": RSC()})
    with pytest.raises(UserError, match="mixup gives each example two targets, and adversary needs one"):
        Composition({"mixup": Mixup(), "adversary": METHODS.load("adversary")()})
    with pytest.raises(UserError, match="needs a network with one linear head"):
        choose_strategy(Composition({"rsc": RSC()}), nn.Linear(2, 2), small_config("erm", "spirals").trainer)
    with pytest.raises(UserError, match="use trainer.strategy=joint"):
        config = small_config("rsc", "spirals", trainer__strategy="vmap")
        choose_strategy(config.method, network(0, 1), config.trainer)
    Composition({"mixup": Mixup(), "erm": ERM()})
