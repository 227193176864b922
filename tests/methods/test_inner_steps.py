"""Methods that make a step of other steps: SAM, MLDG, PGrad, GGA; and the noise of GGA-L. Each against loops."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import small_config
from torch import Tensor, nn

from invbench.components.draws import normal, uniform
from invbench.core.backbone import FeaturesAndHead
from invbench.core.composition import Composition
from invbench.core.data import Batch
from invbench.core.method import State
from invbench.core.registry import METHODS
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.core.trainer import Strategy
from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import resolve
from invbench.testing.cells import load
from invbench.training.build import build_model
from invbench.training.gradients import Objective, Step
from invbench.training.loop import TrainingLoop

E, B, D, RATE = 4, 6, 3, 0.05
TASKS = {"logistic": BinaryClassification(), "three classes": Classification(3)}
STRATEGIES: tuple[Strategy, ...] = ("joint", "loop", "vmap")
Values = dict[str, Tensor]


class Setting:
    """A small network, and a batch of four environments."""

    def __init__(self, task: Task, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.task = task
        x = torch.randn(E, B, D, generator=generator, dtype=torch.float64)
        drawn = torch.randint(2 if task.outputs == 1 else 3, (E, B), generator=generator)
        self.batch = Batch(x, drawn.double() if task.outputs == 1 else drawn, torch.arange(E))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = FeaturesAndHead(nn.Sequential(nn.Linear(D, 5), nn.Tanh()), nn.Linear(5, task.outputs)).double()

    @property
    def parameters(self) -> Values:
        return dict(self.model.named_parameters())

    def gradient(self, theta: Values, e: int, rows: slice = slice(None)) -> tuple[Tensor, Values]:
        """Compute risk and gradient of one environment at other parameters."""
        model = copy.deepcopy(self.model)
        with torch.no_grad():
            for name, value in model.named_parameters():
                value.copy_(theta[name])
        prediction = model(self.batch.x[e, rows]).prediction
        risk = self.task.losses(prediction, self.batch.y[e, rows]).mean()
        grads = torch.autograd.grad(risk, list(model.parameters()))
        return risk.detach(), dict(zip(theta, grads, strict=True))

    def step(self, name: str, strategy: Strategy, state: State | None = None, **values: Any) -> Step:
        method = composed(name, **values)
        state = state or method.initial_state(self.parameters, E)
        objective = Objective(method, self.task, self.model, strategy)
        return objective.step(self.parameters, self.batch, state, RATE)


def composed(name: str, **values: Any) -> Composition:
    """Make a composition; the values are those of its first part."""
    parts = {part: METHODS.load(part)() for part in name.split("+")}
    first = name.partition("+")[0]
    parts[first] = METHODS.load(first).parse(values, "method")
    return Composition(parts)


def flat(values: Values) -> Tensor:
    return torch.cat([value.detach().flatten() for value in values.values()])


def assert_close(ours: Values, theirs: Values, tolerance: float = 1e-10) -> None:
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)


def mean_of(each: list[Values]) -> Values:
    return {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("task", TASKS)
def test_sam_takes_the_gradient_at_the_worst_place(task: str, strategy: Strategy) -> None:
    s, radius = Setting(TASKS[task]), 0.3
    theta = s.parameters
    here = mean_of([s.gradient(theta, e)[1] for e in range(E)])
    norm = flat(here).norm()
    moved = {name: value.detach() + radius * here[name] / norm for name, value in theta.items()}
    step = s.step("sam", strategy, radius=radius)
    assert_close(step.gradients, mean_of([s.gradient(moved, e)[1] for e in range(E)]))
    assert step.risks.tolist() == pytest.approx([s.gradient(theta, e)[0].item() for e in range(E)])
    assert not step.start


@pytest.mark.parametrize("other", ["erm", "vrex", "and_mask", "group_dro", "coral"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sam_of_radius_zero_is_the_other_method_bit_for_bit(other: str, strategy: Strategy) -> None:
    s = Setting(BinaryClassification())
    step, alone = s.step(f"sam+{other}", strategy, radius=0.0), s.step(other, strategy)
    for name, gradient in alone.gradients.items():
        assert torch.equal(step.gradients[name], gradient)
    for name, value in alone.state[other].items():
        assert torch.equal(step.state[other][name], value), "the state has moved once"


@pytest.mark.parametrize("other", ["vrex", "and_mask", "irmv1"])
def test_sam_of_another_method(other: str) -> None:
    """Both passes have the other's objective and gradient rule."""
    s, radius = Setting(BinaryClassification()), 0.3
    here = s.step(other, "joint").gradients
    moved = copy.deepcopy(s)
    with torch.no_grad():
        for name, value in moved.model.named_parameters():
            value += radius * here[name] / flat(here).norm()
    assert_close(s.step(f"sam+{other}", "joint", radius=radius).gradients, moved.step(other, "joint").gradients)


def test_a_gradient_of_zero_is_no_division_by_zero() -> None:
    s = Setting(BinaryClassification())
    with torch.no_grad():
        for value in s.model.parameters():
            value.zero_()
    s.batch = s.batch._replace(y=torch.tensor([0.0, 1.0] * (B // 2), dtype=torch.float64).expand(E, B))
    assert all(torch.isfinite(g).all() for g in s.step("sam", "joint").gradients.values())


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(("tested", "beta"), [(1, 0.7), (2, 1.0), (2, 0.0), (9, 0.7)])
def test_mldg_pairs_environments(tested: int, beta: float, strategy: Strategy) -> None:
    """By loops: the last of a random order test, in turn, what a step of Adam for each other one has made."""
    s = Setting(Classification(3))
    theta = {name: value.detach() for name, value in s.parameters.items()}
    state = composed("mldg").initial_state(theta, E)
    order = uniform(state["mldg"], 0, torch.arange(E), like=s.batch.x).argsort().tolist()
    count = min(tested, E - 1)
    total = {name: torch.zeros_like(value) for name, value in theta.items()}
    for position, i in enumerate(order[: E - count]):
        j = order[E - count :][position % count]
        network = copy.deepcopy(s.model)
        optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
        first = s.gradient(theta, i)[1]
        for name, value in network.named_parameters():
            value.grad = first[name].clone()
        optimizer.step()
        second = s.gradient({name: value.detach() for name, value in network.named_parameters()}, j)[1]
        total = {name: g + (first[name] + beta * second[name]) / E for name, g in total.items()}
    step = s.step("mldg", strategy, state, weight=beta, meta_test=tested)
    assert_close(step.gradients, total, 1e-7)


def test_mldg_has_another_order_in_each_step_and_run() -> None:
    method = composed("mldg")
    orders = set()
    for seed in range(3):
        state = method.initial_state({"w": torch.zeros(1)}, E, seed)
        for _ in range(5):
            orders.add(tuple(uniform(state["mldg"], 0, torch.arange(E), like=torch.zeros(())).argsort().tolist()))
            state = method.advance(state)
    assert len(orders) > 5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_pgrad_step_by_step(strategy: Strategy) -> None:
    """Its walk by torch's Adam, whose moments last; its directions by numpy's singular values."""
    s, method, rate = Setting(Classification(3)), composed("pgrad", inner_learning_rate=0.02), 0.02
    state = method.initial_state(s.parameters, E)
    network = copy.deepcopy(s.model)
    optimizer = torch.optim.Adam(network.parameters(), lr=rate)
    for _ in range(2):
        network.load_state_dict(s.model.state_dict())
        walk = [flat(dict(network.named_parameters()))]
        for turn in range(3):
            rows = slice(turn * B // 3, (turn + 1) * B // 3)
            for e in uniform(state["pgrad"], turn, torch.arange(E), like=s.batch.x).argsort().tolist():
                gradients = s.gradient({n: v.detach() for n, v in network.named_parameters()}, e, rows)[1]
                for name, value in network.named_parameters():
                    value.grad = gradients[name].clone()
                optimizer.step()
                walk.append(flat(dict(network.named_parameters())))
        points = torch.stack(walk).numpy()
        _, singular, directions = np.linalg.svd(points - points.mean(0), full_matrices=False)
        way = points[0] - points[-1]
        top, values = directions[:4], singular[:4] ** 2
        top = top * np.sign(top @ way)[:, None]
        expected = np.linalg.norm(way) * (values / np.linalg.norm(values)) @ top
        step = s.step("pgrad", strategy, state, inner_learning_rate=rate)
        np.testing.assert_allclose(flat(step.gradients).numpy(), expected, atol=1e-9)
        state = method.advance(step.state)
        with torch.no_grad():
            for name, value in s.model.named_parameters():
                value -= 0.1 * step.gradients[name]


def smallest_cosine(each: list[Values]) -> float:
    rows = torch.nn.functional.normalize(torch.stack([flat(one) for one in each]), dim=1)
    cosines = rows @ rows.T
    return min(cosines[i, j].item() for i in range(E) for j in range(i))


@pytest.mark.parametrize("tolerance", [0.1, 0.0, 1e-3])
def test_gga_takes_better_candidates_only(tolerance: float) -> None:
    s, candidates, radius = Setting(BinaryClassification(), 3), 12, 0.3
    theta = {name: value.detach() for name, value in s.parameters.items()}
    state = composed("gga").initial_state(theta, E)
    body = [name for name in theta if not name.startswith("head.")]

    def at(values: Values) -> tuple[float, float, Values]:
        each = [s.gradient(values, e) for e in range(E)]
        gradients = [gradient for _, gradient in each]
        return smallest_cosine(gradients), torch.stack([risk for risk, _ in each]).mean().item(), mean_of(gradients)

    best, (agreement, risk, gradients) = theta, at(theta)
    taken = 0
    for candidate in range(candidates):
        sizes = [theta[name].numel() for name in body]
        drawn = uniform(state["gga"], candidate, torch.arange(sum(sizes)), like=s.batch.x)
        moved = dict(theta)
        for name, part in zip(body, (radius * (2 * drawn - 1)).split(sizes), strict=True):
            moved[name] = theta[name] + part.view_as(theta[name])
        cosine, loss, found = at(moved)
        if cosine > agreement and loss < risk + tolerance:
            best, agreement, risk, gradients, taken = moved, cosine, loss, found, taken + 1
    settings = {"candidates": candidates, "radius": radius, "tolerance": tolerance}
    step = s.step("gga", "joint", state, **settings)
    assert_close(step.start, best, 1e-12)
    assert_close(step.gradients, gradients, 1e-9)
    assert step.objective.item() == pytest.approx(risk)
    assert taken or tolerance == 0.0


def test_gga_searches_in_its_steps_only(tmp_path: Path) -> None:
    """Ahead of them and after them the run is ERM's, to the last bit."""
    settings = {"method__first_step": 2, "method__last_step": 3, "method__candidates": 4, "method__radius": 0.1}
    after = {}
    for name, more in (("erm", {}), ("gga", settings)):
        config = small_config(name, "spirals", **more)
        problem = load(config)
        training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(tmp_path), "", 0)
        after[name] = []
        for _ in range(4):
            training.step(training.next_batch())
            after[name].append(flat(training.parameters))
    assert [torch.equal(*pair) for pair in zip(*after.values(), strict=True)][:2] == [True, True]
    assert not torch.equal(after["erm"][2], after["gga"][2])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gga_l_adds_noise_where_environments_disagree(strategy: Strategy) -> None:
    s, scale = Setting(Classification(3)), 0.1
    each = [s.gradient(s.parameters, e)[1] for e in range(E)]
    rows = torch.nn.functional.normalize(torch.stack([flat(one) for one in each]), dim=1)
    cosines = [(rows[i] @ rows[j]).item() for i in range(E) for j in range(i)]
    state = composed("gga_l").initial_state(s.parameters, E)
    noise = normal(state["gga_l"], 0, torch.arange(rows.shape[1]), like=s.batch.x)
    expected = flat(mean_of(each)) + scale * (1 - np.mean(cosines)) * noise
    step = s.step("gga_l", strategy, state, scale=scale)
    torch.testing.assert_close(flat(step.gradients), expected, rtol=1e-9, atol=1e-12)


def test_gga_l_without_noise_is_erm() -> None:
    s = Setting(BinaryClassification())
    assert_close(s.step("gga_l", "vmap", scale=0.0).gradients, s.step("erm", "vmap").gradients, 1e-13)


@pytest.mark.parametrize("name", ["sam", "mldg", "pgrad", "gga", "gga_l"])
def test_environments_may_come_in_any_order(name: str) -> None:
    s = Setting(BinaryClassification())
    values = {"candidates": 5, "radius": 0.3} if name == "gga" else {}
    first = s.step(name, "joint", **values)
    order = torch.tensor([2, 0, 3, 1])
    s.batch = Batch(s.batch.x[order], s.batch.y[order], order)
    second = s.step(name, "joint", **values)
    assert_close(second.gradients, first.gradients, 1e-9)
    torch.testing.assert_close(second.risks, first.risks[order])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("mldg+coral", "mldg visits one environment at a time, so coral has none to compare with"),
        ("pgrad+mixup", "pgrad visits one environment at a time, so mixup has none to compare with"),
        ("mldg+and_mask", "and_mask and mldg both replace the mean of the gradients"),
        ("gga+group_dro", "group_dro and gga both replace the mean of the risks"),
        ("sam+mldg", "sam and mldg both replace the steps"),
        ("sam+fish", "sam and fish both replace the steps"),
        ("gga+pgrad", "gga and pgrad both replace the steps"),
        ("eqrm+group_dro", "eqrm and group_dro both replace the mean of the risks"),
        ("eqrm+rdm", "eqrm and rdm both replace the learning rate"),
    ],
)
def test_what_does_not_go_together(names: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        composed(names)


def test_what_compares_environments_where_the_data_have_nothing_else_is_refused_beside_one_that_visits_them() -> None:
    with pytest.raises(UserError, match="fish visits one environment at a time, so adversary has none to compare with"):
        resolve("fish+adversary", "spirals")
    resolve("fish+adversary", "tabular_nuisance", assignments={"dataset.environments": "nuisance_bins"})
