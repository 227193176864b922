"""Gradient rules against loops over plain numbers, and in runs: adaptive regularisation, SAND-mask, PCGrad, Fish."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cells import load, small_config
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from invbench.core.composition import Composition
from invbench.core.method import Method, State
from invbench.core.registry import METHODS
from invbench.errors import UserError
from invbench.methods.adareg import AdaReg
from invbench.methods.and_mask import ANDMask
from invbench.methods.inverse_adareg import InverseAdaReg
from invbench.methods.irmv1 import IRMv1
from invbench.methods.pcgrad import PCGrad, projected
from invbench.methods.sand_mask import SANDMask
from invbench.methods.simple_adareg import SimpleAdaReg
from invbench.methods.soft_adareg import SoftAdaReg
from invbench.runs.folder import RunFolder
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training.build import build_model
from invbench.training.loop import TrainingLoop
from invbench.training.runner import run_one

STEPS, SIZE = 6, 4


def walk(method: Method, risks: Tensor, penalties: Tensor) -> tuple[Tensor, list[State]]:
    """Return the rule's gradients and states for given gradients (steps, size) of mean risk and penalty."""
    state = method.initial_state({"w": risks[0]}, 2)
    combined, states = [], []
    for risk, penalty in zip(risks, penalties, strict=True):
        gradients, state = method.combine_moments({"w": (risk,)}, {"w": penalty}, state)
        combined.append(gradients["w"])
        states.append(state)
    return torch.stack(combined), states


def drawn(seed: int) -> tuple[Tensor, Tensor]:
    """Draw gradients of very different sizes, so that some fall below every threshold."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** torch.empty(2, STEPS, SIZE, dtype=torch.float64).uniform_(-5, 1, generator=generator)
    return tuple(size * torch.randn(2, STEPS, SIZE, generator=generator, dtype=torch.float64))  # type: ignore[return-value]


@settings(deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["adareg", "inverse_adareg"]))
def test_adareg_element_by_element(seed: int, name: str) -> None:
    risks, penalties = drawn(seed)
    inverse = name == "inverse_adareg"
    gradients, states = walk(InverseAdaReg() if inverse else AdaReg(), risks, penalties)
    for i in range(SIZE):
        weight, v = 1.0, 0.0
        for t in range(STEPS):
            e, p = float(risks[t, i]), float(penalties[t, i])
            g = weight * e + p if inverse else e + weight * p
            assert float(gradients[t, i]) == pytest.approx(g, rel=1e-12)
            v = 0.99 * v + 0.01 * g * g
            if v < 1e-5:
                weight = weight / 10 if inverse else weight * 10
            assert float(states[t]["weight"]["w"][i]) == pytest.approx(weight)
            assert float(states[t]["second_moment"]["w"][i]) == pytest.approx(v, rel=1e-10)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_simple_adareg(seed: int) -> None:
    risks, penalties = (1e-2 * part for part in drawn(seed))
    gradients, states = walk(SimpleAdaReg(), risks, penalties)
    weight = 1.0
    for t in range(STEPS):
        g = [float(e) + weight * float(p) for e, p in zip(risks[t], penalties[t], strict=True)]
        assert gradients[t].tolist() == pytest.approx(g, rel=1e-12)
        if sum(x * x for x in g) < 1e-5:
            weight *= 10
        assert float(states[t]["weight"]) == pytest.approx(weight)


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_soft_adareg_divides_by_what_was(seed: int) -> None:
    risks, penalties = drawn(seed)
    gradients, _ = walk(SoftAdaReg(), risks, penalties)
    for i in range(SIZE):
        v = 0.0
        for t in range(STEPS):
            g = float(risks[t, i]) + float(penalties[t, i]) / (math.sqrt(v) + 1e-15)
            assert float(gradients[t, i]) == pytest.approx(g, rel=1e-9)
            v = 0.99 * v + 0.01 * g * g


def test_weights_can_be_capped() -> None:
    zero = torch.zeros(STEPS, SIZE, dtype=torch.float64)
    for method in (AdaReg(largest_weight=500.0), SimpleAdaReg(largest_weight=500.0)):
        assert (
            float(
                walk(method, zero, zero)[1][-1]["weight"]["w"].max()
                if isinstance(method, AdaReg)
                else walk(method, zero, zero)[1][-1]["weight"]
            )
            == 500
        )
    assert float(walk(InverseAdaReg(smallest_weight=0.05), zero, zero)[1][-1]["weight"]["w"].min()) == 0.05
    first = walk(SoftAdaReg(largest_weight=3.0), zero, zero + 1)[0][0]
    assert torch.equal(first, torch.full_like(first, 3.0))


def test_an_adaptive_rule_is_typed_with_the_penalty_that_it_weighs() -> None:
    for alone in ("adareg", "soft_adareg", "and_mask+simple_adareg"):
        with pytest.raises(UserError, match=rf"weighs a penalty against the risk, .*such as irmv1\+{re.escape(alone)}"):
            resolve(alone, "spirals")
    assert resolve("irmv1+adareg", "spirals").spec.method_settings["irmv1"]["weight"] == 1
    given = {"method.irmv1.weight": 3.0}
    assert resolve("irmv1+adareg", "spirals", 0, given).spec.method_settings["irmv1"]["weight"] == 3
    recipe = resolve("irmv1", "irm_regression").spec.method_settings["irmv1"]["weight"]
    assert recipe == 1e5
    assert resolve("irmv1+adareg", "irm_regression").spec.method_settings["irmv1"]["weight"] == 1


def sand(stack: np.ndarray, threshold: float, steepness: float) -> np.ndarray:
    """Compute the rule one element at a time."""
    environments, size = stack.shape
    masks = np.zeros(size)
    for i in range(size):
        g = [float(value) for value in stack[:, i]]
        agreement = abs(sum((value > 0) - (value < 0) for value in g)) / environments
        mean = sum(g) / environments
        variance = sum((value - mean) ** 2 for value in g) / (environments - 1)
        above = steepness * (agreement - threshold)
        if variance == 0:
            masks[i] = 1e-17 if above == 0 else float(above > 0)
        else:
            masks[i] = max(0.0, math.tanh(above / variance))
    return masks * stack.mean(0) / (1e-10 + masks.mean())


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.integers(2, 5), st.booleans())
def test_sand_mask(seed: int, threshold: float, environments: int, same: bool) -> None:
    stack = np.random.default_rng(seed).normal(size=(environments, SIZE))
    if same:
        stack[:] = np.round(2 * stack[0]) / 2  # exact in floating point, so that the variance is exactly 0
    gradient = torch.from_numpy(stack)
    method = SANDMask(threshold=threshold)
    combined, _ = method.combine(
        {"w": gradient}, {"w": torch.zeros(SIZE, dtype=torch.float64)}, torch.arange(len(gradient)), {}
    )
    np.testing.assert_allclose(combined["w"].numpy(), sand(stack, threshold, 10.0), rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_pcgrad_projects_in_the_given_order(seed: int, environments: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(environments, 3, generator=generator, dtype=torch.float64)
    orders = torch.stack([torch.randperm(environments, generator=generator) for _ in range(environments)])
    expected = []
    for i in range(environments):
        h = g[i].clone()
        for j in orders[i].tolist():
            if j != i and h @ g[j] < 0:
                h = h - (h @ g[j]) / (g[j] @ g[j]) * g[j]
        expected.append(h)
    actual = projected(g @ g.T, orders) @ g
    assert torch.allclose(actual, torch.stack(expected), atol=1e-9)


def test_pcgrad_without_conflict_is_the_mean() -> None:
    g = torch.rand(4, 2, 3, dtype=torch.float64)
    combined, _ = PCGrad().combine({"w": g}, {"w": torch.zeros(2, 3, dtype=torch.float64)}, torch.arange(len(g)), {})
    assert torch.allclose(combined["w"], g.mean(0))


@pytest.mark.parametrize("order", ["random", "most_conflicting"])
def test_pcgrad_takes_out_what_two_environments_contradict(order: str) -> None:
    g = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64)
    g[1, 0] = -3
    combined, _ = PCGrad(order=order).combine(
        {"w": g}, {"w": torch.zeros(2, dtype=torch.float64)}, torch.arange(len(g)), {}
    )  # type: ignore[arg-type]
    first = g[0] - (g[0] @ g[1]) / (g[1] @ g[1]) * g[1]
    second = g[1] - (g[1] @ g[0]) / (g[0] @ g[0]) * g[0]
    assert torch.allclose(combined["w"], (first + second) / 2)


def test_fish_is_a_walk_and_a_part_of_the_way(tmp_path: Path) -> None:
    """Against torch's Adam, whose moments are kept from step to step."""
    config = small_config("fish", "spirals", trainer__dtype="float64", method__rate=0.3, trainer__weight_decay=0.0)
    problem = load(config, torch.float64)
    training = TrainingLoop(config, problem, build_model(config, problem).double(), RunFolder(tmp_path), "", 0)
    model = build_model(config, problem).double()
    adam = torch.optim.Adam(model.parameters(), lr=config.trainer.learning_rate)
    for _ in range(2):
        batch = training.next_batch()
        before = [p.detach().clone() for p in model.parameters()]
        for e in range(len(batch.env)):
            adam.zero_grad()
            problem.task.losses(model(batch.x[e]).prediction, batch.y[e]).mean().backward()
            adam.step()
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old + 0.3 * (p - old))
        training.step(batch)
    for ours, theirs in zip(training.parameters.values(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_fish_sees_one_environment_at_a_time() -> None:
    for other in ("vrex", "group_dro", "and_mask"):
        with pytest.raises(UserError, match="fish"):
            resolve(f"fish+{other}", "spirals")
    assert resolve("fish+sd", "spirals").method.one_per_environment


@given(st.integers(0, 1000), st.floats(0.5, 0.99))
def test_temporal_signs_are_a_running_mean(seed: int, memory: float) -> None:
    """One environment at a time: an element moves where the signs of the recent past agree."""
    generator = torch.Generator().manual_seed(seed)
    method = ANDMask(temporal_memory=memory, threshold=0.5, scale_by_inverse_sparsity=False)
    gradients = torch.randn(STEPS, 1, SIZE, generator=generator, dtype=torch.float64)
    composition = Composition({"and_mask": method})
    state = composition.initial_state({"w": torch.zeros(SIZE, dtype=torch.float64)}, 1)
    for t in range(STEPS):
        zero = {"w": torch.zeros(SIZE, dtype=torch.float64)}
        combined, state = composition.combine({"w": gradients[t]}, zero, torch.arange(len(gradients[t])), state)
        state = composition.advance(state)
        weights = torch.tensor([memory ** (t - s) for s in range(t + 1)], dtype=torch.float64)
        agreement = (weights[:, None] * gradients[: t + 1, 0].sign()).sum(0).abs() / weights.sum()
        expected = torch.where(agreement >= 0.5, gradients[t, 0], 0)
        near = (agreement - 0.5).abs() < 1e-9
        assert torch.equal(torch.where(near, 0, combined["w"]), torch.where(near, 0, expected))


def test_strict_and_normalised_as_in_the_unit_tests() -> None:
    """θ's gradient from each environment divided by its norm, kept where the sum of signs is above E τ."""
    g = torch.tensor([[[3.0, -4.0]], [[6.0, 8.0]]], dtype=torch.float64)
    bias = torch.tensor([[5.0], [7.0]], dtype=torch.float64)
    zero = {"head.weight": torch.zeros(1, 2).double(), "head.bias": torch.zeros(1).double()}
    method = ANDMask(threshold=0.9, strict=True, normalise=True, scale_by_inverse_sparsity=False)
    combined, _ = method.combine({"head.weight": g, "head.bias": bias}, zero, torch.arange(len(g)), {})
    assert torch.allclose(combined["head.weight"], torch.tensor([[0.6, 0.0]]).double())
    assert torch.allclose(combined["head.bias"], torch.tensor([6.0]).double())
    nothing, _ = ANDMask(threshold=1.0, strict=True).combine(
        {"w": bias}, {"w": zero["head.bias"]}, torch.arange(len(bias)), {}
    )
    assert nothing["w"] == 0


@pytest.mark.parametrize("method", [m for m in METHODS.entries() if "environments" in METHODS.traits(m)])
def test_one_environment_is_a_clear_error(method: str, tmp_path: Path) -> None:
    dataset = "chain_sem" if "regression" in METHODS.traits(method) else "spirals"
    dataset = "colored_digits" if "image" in METHODS.traits(method) else dataset
    config = small_config(method, dataset, trainer__environments_per_step=1)
    with pytest.raises(UserError, match="compares environments, but a step has only 1 of the data's"):
        run_one(config, Options(out=tmp_path))
    assert not list(tmp_path.iterdir())


def test_one_environment_under_a_temporal_mask(tmp_path: Path) -> None:
    config = small_config("and_mask", "spirals", trainer__environments_per_step=1, method__temporal_memory=0.9)
    assert run_one(config, Options(out=tmp_path)).status == "done"


def test_too_few_examples_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs at least 2 examples of an environment in a step, not 1"):
        run_one(small_config("coral", "spirals", trainer__batch_size=1), Options(out=tmp_path))


def test_the_optimiser_forgets_where_the_weight_changes(tmp_path: Path) -> None:
    """Until the restart and from it on, steps are those of a fresh Adam each."""
    values = {"method__anneal_steps": 2, "method__weight": 3.0, "trainer__dtype": "float64"}
    config = small_config("vrex", "spirals", **values, trainer__weight_decay=0.01, trainer__learning_rate=0.01)
    problem = load(config, torch.float64)
    training = TrainingLoop(config, problem, build_model(config, problem).double(), RunFolder(tmp_path), "", 0)
    model = build_model(config, problem).double()
    for number in range(3):
        if number in (0, 2):
            adam = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=0.01)
        batch = training.next_batch()
        risks = torch.stack(
            [problem.task.losses(model(x).prediction, y).mean() for x, y in zip(batch.x, batch.y, strict=True)]
        )
        adam.zero_grad()
        (risks.mean() + (1.0 if number < 2 else 3.0) * risks.var(correction=0)).backward()
        adam.step()
        training.step(batch)
    for ours, theirs in zip(training.parameters.values(), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_the_scale_multiplies_the_weight_decay_too(tmp_path: Path) -> None:
    """Check that weight decay is scaled as in the IRM paper's code, which divides the l2 term by λ with all else."""
    values = {"method__anneal_steps": 0, "method__weight": 50.0, "method__convention": "rescaled"}
    config = small_config(
        "vrex", "spirals", **values, trainer__dtype="float64", trainer__optimizer="sgd", trainer__weight_decay=0.1
    )
    problem = load(config, torch.float64)
    training = TrainingLoop(config, problem, build_model(config, problem).double(), RunFolder(tmp_path), "", 0)
    model = build_model(config, problem).double()
    batch = training.next_batch()
    risks = torch.stack(
        [problem.task.losses(model(x).prediction, y).mean() for x, y in zip(batch.x, batch.y, strict=True)]
    )
    l2 = 0.05 * sum(p.square().sum() for p in model.parameters())
    ((risks.mean() + 50 * risks.var(correction=0) + l2) / 50).backward()
    training.step(batch)
    rate = config.trainer.learning_rate
    for ours, theirs in zip(training.parameters.values(), model.parameters(), strict=True):
        assert theirs.grad is not None
        assert torch.allclose(ours, theirs - rate * theirs.grad, atol=1e-12)


def test_composed_penalty_and_rule_are_both_there() -> None:
    config = resolve("irmv1+and_mask", "spirals", 0, {"method.weight": 2.0, "method.threshold": 0.5})
    assert isinstance(config.method.parts["irmv1"], IRMv1)
    assert config.method.rule[0] == "and_mask"
    assert config.method.has_penalty
