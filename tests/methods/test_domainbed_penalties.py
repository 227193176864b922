"""DomainBed's penalties as a run has them: by every strategy, step by step, in any order, and where a term is empty.

The formulas are restated as loops over environments and examples; numbers that a method draws are read from
`invbench.components.draws`.
"""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
import torch.nn.functional as F
from cells import load, small_config
from torch import Tensor, nn

from invbench.components.draws import of_examples, partners, uniform
from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs, State
from invbench.core.registry import METHODS
from invbench.core.task import BinaryClassification, Classification, Regression, Task
from invbench.core.trainer import Strategy, TrainerConfig
from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.seeding import stream, torch_stream
from invbench.training.build import build_model
from invbench.training.critic_training import with_critics
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective, Step, choose_strategy
from invbench.training.loop import TrainingLoop

D, WIDTH, CLASSES = 4, 5, 3
LABELS: dict[str, Task] = {"logistic": BinaryClassification(), "three classes": Classification(CLASSES)}
TASKS: dict[str, Task] = LABELS | {"regression": Regression("")}
STRATEGIES: tuple[Strategy, ...] = ("joint", "loop", "vmap")
Leaves = dict[str, Tensor]


class Setting:
    """A small network, and a batch of E environments with B examples."""

    def __init__(
        self, task: Task, environments: int = 3, examples: int = 6, seed: int = 0, activation: type[nn.Module] = nn.Tanh
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        size = environments, examples
        self.task = task
        y: Tensor
        if isinstance(task, Regression):
            y = torch.randn(*size, generator=generator, dtype=torch.float64)
        else:
            y = torch.randint(2 if task.outputs == 1 else CLASSES, size, generator=generator)
            y = y.double() if task.outputs == 1 else y
        x = torch.randn(*size, D, generator=generator, dtype=torch.float64)
        self.batch = Batch(x, y, torch.arange(environments))
        torch.manual_seed(seed)
        features = nn.Sequential(nn.Linear(D, WIDTH), activation())
        self.model: nn.Module = FeaturesAndHead(features, nn.Linear(WIDTH, task.outputs)).double()

    @property
    def parameters(self) -> Leaves:
        return dict(self.model.named_parameters())

    @property
    def environments(self) -> int:
        return len(self.batch.env)

    def outputs(self, e: int) -> Outputs:
        """Return the outputs (B, ...) of one environment, by a pass of its own."""
        outputs: Outputs = self.model(self.batch.x[e])
        return outputs

    def features(self, e: int) -> Tensor:
        phi = self.outputs(e).representation
        assert phi is not None
        return phi

    def losses(self, e: int) -> Tensor:
        return losses_of(self.outputs(e).prediction, self.batch.y[e], self.task)

    def risks(self) -> Tensor:
        return torch.stack([self.losses(e).mean() for e in range(self.environments)])

    def problem(self) -> Problem:
        env = torch.arange(self.environments).repeat_interleave(self.batch.x.shape[1])
        split = Split(self.batch.x.flatten(0, 1), self.batch.y.flatten(), env)
        return Problem({"train": split, "test": split}, self.task, "vector", "synthetic")

    def reordered(self, order: list[int]) -> "Setting":
        """Return the same network, with environments in another order."""
        other = copy.copy(self)
        other.batch = self.batch.at(torch.tensor(order))
        return other


class Player:
    """A method of one part, with its network, its critic and its state."""

    def __init__(self, name: str, s: Setting, seed: int = 0, **values: Any) -> None:
        self.name, self.s = name, s
        self.method = Composition({name: METHODS.load(name).parse(values, "method")})
        s.model = self.method.build(s.model, s.problem(), seed).double()
        self.state = self.method.initial_state(s.parameters, s.environments, seed)
        self.networks: dict[str, FlatModule] = {}
        if self.method.has_critic:
            outputs = s.outputs(0).map(lambda part: part[None, :2])
            critics = self.method.critics(s.problem(), outputs, seed)
            for critic in critics.values():
                critic.network.double()
            self.networks = {part: FlatModule(critic.network) for part, critic in critics.items()}
            self.state = with_critics(self.state, critics)

    @property
    def draws(self) -> State:
        """State of the part, from which its random numbers come."""
        part: State = self.state[self.name]
        return part

    @property
    def critic(self) -> nn.Module:
        return self.networks[self.name].module

    def step(self, strategy: Strategy = "joint", s: Setting | None = None) -> Step:
        s = s or self.s
        objective = Objective(self.method, s.task, s.model, strategy, critics=self.networks)
        return objective.step(s.parameters, s.batch, self.state)


def losses_of(prediction: Tensor, y: Tensor, task: Task) -> Tensor:
    """Compute each loss by torch's own functions."""
    if isinstance(task, BinaryClassification):
        return F.binary_cross_entropy_with_logits(prediction[:, 0], y, reduction="none")
    return (
        (prediction[:, 0] - y) ** 2
        if isinstance(task, Regression)
        else F.cross_entropy(prediction, y, reduction="none")
    )


def erm(s: Setting, strategy: Strategy = "joint") -> Step:
    return Player("erm", s).step(strategy)


def assert_gradient(step: Step, objective: Tensor, s: Setting, rtol: float = 1e-8, atol: float = 1e-10) -> None:
    expected = torch.autograd.grad(objective, list(s.parameters.values()), retain_graph=True, allow_unused=True)
    torch.testing.assert_close(step.objective, objective.detach(), rtol=rtol, atol=atol)
    for (name, gradient), g in zip(step.gradients.items(), expected, strict=True):
        expected_gradient = torch.zeros_like(gradient) if g is None else g
        torch.testing.assert_close(gradient, expected_gradient, rtol=rtol, atol=atol, msg=name)


def assert_same(first: Leaves, second: Leaves, rtol: float = 0.0, atol: float = 0.0) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=rtol, atol=atol, msg=name)


# --- EQRM ------------------------------------------------------------------------------------------------------------


def quantile_of(risks: np.ndarray, alpha: float, estimate: str) -> float:
    """Compute the quantile of risks: of numpy, or the root of the kernel estimate."""
    if estimate == "empirical":
        return float(np.quantile(risks, alpha))
    count = len(risks)
    width = 1.06 * math.sqrt(sum((r - risks.mean()) ** 2 for r in risks) / (count - 1)) * count ** (-1 / 5)
    excess = lambda t: sum(scipy.stats.norm.cdf((t - r) / width) for r in risks) / count - alpha  # noqa: E731
    return float(scipy.optimize.brentq(excess, risks.min() - 9 * width, risks.max() + 9 * width, xtol=1e-15))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(("estimate", "alpha"), [("kernel", 0.75), ("kernel", 0.1), ("empirical", 0.8)])
def test_eqrm_weighs_risks_by_the_slopes_of_their_quantile(
    estimate: str, alpha: float, task: str, strategy: Strategy
) -> None:
    s = Setting(TASKS[task], environments=4)
    step = Player("eqrm", s, quantile=alpha, burn_in=0, estimate=estimate).step(strategy)
    risks = s.risks()
    values, h = risks.detach().numpy(), 1e-4
    weights = [
        (quantile_of(values + d, alpha, estimate) - quantile_of(values - d, alpha, estimate)) / (2 * h)
        for d in h * np.eye(4)
    ]
    assert step.objective.item() == pytest.approx(quantile_of(values, alpha, estimate), rel=1e-9)
    expected = torch.autograd.grad((torch.tensor(weights) * risks).sum(), list(s.parameters.values()))
    for gradient, g in zip(step.gradients.values(), expected, strict=True):
        torch.testing.assert_close(gradient, g, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_environments_have_erms_gradient(strategy: Strategy) -> None:
    s = Setting(BinaryClassification())
    s.batch = Batch(s.batch.x[:1].expand(3, -1, -1), s.batch.y[:1].expand(3, -1), s.batch.env)
    step = Player("eqrm", s, burn_in=0).step(strategy)
    assert step.objective.item() == pytest.approx(s.risks().mean().item(), rel=1e-9)
    assert_same(erm(s, strategy).gradients, step.gradients, 1e-6, 1e-9)


def test_burn_in_is_erm_bit_for_bit_then_another_rate() -> None:
    s = Setting(Classification(CLASSES))
    player = Player("eqrm", s, burn_in=2, learning_rate_after=1e-5)
    assert player.method.restarts == (2,)
    plain = erm(s)
    for number in range(4):
        step = player.step()
        is_same = all(torch.equal(g, plain.gradients[name]) for name, g in step.gradients.items())
        assert is_same == (number < 2)
        assert float(player.method.learning_rate(1e-3, player.state)) == pytest.approx(1e-3 if number < 2 else 1e-5)
        player.state = player.method.advance(step.state)
    assert not Player("eqrm", s, burn_in=0).method.restarts


# --- RDM -------------------------------------------------------------------------------------------------------------


def naive_rdm(losses: list[Tensor], weight: float, variance_weight: float) -> Tensor:
    """Compute the penalty of each environment's losses, pair by pair."""
    risks = [each.mean().item() for each in losses]
    worst, every = losses[risks.index(max(risks))], torch.cat(losses)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for power in range(-4, 4):
            total = total + torch.stack([(-(10.0**power) * (v - b) ** 2).exp().mean() for v in a]).mean()
        return total

    variance = sum(((v - v.mean()) ** 2).sum() / (len(v) - 1) for v in (every, worst))
    return (
        weight * (kernel(worst, worst) + kernel(every, every) - 2 * kernel(worst, every)) + variance_weight * variance
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_rdm_begins_as_erm(strategy: Strategy) -> None:
    """Without either penalty to the last bit, then with both, another rate and an optimiser that starts afresh."""
    s = Setting(BinaryClassification(), examples=4)
    player = Player("rdm", s, weight=3.0, variance_weight=0.5, anneal_steps=2, learning_rate_after=2e-5)
    assert player.method.restarts == (2,)
    for number in range(4):
        step = player.step(strategy)
        if number < 2:
            assert step.penalty.item() == 0.0
            assert_same(erm(s, strategy).gradients, step.gradients, 1e-14, 1e-15)
        else:
            penalty = naive_rdm([s.losses(e) for e in range(3)], 3.0, 0.5)
            assert_gradient(step, s.risks().mean() + penalty, s)
        rate = float(player.method.learning_rate(1e-3, player.state))
        assert rate == pytest.approx(1e-3 if number < 2 else 2e-5)
        player.state = player.method.advance(step.state)


def test_rdm_by_torchs_adam(tmp_path: Path) -> None:
    """A run of five steps: two of ERM, then an Adam that starts afresh with the other rate."""
    given = {"anneal_steps": 2, "learning_rate_after": 0.004, "weight": 2.0, "variance_weight": 0.1}
    training = started("rdm", tmp_path, **given)
    ours = Twin(training)
    optimizers = [ours.adam(list(ours.parameters.values()), rate) for rate in (ours.trainer.learning_rate, 0.004)]
    for number in range(5):
        batch = training.next_batch()
        losses = [ours.losses(batch, e) for e in range(len(batch.env))]
        penalty = naive_rdm(losses, 2.0, 0.1) if number >= 2 else torch.zeros((), dtype=torch.float64)
        ours.update(torch.stack([each.mean() for each in losses]).mean() + penalty, optimizers[number >= 2])
        training.step(batch)
        ours.assert_is(training.parameters, number)


# --- CausIRL ---------------------------------------------------------------------------------------------------------


def naive_causirl(s: Setting, draws: State, distance: str) -> tuple[Tensor, bool]:
    """Compute the distance, and whether both parts have two examples."""
    examples = s.batch.x.shape[1]
    parts: tuple[list[Tensor], list[Tensor]] = ([], [])
    for e, number in enumerate(s.batch.env):
        cut = math.floor(uniform(draws, 0, number, like=s.batch.x).item() * examples)
        phi = s.features(e)
        for i in range(examples):
            parts[i >= cut].append(phi[i])
    if min(len(parts[0]), len(parts[1])) < 2:
        return torch.zeros((), dtype=torch.float64), False
    p, q = torch.stack(parts[0]), torch.stack(parts[1])
    if distance == "mmd":
        kernel = lambda a, b: sum(  # noqa: E731
            ((-(10.0**k) * ((a[:, None] - b) ** 2).sum(-1)).exp().mean() for k in range(-3, 4)), torch.zeros(())
        )
        return kernel(p, p) + kernel(q, q) - 2 * kernel(p, q), True
    moments = [(v.mean(0), (v - v.mean(0)).T @ (v - v.mean(0)) / (len(v) - 1)) for v in (p, q)]
    return torch.stack([(a - b).square().mean() for a, b in zip(*moments, strict=True)]).sum(), True


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("distance", ["coral", "mmd"])
def test_causirl_cuts_anew_in_each_step(distance: str, strategy: Strategy) -> None:
    """With two environments of three examples: some cuts leave a part with less than two, and the penalty is 0."""
    s = Setting(Classification(CLASSES), environments=2, examples=3)
    player = Player("causirl", s, weight=0.7, distance=distance)
    defined = []
    for _ in range(10):
        penalty, is_defined = naive_causirl(s, player.draws, distance)
        defined.append(is_defined)
        step = player.step(strategy)
        assert_gradient(step, s.risks().mean() + 0.7 * penalty, s)
        if not is_defined:
            assert step.penalty.item() == 0.0
        player.state = player.method.advance(step.state)
    assert len(set(defined)) == 2, "both cases have been met"


# --- CAD -------------------------------------------------------------------------------------------------------------


def naive_cad(s: Setting, temperature: float, conditional: bool, flipped: bool, normalised: bool) -> Tensor:
    """Compute the bottleneck by sums over lists of indices; 0 where no example counts."""
    phi = [row for e in range(s.environments) for row in s.features(e)]
    if normalised:
        phi = [row / row.norm() for row in phi]
    y, d = s.batch.y.flatten().tolist(), s.batch.env.repeat_interleave(s.batch.y.shape[1]).tolist()
    every = range(len(phi))
    weight = lambda i, k: ((phi[i] * phi[k]).sum() / temperature).exp()  # noqa: E731
    terms = []
    for i in every:
        of_label = [k for k in every if k != i and y[k] == y[i]]
        below = of_label if conditional else [k for k in every if k != i]
        above = [j for j in below if (d[j] != d[i] if flipped else d[j] == d[i])]
        if of_label and above:
            total = torch.stack([weight(i, j) for j in above]).sum() / torch.stack([weight(i, k) for k in below]).sum()
            terms.append(total.log())
    value = torch.stack(terms).mean() if terms else torch.zeros((), dtype=torch.float64)
    return (-1 if flipped else 1) * temperature / 0.07 * value


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_cad_where_labels_are_rare(
    normalised: bool, flipped: bool, conditional: bool, task: str, strategy: Strategy
) -> None:
    """One example is alone with its label, and one label is of a single environment."""
    s = Setting(LABELS[task], environments=3, examples=4, seed=1)
    labels = (
        [[0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]] if task == "logistic" else [[0, 0, 1, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    )
    s.batch = s.batch._replace(y=torch.tensor(labels).to(s.batch.y))
    values: dict[str, Any] = {
        "temperature": 0.1,
        "conditional": conditional,
        "flipped": flipped,
        "normalised": normalised,
    }
    step = Player("cad", s, weight=0.3, **values).step(strategy)
    assert_gradient(step, s.risks().mean() + 0.3 * naive_cad(s, 0.1, conditional, flipped, normalised), s)


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("labels", [[[0, 0], [1, 1], [2, 2]], [[0, 1], [2, 3], [4, 5]]])
def test_cad_without_anything_to_compare_is_erm(labels: list[list[int]], flipped: bool) -> None:
    """Each label in an environment of its own, then all labels different: sums are empty, gradients finite."""
    s = Setting(Classification(6), environments=3, examples=2)
    s.batch = s.batch._replace(y=torch.tensor(labels))
    step = Player("cad", s, weight=1.0, conditional=True, flipped=flipped).step()
    expected = naive_cad(s, 0.1, True, flipped, False)
    assert step.penalty.item() == pytest.approx(expected.item(), abs=1e-12)
    assert step.penalty.item() == pytest.approx(0.0, abs=1e-12), "log 1 or an empty sum"
    assert_same(erm(s).gradients, step.gradients, 1e-10, 1e-12)


def test_cad_of_representations_that_are_zero() -> None:
    """Their norm has no gradient; that of the penalty is finite."""
    s = Setting(BinaryClassification(), activation=nn.ReLU)
    x = s.batch.x.clone()
    with torch.no_grad():
        s.parameters["features.0.bias"].fill_(-1.0)
        x[0, 0] = 0.0
    s.batch = s.batch._replace(x=x)
    assert s.features(0)[0].abs().max() == 0
    step = Player("cad", s, weight=1.0, normalised=True).step()
    assert all(torch.isfinite(g).all() for g in step.gradients.values())
    assert torch.isfinite(step.objective)


# --- Transfer --------------------------------------------------------------------------------------------------------


def probabilities(z: np.ndarray) -> np.ndarray:
    """Compute probabilities of all classes from logits (N, classes), or (N, 1)."""
    z = np.hstack([np.zeros_like(z), z]) if z.shape[1] == 1 else z
    powers = np.exp(z - z.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize("radius", [1e-3, 10.0])
def test_transfer_climbs_once_by_hand(radius: float, task: str, strategy: Strategy) -> None:
    """One step in numpy, with the derivatives of cross-entropy written out, outside of the ball and inside."""
    s, rate, weight = Setting(LABELS[task]), 0.4, 0.7
    head = s.model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    w, b = head.weight.detach().numpy(), head.bias.detach().numpy()
    slopes, risks = [], []
    for e in range(3):
        phi, y = s.features(e).detach().numpy(), s.batch.y[e].numpy().astype(int)
        p = probabilities(phi @ w.T + b)
        delta = p - np.eye(p.shape[1])[y]
        delta = delta[:, 1:] if s.task.outputs == 1 else delta
        slopes.append((delta.T @ phi / len(y), delta.mean(0)))
        risks.append(-np.log(p[np.arange(len(y)), y]).mean())
    high, low = int(np.argmax(risks)), int(np.argmin(risks))
    away = [rate * weight * (slopes[high][part] - slopes[low][part]) for part in (0, 1)]
    length = math.sqrt(sum((part**2).sum() for part in away))
    assert (length > radius) == (radius < 1), "both cases are met"
    moved = [torch.tensor(old + min(1.0, radius / length) * part) for old, part in zip((w, b), away, strict=True)]
    each = [losses_of(F.linear(s.features(e), *moved), s.batch.y[e], s.task).mean() for e in range(3)]
    penalty = weight * (max(each) - min(each))
    step = Player("transfer", s, weight=weight, radius=radius, ascent_steps=1, ascent_rate=rate).step(strategy)
    assert_gradient(step, s.risks().mean() + penalty, s)
    plain = erm(s, strategy).gradients
    for name in ("head.weight", "head.bias"):
        torch.testing.assert_close(step.gradients[name], plain[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_transfer_between_equal_environments_is_erm(strategy: Strategy) -> None:
    s = Setting(Classification(CLASSES))
    s.batch = Batch(s.batch.x[:1].expand(3, -1, -1), s.batch.y[:1].expand(3, -1), s.batch.env)
    step = Player("transfer", s).step(strategy)
    assert step.penalty.item() == pytest.approx(0.0, abs=1e-12)
    assert_same(erm(s, strategy).gradients, step.gradients, 1e-9, 1e-12)


# --- TRM -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", LABELS)
def test_trm_is_erm_until_its_warm_up_ends(task: str, strategy: Strategy) -> None:
    """To the last bit, with heads at 0 and equal shares."""
    s = Setting(LABELS[task])
    player = Player("trm", s, warm_up=2, inner_steps=2)
    plain = erm(s, strategy)
    for number in range(3):
        step = player.step(strategy)
        shares = step.state["trm"]["shares"]
        if number < 2:
            assert step.penalty.item() == 0.0
            assert_same(plain.gradients, step.gradients, 1e-14, 1e-16)
            assert torch.equal(shares, 1 - torch.eye(3, dtype=torch.float64))
            assert not step.state["trm"]["weights"].any()
        else:
            assert step.penalty.item() > 0
            assert step.state["trm"]["weights"].any()
        player.state = player.method.advance(step.state)


@pytest.mark.parametrize("task", LABELS)
def test_trm_is_the_same_by_every_strategy(task: str) -> None:
    """In the second step, when heads and shares are those of the first."""
    s = Setting(LABELS[task])
    values: dict[str, Any] = {"warm_up": 0, "inner_steps": 3, "head_rate": 0.5, "follow_weight": 0.3, "group_rate": 0.5}
    steps = []
    for strategy in STRATEGIES:
        player = Player("trm", s, **values)
        player.state = player.method.advance(player.step(strategy).state)
        steps.append(player.step(strategy))
    for step in steps[1:]:
        assert_same(steps[0].gradients, step.gradients, 1e-9, 1e-12)
        assert_same(steps[0].state["trm"], step.state["trm"], 1e-9, 1e-12)


def test_trm_without_growth_weighs_all_others_alike() -> None:
    """With η = 0 the shares stay equal, whichever environments a step has."""
    s = Setting(Classification(CLASSES), environments=4)
    player = Player("trm", s, warm_up=0, inner_steps=1, group_rate=0.0)
    for some in ([0, 1, 2], [1, 2, 3], [0, 3, 1]):
        step = player.step(s=s.reordered(some))
        player.state = player.method.advance(step.state)
        rows = step.state["trm"]["shares"]
        normal = rows / rows.sum(1, keepdim=True)
        torch.testing.assert_close(normal, (1 - torch.eye(4, dtype=torch.float64)) / 3)


# --- SelfReg ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_selfreg_of_a_label_with_one_example(seed: int) -> None:
    """Its partners are itself: no difference of logits, and the projection still meets the representation."""
    s = Setting(Classification(CLASSES), environments=2, examples=3)
    s.batch = s.batch._replace(y=torch.tensor([[0, 0, 1], [0, 0, 0]]))
    player = Player("selfreg", s, seed=seed)
    outputs: Outputs = s.model(s.batch.x.flatten(0, 1))
    z, phi, p = outputs.prediction, outputs.representation, outputs.further["projection"]
    assert phi is not None
    label, draws = s.batch.y.flatten(), player.draws
    j, k = (partners(of_examples(draws, purpose, s.batch.env, 3, z).flatten(), label).tolist() for purpose in (0, 1))
    assert (j[2], k[2]) == (2, 2)
    share = math.sin(math.pi / 2 * uniform(draws, 2, like=z).item()) ** 2
    a = b = torch.zeros((), dtype=torch.float64)
    for i in range(6):
        a = a + ((z[i] - z[j[i]]) ** 2).mean() / 6 + 0.3 * ((phi[i] - p[j[i]]) ** 2).mean() / 6
        mixed = [share * v[j[i]] + (1 - share) * v[k[i]] for v in (z, p)]
        b = b + ((z[i] - mixed[0]) ** 2).mean() / 6 + 0.3 * ((phi[i] - mixed[1]) ** 2).mean() / 6
    risk = losses_of(z, label, s.task).mean()
    assert_gradient(player.step(), risk + min(risk.item(), 1.0) * (share * a + (1 - share) * b), s)


@pytest.mark.parametrize("strategy", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["selfreg", "sagnet"])
def test_what_needs_all_examples_at_once(name: str, strategy: Strategy) -> None:
    """SelfReg has batch normalisation, SagNet styles of other environments."""
    s = Setting(Classification(CLASSES))
    player = Player(name, s)
    trainer = TrainerConfig(steps=1, strategy=strategy)
    with pytest.raises(UserError, match="use trainer.strategy=joint"):
        choose_strategy(player.method, s.model, trainer)
    assert choose_strategy(player.method, s.model, TrainerConfig(steps=1)) == "joint"


def test_selfreg_mixes_two_partners() -> None:
    """In some seeds of the test above both count: neither is the other, and the share is not near 0 or 1."""
    env, like, both = torch.arange(2), torch.zeros((), dtype=torch.float64), 0
    label = torch.tensor([0, 0, 1, 0, 0, 0])
    for seed in range(4):
        method = Composition({"selfreg": METHODS.load("selfreg")()})
        draws = method.initial_state({"w": torch.zeros(1)}, 2, seed)["selfreg"]
        first, second = (partners(of_examples(draws, purpose, env, 3, like).flatten(), label) for purpose in (0, 1))
        share = math.sin(math.pi / 2 * uniform(draws, 2, like=like).item()) ** 2
        both += not torch.equal(first, second) and 0.1 < share < 0.9
    assert both


# --- second players --------------------------------------------------------------------------------------------------


def naive_dann(critic: nn.Module, phi: list[Tensor], y: Tensor, env: list[int], conditional: bool, g: float) -> Tensor:
    """Compute the discriminator's loss, example by example, of representations by environment."""
    labels = y.long().flatten().tolist()
    classes = 0
    vectors = dict(critic.named_parameters()).get("of_label")
    assert (vectors is not None) == conditional
    if vectors is not None:
        classes = len(vectors)
    total, number = torch.zeros((), dtype=torch.float64), 0
    for e, rows in zip(env, phi, strict=True):
        for row in rows:
            count = len(labels)
            inner = row if vectors is None else row + vectors[labels[number]]
            loss = -critic.get_submodule("layers")(inner).log_softmax(0)[e]
            total = total + loss / (classes * labels.count(labels[number]) if conditional else count)
            if g:
                total = total + g * torch.autograd.grad(loss, inner, create_graph=True)[0].square().sum() / count
            number += 1
    return total


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", LABELS)
@pytest.mark.parametrize(("conditional", "g"), [(False, 0.0), (True, 0.0), (True, 0.6)])
def test_dann_reverses_its_discriminator(conditional: bool, g: float, task: str, strategy: Strategy) -> None:
    s = Setting(LABELS[task])
    values: dict[str, Any] = {"conditional": conditional, "gradient_penalty": g, "critic_width": 6, "critic_depth": 2}
    player = Player("dann", s, weight=0.8, **values)
    loss = naive_dann(player.critic, [s.features(e) for e in range(3)], s.batch.y, [0, 1, 2], conditional, g)
    assert_gradient(player.step(strategy), s.risks().mean() - 0.8 * loss, s)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_urm_rewards_what_passes_for_noise(activation: str, task: str, strategy: Strategy) -> None:
    s = Setting(TASKS[task])
    before = [s.features(e).detach() for e in range(3)]
    player = Player("urm", s, weight=0.4, activation=activation, critic_depth=2)
    terms = []
    for e in range(3):
        bounded = torch.tanh(before[e]) if activation == "tanh" else before[e].clamp(min=0)
        assert torch.equal(s.features(e), bounded)
        terms += [F.softplus(-player.critic(row)).squeeze() for row in s.features(e)]
    assert_gradient(player.step(strategy), s.risks().mean() + 0.4 * torch.stack(terms).mean(), s)


def restyled(phi: Tensor, draws: State, env: Tensor, examples: int) -> Tensor:
    """Give each representation (N, features) a mean and a variance between its own and another one's."""
    share = of_examples(draws, 0, env, examples, phi).flatten()
    others = partners(of_examples(draws, 1, env, examples, phi).flatten()).tolist()
    rows = []
    for i, j in enumerate(others):
        mean = share[i] * phi[i].mean() + (1 - share[i]) * phi[j].mean()
        variance = share[i] * phi[i].var() + (1 - share[i]) * phi[j].var()
        rows.append((phi[i] - phi[i].mean()) / (phi[i].var() + 1e-5).sqrt() * (variance + 1e-5).sqrt() + mean)
    return torch.stack(rows)


def with_other_content(phi: Tensor, draws: State, purpose: int, env: Tensor, examples: int) -> Tensor:
    """Give each representation (N, features) another one's content, a constant."""
    others = partners(of_examples(draws, purpose, env, examples, phi).flatten()).tolist()
    rows = []
    for i, j in enumerate(others):
        content = ((phi[j] - phi[j].mean()) / (phi[j].var() + 1e-5).sqrt()).detach()
        rows.append(content * (phi[i].var() + 1e-5).sqrt() + phi[i].mean())
    return torch.stack(rows)


def uniform_loss(logits: Tensor) -> Tensor:
    both = torch.cat([torch.zeros_like(logits), logits], 1) if logits.shape[1] == 1 else logits
    return -both.log_softmax(1).mean()


@pytest.mark.parametrize("task", LABELS)
def test_sagnet_trains_body_and_head_together(task: str) -> None:
    """The adversarial term is of representations whose style has not changed."""
    s = Setting(LABELS[task])
    player = Player("sagnet", s, seed=4, weight=0.6)
    phi = torch.cat([s.features(e) for e in range(3)])
    prediction = s.model.get_submodule("head")(restyled(phi, player.draws, s.batch.env, 6))
    risk = losses_of(prediction, s.batch.y.flatten(), s.task).mean()
    adversarial = uniform_loss(player.critic(with_other_content(phi, player.draws, 3, s.batch.env, 6)))
    assert_gradient(player.step(), risk + 0.6 * adversarial, s)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("eqrm", {"burn_in": 0}),
        ("trm", {"warm_up": 0, "inner_steps": 3, "follow_weight": 0.5}),
        ("selfreg", {}),
        ("sagnet", {"weight": 0.7}),
        ("dann", {"weight": 0.7, "gradient_penalty": 0.5, "conditional": True}),
        ("urm", {"weight": 0.7}),
    ],
)
@pytest.mark.parametrize("order", [[2, 0, 3, 1], [3, 2, 1, 0]])
def test_environments_may_come_in_any_order(name: str, values: dict[str, Any], order: list[int]) -> None:
    s = Setting(Classification(CLASSES), environments=4)
    player = Player(name, s, seed=1, **values)
    first, second = player.step(), player.step(s=s.reordered(order))
    torch.testing.assert_close(second.objective, first.objective, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(second.risks, first.risks[order], rtol=1e-10, atol=1e-12)
    assert_same(first.gradients, second.gradients, 1e-8, 1e-10)


# --- second players in a run -----------------------------------------------------------------------------------------


def started(name: str, folder: Path, **values: Any) -> TrainingLoop:
    """Start a run in float64 by Adam with a constant rate."""
    method = {f"method__{key}": value for key, value in values.items()}
    config = small_config(name, "spirals", trainer__dtype="float64", trainer__schedule="constant", **method)
    problem = load(config, torch.float64)
    return TrainingLoop(config, problem, build_model(config, problem).double(), RunFolder(folder), "", 0)


class Twin:
    """Copy of a run's network, to be trained by torch's own Adam."""

    def __init__(self, training: TrainingLoop) -> None:
        self.model, self.task, self.trainer = (
            copy.deepcopy(training.model),
            training.problem.task,
            training.config.trainer,
        )

    @property
    def parameters(self) -> Leaves:
        return dict(self.model.named_parameters())

    def outputs(self, batch: Batch) -> Outputs:
        outputs: Outputs = self.model(batch.x.flatten(0, 1))
        return outputs

    def losses(self, batch: Batch, e: int) -> Tensor:
        return losses_of(self.model(batch.x[e]).prediction, batch.y[e], self.task)

    def adam(self, parameters: list[Tensor], rate: float) -> torch.optim.Adam:
        return adam_of(self.trainer, parameters, rate)

    def update(self, objective: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Make an update by the gradient of the objective."""
        leaves = [value for group in optimizer.param_groups for value in group["params"]]
        for value, g in zip(leaves, torch.autograd.grad(objective, leaves, retain_graph=True), strict=True):
            value.grad = g
        optimizer.step()

    def assert_is(self, parameters: Leaves, number: int) -> None:
        for name, value in self.parameters.items():
            torch.testing.assert_close(parameters[name], value, rtol=1e-6, atol=1e-8, msg=f"{name} after step {number}")


def adam_of(trainer: TrainerConfig, parameters: list[Tensor], rate: float) -> torch.optim.Adam:
    options: dict[str, Any] = {"betas": trainer.betas, "eps": trainer.epsilon, "weight_decay": trainer.weight_decay}
    return torch.optim.Adam(parameters, lr=rate, **options)


def assert_critic(training: TrainingLoop, name: str, network: nn.Module) -> None:
    weights = torch.cat([value.detach().flatten() for value in network.parameters()])
    torch.testing.assert_close(training.method_state[name]["critic"]["weights"], weights, rtol=1e-6, atol=1e-8)


def test_a_run_of_dann(tmp_path: Path) -> None:
    """Ahead of each step two updates of the discriminator, on batches of its own, with the network as it is."""
    values: dict[str, Any] = {
        "critic_steps": 2,
        "critic_width": 6,
        "weight": 0.9,
        "gradient_penalty": 0.4,
        "critic_weight_decay": 1e-3,
    }
    training = started("dann", tmp_path, critic_learning_rate=0.02, critic_momentum=0.3, **values)
    ours, critic = Twin(training), training.critics.critics["dann"]
    network = copy.deepcopy(critic.network)
    rates = TrainerConfig(steps=1, betas=(0.3, 0.9), weight_decay=1e-3)
    second, first = adam_of(rates, list(network.parameters()), 0.02), ours.adam(list(ours.parameters.values()), 0.01)
    assert ours.trainer.learning_rate == 0.01

    def loss(batch: Batch) -> Tensor:
        phi = ours.outputs(batch).representation
        assert phi is not None
        rows = list(phi.unflatten(0, batch.y.shape))
        return naive_dann(network, rows, batch.y, batch.env.tolist(), False, 0.4)

    for number in range(3):
        for update in (2 * number, 2 * number + 1):
            ours.update(loss(training.critics.loaders["dann"].batch(update)), second)
        batch = training.next_batch()
        risk = torch.stack([ours.losses(batch, e).mean() for e in range(len(batch.env))]).mean()
        ours.update(risk - 0.9 * loss(batch), first)
        training.step(batch)
        ours.assert_is(training.parameters, number)
        assert_critic(training, "dann", network)
    assert int(training.method_state["dann"]["critic_updates"]) == 6


def run_beside(training: TrainingLoop, name: str, objectives: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """Train network and critic from one batch and the weights before the step, each by an Adam, and compare."""
    ours, critic = Twin(training), training.critics.critics[name]
    network = copy.deepcopy(critic.network)
    second = adam_of(critic.trainer, list(network.parameters()), critic.trainer.learning_rate)
    first = ours.adam(list(ours.parameters.values()), ours.trainer.learning_rate)
    for number in range(3):
        batch = training.next_batch()
        objective, loss = objectives(ours, network, batch, training.method_state[name], number)
        gradients = torch.autograd.grad(loss, list(network.parameters()), retain_graph=True)
        ours.update(objective, first)
        for value, g in zip(network.parameters(), gradients, strict=True):
            value.grad = g
        second.step()
        training.step(batch)
        ours.assert_is(training.parameters, number)
        assert_critic(training, name, network)


def test_a_run_of_sagnet(tmp_path: Path) -> None:
    training = started("sagnet", tmp_path, weight=0.5, critic_learning_rate=0.03)

    def objectives(ours: Twin, style: nn.Module, batch: Batch, state: State, number: int) -> tuple[Tensor, Tensor]:
        assert int(state["step"]) == number
        phi, (_, examples) = ours.outputs(batch).representation, batch.y.shape
        assert phi is not None
        y, sizes = batch.y.flatten(), (batch.env, examples)
        head = ours.model.get_submodule("head")
        risk = losses_of(head(restyled(phi, state, *sizes)), y, ours.task).mean()
        adversarial = uniform_loss(style(with_other_content(phi, state, 3, *sizes)))
        loss = losses_of(style(with_other_content(phi.detach(), state, 2, *sizes)), y, ours.task).mean()
        return risk + 0.5 * adversarial, loss

    run_beside(training, "sagnet", objectives)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_a_run_of_urm(activation: str, tmp_path: Path) -> None:
    training = started("urm", tmp_path, weight=0.5, critic_learning_rate=0.03, activation=activation)

    def objectives(ours: Twin, critic: nn.Module, batch: Batch, state: State, number: int) -> tuple[Tensor, Tensor]:
        phi = ours.outputs(batch).representation
        assert phi is not None
        with torch_stream(stream(training.config.spec.seed, "noise", "critic", "urm", number)):
            noise = torch.rand(*batch.y.shape, phi.shape[1], dtype=torch.float64)
        noise = noise.flatten(0, 1) if activation == "relu" else 2 * noise.flatten(0, 1) - 1
        risk = torch.stack([ours.losses(batch, e).mean() for e in range(len(batch.env))]).mean()
        objective = risk - 0.5 * torch.sigmoid(critic(phi)).log().mean()
        loss = -torch.sigmoid(critic(noise)).log().mean() - 0.5 * torch.sigmoid(-critic(phi.detach())).log().mean()
        return objective, loss

    run_beside(training, "urm", objectives)


@pytest.mark.parametrize("name", ["dann", "sagnet", "urm", "selfreg", "causirl"])
def test_evaluations_leave_the_run_as_it_is(name: str, tmp_path: Path) -> None:
    """Where a method draws, an evaluation between steps takes no number from training."""
    after = []
    for is_measured in (False, True):
        training = started(name, tmp_path)
        with training.noise():
            for _ in range(3):
                training.step(training.next_batch())
                if is_measured:
                    training.measure(tuple(training.problem.splits))
        after.append({key: value.detach().clone() for key, value in training.parameters.items()})
    assert_same(after[0], after[1])
