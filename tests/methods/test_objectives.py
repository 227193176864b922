"""Every objective against an independent statement of its formula, differentiated as it stands."""

import copy
from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from invbench.components.draws import uniform
from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch
from invbench.core.method import Method
from invbench.core.registry import METHODS
from invbench.core.task import BinaryClassification, Classification, Regression, Task
from invbench.core.trainer import Strategy
from invbench.errors import UserError
from invbench.training.gradients import Objective, Step

E, B, D, WIDTH = 3, 8, 4, 5
Naive = Callable[["Setting"], Tensor]


class Setting:
    """A small network, data of three environments, and the plain loss."""

    def __init__(self, task: Task, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.task = task
        self.x = torch.randn(E, B, D, generator=generator, dtype=torch.float64)
        self.y, self.env = self._targets(generator), torch.arange(E)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            features = nn.Sequential(nn.Linear(D, WIDTH), nn.Tanh())
            self.model = FeaturesAndHead(features, nn.Linear(WIDTH, task.outputs)).double()

    def _targets(self, generator: torch.Generator) -> Tensor:
        drawn = torch.randn(E, B, generator=generator, dtype=torch.float64)
        if isinstance(self.task, BinaryClassification):
            return (drawn > 0).double()
        return (
            drawn if isinstance(self.task, Regression) else torch.bucketize(drawn, torch.tensor([-0.5, 0.5]).double())
        )

    @property
    def parameters(self) -> dict[str, Tensor]:
        return dict(self.model.named_parameters())

    def features(self, e: int) -> Tensor:
        return self.model.features(self.x[e])  # type: ignore[no-any-return]

    def logits(self, e: int) -> Tensor:
        return self.model.head(self.features(e))  # type: ignore[no-any-return]

    def loss(self, z: Tensor, y: Tensor) -> Tensor:
        """Compute the mean loss by torch's own functions."""
        if isinstance(self.task, BinaryClassification):
            return F.binary_cross_entropy_with_logits(z[:, 0], y)
        return F.mse_loss(z[:, 0], y) if isinstance(self.task, Regression) else F.cross_entropy(z, y)

    def risk(self, e: int) -> Tensor:
        return self.loss(self.logits(e), self.y[e])

    def risks(self) -> Tensor:
        return torch.stack([self.risk(e) for e in range(E)])

    def step(self, parts: dict[str, Method], strategy: Strategy = "joint", state: Any = None) -> Step:
        method = Composition(parts)
        objective = Objective(method, self.task, self.model, strategy)
        batch = Batch(self.x, self.y, self.env)
        return objective.step(self.parameters, batch, state or method.initial_state(self.parameters, E))


def dummy(s: Setting, rows: slice = slice(None), offset: bool = False, head: bool = False) -> list[list[Tensor]]:
    """Compute gradients of each risk by an explicit classifier, with a graph through them."""
    gradients = []
    for e in range(E):
        z, y = s.logits(e)[rows], s.y[e][rows]
        if head:
            w = s.model.head.weight.detach().clone().requires_grad_()
            free = F.linear(s.features(e)[rows], s.model.head.weight + (w - w.detach()), s.model.head.bias)
            gradients.append(list(torch.autograd.grad(s.loss(free, y), [w], create_graph=True)))
            continue
        one = torch.ones((), dtype=torch.float64, requires_grad=True)
        zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
        of = [one, zero] if offset else [one]
        gradients.append(list(torch.autograd.grad(s.loss(z * one + zero, y), of, create_graph=True)))
    return gradients


def irm(s: Setting, **kwargs: Any) -> Tensor:
    return torch.stack([torch.stack([g.square().sum() for g in each]).sum() for each in dummy(s, **kwargs)]).mean()


def irm_unbiased(s: Setting) -> Tensor:
    even, odd = dummy(s, slice(0, None, 2)), dummy(s, slice(1, None, 2))
    return torch.stack([(a * b).sum() for (a,), (b,) in zip(even, odd, strict=True)]).mean()


def irm_split(s: Setting) -> Tensor:
    of = [s.model.head.weight, s.model.head.bias]
    each = [torch.autograd.grad(s.risk(e), of, create_graph=True) for e in range(E)]
    return torch.stack([torch.stack([g.square().sum() for g in gradients]).sum() for gradients in each]).mean()


def iga(s: Setting) -> Tensor:
    each = [torch.autograd.grad(s.risk(e), list(s.parameters.values()), create_graph=True) for e in range(E)]
    flat = [torch.cat([g.flatten() for g in gradients]) for gradients in each]
    mean = sum(flat) / E
    return torch.stack([(g - mean).square().sum() for g in flat]).sum()


def fishr(s: Setting) -> Tensor:
    """Compute the penalty from per-example gradients, at the first step of the running mean: divided by 1 - γ."""
    variances = []
    for e in range(E):
        rows = []
        for i in range(B):
            loss = s.loss(s.logits(e)[i : i + 1], s.y[e][i : i + 1])
            gradients = torch.autograd.grad(loss, [s.model.head.weight, s.model.head.bias], create_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
        g = torch.stack(rows)
        variances.append(((g - g.mean(0)) ** 2).mean(0))
    mean = torch.stack(variances).mean(0)
    return torch.stack([((v - mean) ** 2).mean() for v in variances]).mean()


def coral(s: Setting) -> Tensor:
    total = []
    for i, j in combinations(range(E), 2):
        a, b = s.features(i), s.features(j)
        means = (a.mean(0) - b.mean(0)).square().mean()
        total.append(means + (torch.cov(a.T) - torch.cov(b.T)).square().mean())
    return torch.stack(total).mean()


def mmd(s: Setting) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b[None]).square().sum(-1)
        return sum(((-g * squares).exp() for g in (1e-3, 1e-2, 1e-1, 1, 10, 100, 1000)), torch.zeros(())).mean()

    pairs = [(s.features(i), s.features(j)) for i, j in combinations(range(E), 2)]
    return torch.stack([kernel(a, a) + kernel(b, b) - 2 * kernel(a, b) for a, b in pairs]).mean()


def bottleneck(s: Setting, on: str = "features") -> Tensor:
    return torch.stack([getattr(s, on)(e).var(0).mean() for e in range(E)]).mean()


def example_losses(s: Setting) -> Tensor:
    rows = [[s.loss(s.logits(e)[i : i + 1], s.y[e][i : i + 1]) for i in range(B)] for e in range(E)]
    return torch.stack([torch.stack(row) for row in rows])


def rdm(s: Setting) -> Tensor:
    """Compute both terms, with weights of 0.7 and 0.3; the test multiplies by the first."""
    losses = example_losses(s)
    worst, every = losses[int(losses.mean(1).argmax())], losses.flatten()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        squares = (a[:, None] - b[None]).square()
        return torch.stack([(-(10.0**power) * squares).exp().mean() for power in range(-4, 4)]).sum()

    matching = kernel(worst, worst) + kernel(every, every) - 2 * kernel(worst, every)
    return matching + 0.3 / WEIGHT * (every.var() + worst.var())


def cad(s: Setting, conditional: bool = False, flipped: bool = True, normalised: bool = False) -> Tensor:
    phi = torch.cat([s.features(e) for e in range(E)])
    if normalised:
        phi = phi / phi.norm(dim=1, keepdim=True)
    y, d = s.y.flatten().tolist(), [e for e in range(E) for _ in range(B)]
    temperature, terms = 0.05, []
    for i in range(E * B):
        others = [k for k in range(E * B) if k != i and (y[k] == y[i] or not conditional)]
        told = [k for k in others if (d[k] != d[i]) == flipped]
        if told and any(y[k] == y[i] for k in range(E * B) if k != i):
            below = torch.stack([(phi[i] @ phi[k] / temperature).exp() for k in others]).sum()
            above = torch.stack([(phi[i] @ phi[k] / temperature).exp() for k in told]).sum()
            terms.append((above / below).log())
    return (-1 if flipped else 1) * temperature / 0.07 * torch.stack(terms).mean()


def parts_of_causirl(s: Setting) -> tuple[Tensor, Tensor]:
    """Cut each environment where the method's draw says."""
    state = Composition(made("causirl", {})).initial_state(s.parameters, E)["causirl"]
    first, second = [], []
    for e in range(E):
        number = uniform(state, 0, torch.tensor([e]), like=s.x)
        cut = int(number.item() * B)
        first.append(s.features(e)[:cut])
        second.append(s.features(e)[cut:])
    return torch.cat(first), torch.cat(second)


def causirl_coral(s: Setting) -> Tensor:
    a, b = parts_of_causirl(s)
    assert min(len(a), len(b)) > 1
    return (a.mean(0) - b.mean(0)).square().mean() + (torch.cov(a.T) - torch.cov(b.T)).square().mean()


def causirl_mmd(s: Setting) -> Tensor:
    a, b = parts_of_causirl(s)
    return kernel_mean(a, a) + kernel_mean(b, b) - 2 * kernel_mean(a, b)


def kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    squares = (a[:, None] - b[None]).square().sum(-1)
    return torch.stack([(-(10.0**power) * squares).exp().mean() for power in range(-3, 4)]).sum()


def transfer(s: Setting, radius: float = 0.05) -> Tensor:
    """Climb with a copy of the head by autograd, inside the ball; three steps of size 0.5."""
    head, other = s.model.head, copy.deepcopy(s.model.head)
    for _ in range(3):
        risks = torch.stack([s.loss(other(s.features(e).detach()), s.y[e]) for e in range(E)])
        for value, g in zip(
            other.parameters(), torch.autograd.grad(risks.max() - risks.min(), list(other.parameters())), strict=True
        ):
            value.data += 0.5 * WEIGHT * g
        pairs = list(zip(other.parameters(), head.parameters(), strict=True))
        norm = sum((a - b).square().sum().item() for a, b in pairs) ** 0.5
        if norm > radius:
            for a, b in pairs:
                a.data = b.data + radius / norm * (a.data - b.data)
    risks = torch.stack([F.linear(s.features(e), other.weight.detach(), other.bias.detach()) for e in range(E)])
    each = torch.stack([s.loss(logits, s.y[e]) for e, logits in enumerate(risks)])
    return each.max() - each.min()


PLAIN = {"anneal_steps": 0}
CLASSES_ONLY = ("cad", "transfer")
"""Methods that need labels."""
CLIMB = {"ascent_steps": 3, "ascent_rate": 0.5}
PENALTIES: dict[str, tuple[str, dict[str, Any], Naive]] = {
    "irmv1": ("irmv1", PLAIN, irm),
    "irmv1 with offset": ("irmv1", PLAIN | {"classifier": "scale_and_offset"}, lambda s: irm(s, offset=True)),
    "irmv1 on the head": ("irmv1", PLAIN | {"classifier": "head"}, lambda s: irm(s, head=True)),
    "irmv1 split": ("irmv1", PLAIN | {"classifier": "split"}, irm_split),
    "irmv1 unbiased": ("irmv1", PLAIN | {"estimate": "unbiased"}, irm_unbiased),
    "vrex": ("vrex", PLAIN, lambda s: ((s.risks() - s.risks().mean()) ** 2).mean()),
    "mm_rex": ("mm_rex", PLAIN | {"convention": "plain"}, lambda s: s.risks().max() - s.risks().mean()),
    "iga": ("iga", {}, iga),
    "fishr": ("fishr", PLAIN, fishr),
    "ib_erm": ("ib_erm", PLAIN, bottleneck),
    "ib_erm on the prediction": ("ib_erm", PLAIN | {"on": "prediction"}, lambda s: bottleneck(s, "logits")),
    "sd": ("sd", {}, lambda s: torch.stack([s.logits(e) for e in range(E)]).square().mean()),
    "coral": ("coral", {}, coral),
    "mmd": ("mmd", {}, mmd),
    "rdm": ("rdm", PLAIN | {"variance_weight": 0.3}, rdm),
    "cad": ("cad", {"temperature": 0.05}, cad),
    "cad by label": ("cad", {"temperature": 0.05, "conditional": True}, lambda s: cad(s, conditional=True)),
    "cad of the same": ("cad", {"temperature": 0.05, "flipped": False}, lambda s: cad(s, flipped=False)),
    "cad on the sphere": ("cad", {"temperature": 0.05, "normalised": True}, lambda s: cad(s, normalised=True)),
    "causirl": ("causirl", {}, causirl_coral),
    "causirl by a kernel": ("causirl", {"distance": "mmd"}, causirl_mmd),
    "transfer": ("transfer", CLIMB | {"radius": 0.05}, transfer),
    "transfer far inside the ball": ("transfer", CLIMB | {"radius": 1e3}, lambda s: transfer(s, 1e3)),
}
TASKS = {"logistic": BinaryClassification(), "three classes": Classification(3), "regression": Regression("")}
WEIGHT = 0.7


def made(name: str, values: dict[str, Any]) -> dict[str, Method]:
    return {name: METHODS.load(name).parse(values, "method")}


def assert_gradient(step: Step, objective: Tensor, s: Setting, scale: float = 1.0) -> None:
    expected = torch.autograd.grad(objective, list(s.parameters.values()), allow_unused=True)
    for (name, gradient), g in zip(step.gradients.items(), expected, strict=True):
        assert torch.allclose(gradient, scale * (torch.zeros_like(gradient) if g is None else g), atol=1e-10), name


@pytest.mark.parametrize("strategy", ["joint", "loop", "vmap"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("case", PENALTIES)
def test_penalties_are_their_formulas(case: str, task: str, strategy: Strategy) -> None:
    name, values, naive = PENALTIES[case]
    if name in CLASSES_ONLY and task == "regression":
        return
    s = Setting(TASKS[task])
    step = s.step(made(name, values | {"weight": WEIGHT}), strategy)
    penalty = naive(s)
    assert torch.allclose(step.penalty, WEIGHT * penalty, atol=1e-12)
    assert torch.allclose(step.risks, s.risks(), atol=1e-12)
    assert_gradient(step, s.risks().mean() + WEIGHT * penalty, s)


@pytest.mark.parametrize("task", TASKS)
def test_the_bottleneck_of_ib_irm_adds_to_irm(task: str) -> None:
    s = Setting(TASKS[task])
    parts = made("ib_irm", {"weight": 2, "bottleneck_weight": 3, "anneal_steps": 0, "bottleneck_anneal_steps": 0})
    assert_gradient(s.step(parts), s.risks().mean() + 2 * irm(s) + 3 * bottleneck(s), s)


@pytest.mark.parametrize(
    ("convention", "weight", "relative", "scale"),
    [
        ("plain", 4.0, 4.0, 1.0),
        ("rescaled", 4.0, 4.0, 1 / 4),
        ("rescaled", 0.25, 0.25, 1.0),
        ("divided", 4.0, 4.0, 1 / 4),
        ("convex", 0.8, 4.0, 0.2),
    ],
)
def test_weighting_conventions(convention: str, weight: float, relative: float, scale: float) -> None:
    """R + λP, the same over max(λ, 1), the same over λ, (1 - λ) R + λ P."""
    s = Setting(BinaryClassification())
    parts = made("vrex", {"weight": weight, "convention": convention, "anneal_steps": 0})
    method = Composition(parts)
    assert_gradient(s.step(parts), s.risks().mean() + relative * s.risks().var(correction=0), s)
    assert float(method.scale(method.initial_state(s.parameters, E))) == pytest.approx(scale)


def test_annealing_and_restarts() -> None:
    s = Setting(BinaryClassification())
    parts = made("vrex", {"weight": 9.0, "weight_before": 0.5, "anneal_steps": 2})
    method = Composition(parts)
    assert method.restarts == (2,)
    state = method.initial_state(s.parameters, E)
    for weight in (0.5, 0.5, 9.0, 9.0):
        step = s.step(parts, state=state)
        assert torch.allclose(step.penalty, weight * s.risks().var(correction=0))
        state = method.advance(step.state)
    assert not Composition(made("vrex", {"anneal_steps": 2, "reset_optimizer": False})).restarts


@pytest.mark.parametrize("name", ["irmv1", "vrex", "mm_rex", "iga", "fishr", "ib_erm", "sd", "coral", "mmd"])
@pytest.mark.parametrize("task", TASKS)
def test_weight_zero_is_erm_bit_for_bit(name: str, task: str) -> None:
    s = Setting(TASKS[task])
    values = {"weight": 0.0} | (PLAIN if name in ("irmv1", "vrex", "mm_rex", "fishr", "ib_erm") else {})
    step, erm = s.step(made(name, values)), s.step(made("erm", {}))
    tolerance = 1e-13 if name == "iga" else 0  # its environments have passes of their own
    for key, gradient in erm.gradients.items():
        torch.testing.assert_close(step.gradients[key], gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["irmv1", "vrex", "mm_rex", "iga", "fishr", "coral", "mmd"])
def test_identical_environments_cost_nothing(name: str) -> None:
    """Where environments are compared; IRMv1 penalises a single one as well, unless its classifier is optimal."""
    s = Setting(Regression(""))
    s.x, s.y = s.x[:1].expand(E, B, D), s.y[:1].expand(E, B)
    if name == "irmv1":
        with torch.no_grad():
            best = torch.linalg.lstsq(torch.cat([s.features(0), torch.ones(B, 1)], 1), s.y[0][:, None]).solution
            s.model.head.weight.copy_(best[:-1].T)
            s.model.head.bias.copy_(best[-1])
    step = s.step(made(name, PLAIN if name in ("irmv1", "vrex", "mm_rex", "fishr") else {}))
    assert step.penalty.abs() < 1e-12


def test_mm_rex_is_the_worst_affine_combination() -> None:
    """max of Σ w_e R_e over weights that sum to 1 and are at least λ_min, with β = 1 - E λ_min."""
    s, weight = Setting(BinaryClassification()), 4.0
    smallest = (1 - weight) / E
    corners = [[1 - (E - 1) * smallest if i == e else smallest for i in range(E)] for e in range(E)]
    worst = (torch.tensor(corners, dtype=torch.float64) @ s.risks()).max()
    step = s.step(made("mm_rex", PLAIN | {"weight": weight, "convention": "plain"}))
    assert torch.allclose(step.objective, worst)


@pytest.mark.parametrize("strategy", ["joint", "loop", "vmap"])
def test_group_dro_step_by_step(strategy: Strategy) -> None:
    s = Setting(BinaryClassification())
    parts = made("group_dro", {"rate": 0.5})
    q = torch.ones(E, dtype=torch.float64)
    state = Composition(parts).initial_state(s.parameters, E)
    for _ in range(3):
        step = s.step(parts, strategy, state)
        risks = s.risks()
        q = q * torch.exp(0.5 * risks.detach())
        q = q / q.sum()
        assert torch.allclose(step.state["group_dro"]["weights"], q)
        assert_gradient(step, (q * risks).sum(), s)
        state = step.state


def test_group_dro_with_some_of_the_environments() -> None:
    """Their weights alone change, and the objective estimates the whole sum."""
    method = METHODS.load("group_dro")(rate=1.0)
    state = {"weights": torch.full((4,), 0.25, dtype=torch.float64)}
    risks, env = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([3, 1])
    value, after = method.risk(risks, env, state)
    q = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64) * torch.tensor([0.0, 2.0, 0.0, 1.0]).double().exp()
    q = q / q.sum()
    assert torch.allclose(after["weights"], q)
    assert torch.allclose(value, 2 * (q[3] * 1.0 + q[1] * 2.0))


@pytest.mark.parametrize("steps", [3])
def test_fishr_remembers_the_variances(steps: int) -> None:
    s, memory = Setting(BinaryClassification()), 0.6
    parts = made("fishr", PLAIN | {"memory": memory, "weight": 1.0})
    state = Composition(parts).initial_state(s.parameters, E)
    running: list[Tensor] = []
    for number in range(steps):
        s.x = torch.randn(E, B, D, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        now = []
        for e in range(E):
            delta = torch.sigmoid(s.logits(e)[:, 0]) - s.y[e]
            rows = delta[:, None] * torch.cat([s.features(e), torch.ones(B, 1)], 1)
            now.append(((rows - rows.mean(0)) ** 2).mean(0))
        before = [r.detach() for r in running] or [torch.zeros_like(v) for v in now]
        running = [(1 - memory) * v + memory * r for v, r in zip(now, before, strict=True)]
        corrected = torch.stack(running) / (1 - memory)
        step = s.step(parts, state=state)
        expected = ((corrected - corrected.mean(0)) ** 2).mean()
        assert torch.allclose(step.penalty, expected)
        assert_gradient(step, s.risks().mean() + expected, s)
        state = step.state


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), order=st.permutations(range(E)))
@pytest.mark.parametrize("case", PENALTIES)
def test_environments_in_any_order(case: str, seed: int, order: list[int]) -> None:
    name, values, _ = PENALTIES[case]
    s = Setting(BinaryClassification(), seed)
    first = s.step(made(name, values))
    s.x, s.y, s.env = s.x[order], s.y[order], s.env[order]
    second = s.step(made(name, values))
    assert torch.allclose(first.objective, second.objective, atol=1e-10)
    for key, gradient in first.gradients.items():
        assert torch.allclose(second.gradients[key], gradient, rtol=1e-8, atol=1e-8)


def test_a_network_without_representation_is_an_error() -> None:
    s = Setting(BinaryClassification())
    s.model = nn.Linear(D, 1).double()  # type: ignore[assignment]
    with pytest.raises(UserError, match="coral needs the representation"):
        s.step(made("coral", {}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"convention": "convex", "weight": 2.0, "anneal_steps": 0}, "weights must be below 1"),
        ({"convention": "divided", "weight": 0.0, "anneal_steps": 0}, "weights must be above 0"),
    ],
)
def test_weights_that_a_convention_cannot_have(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        METHODS.load("vrex").parse(values, "method")
