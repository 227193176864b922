"""Random numbers of hooks: their law, what they depend on and what not, pairs of examples."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap

from invbench.components import draws
from invbench.components.draws import MASK, normal, of_examples, partners, uniform
from invbench.core.composition import Composition
from invbench.core.method import State
from invbench.core.registry import METHODS

LIKE = torch.zeros((), dtype=torch.float64)


def state_of(run: int, step: int = 0) -> State:
    return {"draws": torch.tensor([run]), "step": torch.tensor(step)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("run", "step", "purpose"), [(0, 0, 0), (1, 0, 0), (12345, 7, 3), (2**32 - 1, 10**6, 1)])
def test_numbers_are_uniform(dtype: torch.dtype, run: int, step: int, purpose: int) -> None:
    drawn = uniform(state_of(run, step), purpose, torch.arange(20_000), like=LIKE.to(dtype))
    assert drawn.dtype == dtype
    assert drawn.min() > 0
    assert drawn.max() < 1
    values = drawn.double().numpy()
    assert scipy.stats.kstest(values, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.03, "neighbours are independent"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("number", [0, 1, MASK - 1, MASK])
def test_the_smallest_and_the_largest_number(dtype: torch.dtype, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is rounded to 0 or 1, where the normal distribution has no quantile."""
    monkeypatch.setattr(draws, "hashed", lambda index: torch.full_like(index, number))
    like, index = LIKE.to(dtype), torch.arange(3)
    drawn = uniform(state_of(0), 0, index, like=like)
    assert (drawn > 0).all()
    assert (drawn < 1).all()
    assert torch.isfinite(normal(state_of(0), 0, index, like=like)).all()


def test_runs_steps_purposes_and_environments_are_independent() -> None:
    index = torch.arange(20_000)
    drawn = [
        uniform(state_of(1), 0, index, like=LIKE),
        uniform(state_of(2), 0, index, like=LIKE),
        uniform(state_of(1, step=1), 0, index, like=LIKE),
        uniform(state_of(1), 1, index, like=LIKE),
        uniform(state_of(1), 0, torch.tensor(0), index, like=LIKE),
        uniform(state_of(1), 0, torch.tensor(1), index, like=LIKE),
    ]
    correlations = np.corrcoef(np.stack([values.numpy() for values in drawn])) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 0.03


def test_one_number_a_step_is_uniform_over_steps() -> None:
    drawn = [uniform(state_of(5, step), 0, like=LIKE).item() for step in range(2000)]
    assert scipy.stats.kstest(drawn, "uniform").pvalue > 1e-3


def test_normal_numbers_are_normal() -> None:
    drawn = normal(state_of(3), 0, torch.arange(50_000), like=LIKE.float()).double().numpy()
    assert np.isfinite(drawn).all()
    assert scipy.stats.kstest(drawn, "norm").pvalue > 1e-4


@given(st.permutations(range(4)))
def test_examples_keep_their_numbers_in_any_order_of_environments(order: list[int]) -> None:
    first = of_examples(state_of(9), 0, torch.arange(4), 6, LIKE)
    assert torch.equal(of_examples(state_of(9), 0, torch.tensor(order), 6, LIKE), first[order])


def test_mapped_runs_draw_what_they_draw_alone() -> None:
    env = torch.arange(3)
    stacked = {"draws": torch.tensor([[4], [7]]), "step": torch.tensor([0, 5])}

    def pairs(state: State) -> tuple[Tensor, Tensor]:
        keys = of_examples(state, 0, env, 5, LIKE)
        return keys, partners(keys.flatten(), (10 * keys.flatten()).long() % 2)

    together = vmap(pairs)(stacked)
    for run, alone in enumerate((state_of(4), state_of(7, 5))):
        for ours, theirs in zip(pairs(alone), together, strict=True):
            assert torch.equal(ours, theirs[run])


@given(st.integers(1, 40), st.integers(0, 1000))
def test_partners_are_one_ring(count: int, run: int) -> None:
    following = partners(uniform(state_of(run), 0, torch.arange(count), like=LIKE))
    seen, here = [], 0
    for _ in range(count):
        seen.append(here)
        here = int(following[here])
    assert sorted(seen) == list(range(count))
    assert here == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 1000))
def test_partners_are_one_ring_in_each_group(groups: list[int], run: int) -> None:
    group = torch.tensor(groups)
    following = partners(uniform(state_of(run), 0, torch.arange(len(group)), like=LIKE), group)
    assert torch.equal(group[following], group)
    for number in set(groups):
        members = torch.where(group == number)[0].tolist()
        seen, here = [], members[0]
        for _ in members:
            seen.append(here)
            here = int(following[here])
        assert sorted(seen) == members


def test_every_partner_is_as_likely() -> None:
    counts = np.zeros(6)
    for step in range(3000):
        counts[int(partners(uniform(state_of(0, step), 0, torch.arange(6), like=LIKE))[2])] += 1
    assert counts[2] == 0
    assert scipy.stats.chisquare(np.delete(counts, 2)).pvalue > 1e-4


def test_runs_and_methods_have_numbers_of_their_own() -> None:
    method = Composition({name: METHODS.load(name)() for name in ("causirl", "gga_l", "erm")})
    states = [method.initial_state({"w": torch.zeros(1)}, 2, seed) for seed in (0, 1)]
    numbers = [int(state[name]["draws"]) for state in states for name in ("causirl", "gga_l")]
    assert len(set(numbers)) == 4
    assert "draws" not in states[0]["erm"], "only those that draw have one"
