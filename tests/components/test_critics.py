"""Second players: what they estimate, what they hand to the network, and that they leave it alone otherwise."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from cells import curves_of, load, objective_of, small_config
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from invbench.components.critic import Examples, largest_singular_value, partners, partners_of_all
from invbench.core.data import Batch, Problem, Split
from invbench.core.method import Outputs, State
from invbench.core.task import BinaryClassification
from invbench.errors import UserError
from invbench.methods.adversary import Categories, MixtureDensity
from invbench.methods.mutual_information import MutualInformation, hsic
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report

CRITIC = {
    "method.pretrain_steps": 0,
    "method.critic_width": 32,
    "method.critic_learning_rate": 1e-3,
    "method.standardise_score": False,
    "trainer.batch_size": 512,
}


class Score(nn.Module):
    """The input itself as logit, so that what a critic ought to find is known."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Outputs:
        return Outputs(self.scale * x)


def gaussians(rho: float, count: int, seed: int) -> Split:
    """Score and nuisance with this correlation: they share -½ log(1 - ρ²) nats."""
    generator = torch.Generator().manual_seed(seed)
    a, noise = torch.randn(2, count, generator=generator)
    return Split(a[:, None], (a > 0).float(), nuisance=rho * a + math.sqrt(1 - rho**2) * noise)


def training_on(train: Split, tmp_path: Path, method: str = "mutual_information", **settings: Any) -> TrainingLoop:
    """Start a run on these examples, with a network that returns its input."""
    config = small_config(method, "mi_toy", **{k.replace(".", "__"): v for k, v in CRITIC.items()} | settings)
    problem = Problem({"train": train, "test": train}, BinaryClassification(), "vector", "synthetic")
    return TrainingLoop(config, problem, Score(), RunFolder(tmp_path), "", 0)


def whole(split: Split) -> tuple[Outputs, Batch]:
    """Return the outputs and the batch of all examples, as one environment."""
    nuisance = None if split.nuisance is None else split.nuisance[None]
    return Outputs(split.x[None]), Batch(split.x[None], split.y[None], torch.zeros(1, dtype=torch.int64), nuisance)


def learned(training: TrainingLoop, updates: int) -> dict[str, Any]:
    """Return the state of the method after the critic's warm-up."""
    ((name, critic),) = training.critics.critics.items()
    state = training.method_state
    for step in range(updates // 500):  # many steps in the place of one warm-up: partners change all the same
        first = training.critics.updates_before(critic, step)
        state = training.critics._updates(name, training.parameters, state, step, range(first, first + 500))
    return state


@pytest.mark.parametrize("rho", [0.6, *(pytest.param(rho, marks=pytest.mark.slow) for rho in (0.3, 0.9))])
@pytest.mark.parametrize("estimator", ["donsker_varadhan", "nwj", "jsd"])
def test_bounds_reach_the_closed_form(rho: float, estimator: str, tmp_path: Path) -> None:
    """Within 10 %, on other examples. A critic of jsd ends at the log-ratio too, so it serves donsker_varadhan."""
    training = training_on(gaussians(rho, 200_000, 0), tmp_path, method__estimator=estimator, method__weight=1.0)
    state = learned(training, 500)["mutual_information"]
    test = gaussians(rho, 200_000, 1)
    critic = training.objective.critic_functions({"mutual_information": state})["mutual_information"]
    measure = MutualInformation(estimator="nwj" if estimator == "nwj" else "donsker_varadhan", standardise_score=False)
    with torch.no_grad():
        actual = -measure.critic_loss(critic, *whole(test), state)[0].item()
    assert actual == pytest.approx(-0.5 * math.log(1 - rho**2), rel=0.1)


@pytest.mark.parametrize("estimator", ["donsker_varadhan", "nwj", "jsd", "infonce"])
def test_nothing_in_nothing_out(estimator: str, tmp_path: Path) -> None:
    form = "minmax" if estimator == "infonce" else "kl"
    training = training_on(gaussians(0.0, 50_000, 0), tmp_path, method__estimator=estimator, method__penalty_form=form)
    state = learned(training, 500)
    test = gaussians(0.0, 10_000, 1)
    loss = training.critics.losses(Outputs(test.x), test, state)
    assert abs(loss["critic_loss"]) < 0.02


def bound(estimator: str, joint: Tensor, product: Tensor) -> float:
    """Compute the bound by its definition, number by number."""
    t, s = joint.tolist(), product.tolist()
    n = len(t)
    if estimator == "donsker_varadhan":
        return sum(t) / n - math.log(sum(math.exp(x) for x in s) / n)
    if estimator == "nwj":
        return sum(t) / n - sum(math.exp(x - 1) for x in s) / n
    softplus = [math.log(1 + math.exp(-x)) for x in t], [math.log(1 + math.exp(x)) for x in s]
    return math.log(4) - sum(softplus[0]) / n - sum(softplus[1]) / n


@pytest.mark.parametrize("form", ["kl", "minmax", "heuristic", "combined"])
@pytest.mark.parametrize("estimator", ["donsker_varadhan", "nwj", "jsd"])
def test_values_and_penalties_by_definition(estimator: str, form: str) -> None:
    method = MutualInformation(estimator=estimator, penalty_form=form, weight=1.0, standardise_score=False)
    split = gaussians(0.8, 40, 0).to(torch.device("cpu"), torch.float64)
    outputs, batch = whole(split)

    def critic(score: Tensor, nuisance: Tensor, label: Tensor | None) -> Tensor:
        return (score[:, 0] * nuisance[:, 0]).tanh() + 0.3 * nuisance[:, 0]

    state = method.initial_state({"w": split.x}, 1) | {
        k: torch.zeros((), dtype=torch.int64) for k in ("step", "critic_updates")
    }
    other = partners_of_all(40, torch.zeros((), dtype=torch.int64))
    z = split.nuisance
    assert z is not None
    joint, product = (critic(split.x, z[rows][:, None], None) for rows in (torch.arange(40), other))
    value = bound(estimator, joint, product)
    heuristic = sum(math.log(1 + math.exp(-x)) for x in product.tolist()) / 40
    expected = {
        "kl": joint.mean().item() - (estimator == "nwj"),
        "minmax": max(value, 0),
        "heuristic": heuristic,
        "combined": max(value + heuristic, 0),
    }
    assert method.critic_loss(critic, outputs, batch, state)[0].item() == pytest.approx(-value)
    assert method.critic_penalty(critic, outputs, batch, state)[0].item() == pytest.approx(expected[form])


def test_infonce_by_definition() -> None:
    method = MutualInformation(estimator="infonce", penalty_form="minmax", negatives=3, standardise_score=False)
    split = gaussians(0.8, 10, 0).to(torch.device("cpu"), torch.float64)
    outputs, batch = whole(split)
    z, zero = split.nuisance, torch.zeros((), dtype=torch.int64)
    assert z is not None

    def critic(score: Tensor, nuisance: Tensor, label: Tensor | None) -> Tensor:
        return score[:, 0] * nuisance[:, 0]

    total = 0.0
    for i in range(10):
        others = [int(partners_of_all(10, zero + k)[i]) for k in range(3)]
        values = [math.exp(split.x[i, 0] * z[j]) for j in (i, *others)]
        total += math.log(values[0] / (sum(values) / 4)) / 10
    loss, _ = method.critic_loss(critic, outputs, batch, {"critic_updates": zero, "step": zero})
    assert loss.item() == pytest.approx(-total)


def test_hsic_is_the_distance_between_joint_and_product() -> None:
    """Against all N⁴ terms of its definition, on few points."""
    score, nuisance = torch.randn(2, 5, 1, dtype=torch.float64)
    actual = hsic(Examples(score, nuisance, None, None)).item()
    expected = 0.0
    for width in (1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0):
        k, m = ((-((v - v.T) ** 2) / (2 * width**2)).exp() for v in (score, nuisance))
        expected += (k * m).mean().item() + k.mean().item() * m.mean().item()
        expected -= 2 * sum(k[i, j].item() * m[i, q].item() for i in range(5) for j in range(5) for q in range(5)) / 125
    assert actual == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        *(("mutual_information", {"method__penalty_form": form}) for form in ("kl", "minmax", "heuristic", "combined")),
        ("mutual_information", {"method__estimator": "mmd", "method__penalty_form": "minmax"}),
        ("mutual_information", {"method__condition_on_label": "each", "method__critic_spectral_norm": True}),
        ("mutual_information", {"method__condition_on_label": "background", "method__on": "representation"}),
        ("adversary", {}),
        ("adversary", {"method__density": "bins", "method__condition_on_label": "background"}),
    ],
)
def test_penalty_gradients_against_finite_differences(method: str, settings: dict[str, Any]) -> None:
    config = small_config(method, "mi_toy", backbone__activation="tanh", **settings)
    objective, parameters, batch, state = objective_of(config, "joint")
    names = sorted(parameters)
    direction = {name: torch.randn_like(parameters[name]) for name in names}

    def value(size: float) -> float:
        moved = {name: (parameters[name] + size * direction[name]).detach().requires_grad_() for name in names}
        return objective.step(moved, batch, state).objective.item()

    step = objective.step(parameters, batch, state)
    slope = sum((step.gradients[name] * direction[name]).sum().item() for name in names)
    assert slope == pytest.approx((value(1e-5) - value(-1e-5)) / 2e-5, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (5, 5), (1, 4)])
def test_the_spectral_norm_of_a_gpu_is_that_of_the_cpu(shape: tuple[int, int]) -> None:
    """Alone and mapped over runs; its gradient is u vᵀ."""
    matrices = torch.randn(4, *shape, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.allclose(torch.func.vmap(largest_singular_value)(matrices), values[:, 0])
    for matrix, u, v in zip(matrices, left[..., 0], right[:, 0], strict=True):
        assert torch.allclose(torch.func.grad(largest_singular_value)(matrix), torch.outer(u, v), atol=1e-6)


def test_input_gradient_penalty_against_finite_differences() -> None:
    """γ/2 (E (1-D)² |∇T|² + E D² |∇T'|²), with gradients from differences of the critic itself."""
    gamma = 0.7
    plain, extra = (
        MutualInformation(estimator="jsd", gradient_penalty_weight=w, standardise_score=False) for w in (0.0, gamma)
    )
    split = gaussians(0.5, 12, 0).to(torch.device("cpu"), torch.float64)
    zero = torch.zeros((), dtype=torch.int64)
    state, z = {"critic_updates": zero, "step": zero}, split.nuisance
    assert z is not None

    def critic(score: Tensor, nuisance: Tensor, label: Tensor | None) -> Tensor:
        return (score[:, 0] * 1.3 + 0.2).sin() * nuisance[:, 0] + nuisance[:, 0] ** 2

    actual = extra.critic_loss(critic, *whole(split), state)[0] - plain.critic_loss(critic, *whole(split), state)[0]
    expected, h = 0.0, 1e-6
    for rows, sign in ((torch.arange(12), -1), (partners_of_all(12, zero), 1)):
        a, b = split.x, z[rows][:, None]
        da = (critic(a + h, b, None) - critic(a - h, b, None)) / (2 * h)
        db = (critic(a, b + h, None) - critic(a, b - h, None)) / (2 * h)
        weight = (1 / (1 + (-sign * critic(a, b, None)).exp())) ** 2
        expected += (weight * (da**2 + db**2)).mean().item()
    assert actual.item() == pytest.approx(gamma / 2 * expected, rel=1e-6)


def test_the_corrected_gradient_is_less_biased() -> None:
    """Mean over many small batches of the gradient by the critic's weight, against that of the whole population."""
    z = gaussians(0.9, 100_000, 0).to(torch.device("cpu"), torch.float64)
    assert z.nuisance is not None

    def slope(method: MutualInformation, split: Split, state: State) -> tuple[float, State]:
        w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        loss, after = method.critic_loss(lambda a, b, _: w * a[:, 0] * b[:, 0], *whole(split), state)
        return torch.autograd.grad(loss, w)[0].item(), after

    plain = MutualInformation(standardise_score=False)
    corrected = MutualInformation(standardise_score=False, moving_average=0.01)
    zero = torch.zeros((), dtype=torch.int64)
    first = plain.initial_state({"w": z.x}, 1) | {"step": zero, "critic_updates": zero}
    truth, _ = slope(plain, z, first)
    means = {}
    for name, method in (("plain", plain), ("corrected", corrected)):
        state, total = first, 0.0
        for number in range(3000):
            rows = slice(16 * (number % 6000), 16 * (number % 6000) + 16)
            value, state = slope(method, z.rows(rows), state)
            state = state | {"critic_updates": state["critic_updates"] + 1}
            total += value * (number >= 500) / 2500  # once the mean has settled
        means[name] = abs(total - truth)
    assert means["corrected"] < 0.5 * means["plain"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("adversary", {}),
        ("adversary", {"method__gradient_reversal": True}),
        ("mutual_information", {}),
        ("mutual_information", {"method__estimator": "mmd", "method__penalty_form": "minmax"}),
    ],
)
def test_weight_zero_is_erm_to_the_last_bit(method: str, settings: dict[str, Any], tmp_path: Path) -> None:
    """Also where the network draws numbers and keeps running means."""
    network = {"backbone__batch_norm": True, "backbone__dropout": 0.3}
    curves, parameters = [], []
    for name, overrides in (("erm", {}), (method, {"method__weight": 0.0, **settings})):
        config = small_config(name, "mi_toy", backbone__depth=2, **network, **overrides)
        problem = load(config)
        folder = RunFolder(tmp_path / name)
        folder.path.mkdir()
        training = TrainingLoop(config, problem, build_model(config, problem), folder, "", 0)
        with Report("", training.total, folder.log, quiet=True) as report:
            training.run(report)
        parameters.append(training.model.state_dict())
        curves.append(curves_of(folder))
    for name, value in parameters[0].items():
        assert torch.equal(value, parameters[1][name]), name
    common = [name for name in curves[0].columns if name in set(curves[1].columns) - {"penalty"}]
    assert len(common) > 5
    pd.testing.assert_frame_equal(curves[0][common], curves[1][common], check_exact=True)


@given(st.integers(1, 40), st.integers(0, 200), st.integers(1, 3), st.integers(0, 1000))
def test_partners_are_others_of_the_same_group(count: int, shift: int, groups: int, seed: int) -> None:
    group = torch.randint(groups, (count,), generator=torch.Generator().manual_seed(seed))
    indices = partners(group, torch.tensor(shift))
    assert sorted(indices.tolist()) == list(range(count)), "every example is somebody's partner"
    assert torch.equal(group[indices], group)
    alone = torch.bincount(group, minlength=groups)[group] == 1
    assert torch.equal(indices == torch.arange(count), alone)
    if groups == 1:
        assert torch.equal(partners_of_all(count, torch.tensor(shift)), indices)


def test_partners_meet_everybody() -> None:
    met = torch.stack([partners_of_all(9, torch.tensor(shift)) for shift in range(8)])
    for example in range(9):
        assert sorted([example, *met[:, example].tolist()]) == list(range(9))


def test_the_mixture_is_a_density() -> None:
    """It integrates to one in the nuisance's own units, and two nuisances' densities multiply."""
    nuisance = 3 + 2 * torch.randn(1000, 1, dtype=torch.float64)
    density = MixtureDensity(nuisance, 4)
    parameters = torch.randn(1, density.inputs, dtype=torch.float64)
    grid = torch.linspace(-60, 60, 20_001, dtype=torch.float64)[:, None]
    values = density(parameters.expand(len(grid), -1), grid).exp()
    assert torch.trapezoid(values, grid[:, 0]).item() == pytest.approx(1, abs=1e-6)
    both = MixtureDensity(nuisance.repeat(1, 2), 4)
    joined = both(torch.cat([parameters, parameters], 1), torch.tensor([[1.0, 4.0]], dtype=torch.float64))
    each = [density(parameters, torch.tensor([[z]], dtype=torch.float64)) for z in (1.0, 4.0)]
    assert joined.item() == pytest.approx(sum(each).item())


def test_bins_are_quantiles() -> None:
    nuisance = torch.randn(8000, 1)
    edges = torch.quantile(nuisance, torch.linspace(0, 1, 5)[1:-1], 0).T
    bins = Categories(nuisance, edges)
    assert bins.inputs == 4
    uniform = bins(torch.zeros(8000, 4), nuisance)
    assert torch.allclose(uniform, torch.tensor(-math.log(4)))
    counts = torch.bincount(bins._index(nuisance)[:, 0])
    assert (counts - 2000).abs().max() <= 1


@pytest.mark.parametrize(
    ("method", "dataset", "settings", "message"),
    [
        ("adversary", "colored_digits", {"method__density": "bins"}, "needs a real nuisance"),
        ("adversary", "chain_sem", {"method__condition_on_label": "each"}, "needs labels"),
        ("adversary", "mi_toy", {"method__independent_of": "environment"}, "has no environments"),
        ("mutual_information", "spirals", {"method__independent_of": "nuisance"}, "has no nuisance"),
        ("mutual_information", "mi_toy", {"method__estimator": "infonce"}, "needs penalty_form minmax"),
        ("mutual_information", "mi_toy", {"method__estimator": "nwj", "method__moving_average": 0.1}, "varadhan only"),
    ],
)  # fmt: skip
def test_mistakes_are_one_clear_line(
    method: str, dataset: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        started(small_config(method, dataset, **settings), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["mutual_information", "adversary"])
@pytest.mark.parametrize(
    ("dataset", "settings"),
    [
        ("colored_digits", {"method__independent_of": "environment", "method__on": "representation"}),
        ("digits", {"method__condition_on_label": "each"}),
        ("tabular_nuisance", {"method__condition_on_label": "background"}),
    ],
)
def test_other_forms_run(method: str, dataset: str, settings: dict[str, Any], tmp_path: Path) -> None:
    training = started(small_config(method, dataset, **settings), tmp_path)
    before = training.method_state[method]["critic"]["weights"].clone()
    for _ in range(4):  # the first two are the network's alone
        training.step(training.next_batch())
    assert torch.isfinite(training.objective_sum)
    assert not torch.equal(before, training.method_state[method]["critic"]["weights"])


def started(config: RunConfig, folder: Path) -> TrainingLoop:
    """Return a run before its first step."""
    problem = load(config)
    return TrainingLoop(config, problem, build_model(config, problem), RunFolder(folder), "", 0)


def test_a_critic_waits_and_warms_up(tmp_path: Path) -> None:
    """No updates and no penalty in the first steps, then the warm-up, then so many a step; λ rises."""
    given = {"pretrain_steps": 2, "critic_warm_up": 5, "critic_steps": 3, "warm_up": 2, "weight": 1.0}
    training = started(small_config("adversary", "mi_toy", **{f"method__{k}": v for k, v in given.items()}), tmp_path)
    updates, penalties = [], []
    for _ in range(4):
        training.step(training.next_batch())
        updates.append(int(training.method_state["adversary"]["critic_updates"]))
        assert training.last is not None
        penalties.append(training.last.penalty.item())
    assert updates == [0, 0, 8, 11]
    assert penalties[:2] == [0, 0]
    assert penalties[2] < 0
    losses = training.method_state["adversary"]["critic_loss"].item()
    assert penalties[3] == pytest.approx(-losses, rel=0.3)
    assert penalties[2] == pytest.approx(penalties[3] / 2, rel=0.3)
