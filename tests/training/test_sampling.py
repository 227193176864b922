"""Batches: environment-major, an example at most once an epoch, or as its weight says, a pure function of the seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from invbench.core.data import Split
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.seeding import as_int, stream
from invbench.training.sampling import Sampler


def split(sizes: list[int]) -> Split:
    """Return interleaved environments of these sizes; x is the example's number."""
    env = torch.cat([torch.full((size,), e) for e, size in enumerate(sizes)])
    env = env[torch.randperm(len(env), generator=torch.Generator().manual_seed(1))]
    return Split(torch.arange(len(env)), torch.zeros(len(env)), env)


def trainer(batch_size: int | None, per_step: int | None = None) -> TrainerConfig:
    return TrainerConfig.parse({"epochs": 1, "batch_size": batch_size, "environments_per_step": per_step}, "trainer")


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.data())
def test_epoch(sizes: list[int], data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, min(sizes)))
    per_step = data.draw(st.integers(1, len(sizes)))
    part = split(sizes)
    sampler = Sampler.of(part, trainer(batch_size, per_step), seed=3)
    examples, env = sampler.epoch(0)
    assert examples.shape == (sampler.steps_per_epoch, per_step, batch_size)
    assert env.shape == (sampler.steps_per_epoch, per_step)
    assert sampler.steps_per_epoch == min(sizes) // batch_size * (len(sizes) // per_step)
    assert part.env is not None
    assert torch.equal(part.env[examples], env[..., None].expand_as(examples)), "rows come from their environment"
    assert examples.unique().numel() == examples.numel(), "no example twice in an epoch"
    assert all(step.unique().numel() == per_step for step in env), "no environment twice in a step"
    again = Sampler.of(part, trainer(batch_size, per_step), seed=3).epoch(0)
    assert torch.equal(again[0], examples)


def test_epochs_and_seeds_differ() -> None:
    sampler = Sampler.of(split([32, 32]), trainer(8), seed=0)
    other = Sampler.of(split([32, 32]), trainer(8), seed=1)
    assert not torch.equal(sampler.epoch(0)[0], sampler.epoch(1)[0])
    assert not torch.equal(sampler.epoch(0)[0], other.epoch(0)[0])


def test_groups_of_environments_are_formed_afresh() -> None:
    sampler = Sampler.of(split([8] * 6), trainer(1, per_step=2), seed=0)
    _, env = sampler.epoch(0)
    passes = env.reshape(8, 6).tolist()
    assert all(sorted(one) == list(range(6)) for one in passes), "each pass uses every environment"
    assert len({tuple(one) for one in passes}) > 1


def test_every_example_its_own_environment() -> None:
    sampler = Sampler.of(Split(torch.arange(50), torch.zeros(50), torch.arange(50)), trainer(1, per_step=10), seed=0)
    examples, env = sampler.epoch(0)
    assert examples.shape == (5, 10, 1)
    assert examples.unique().numel() == 50
    assert torch.equal(examples[..., 0], env)


def test_without_environments_there_is_one() -> None:
    sampler = Sampler.of(Split(torch.arange(50), torch.zeros(50)), trainer(None), seed=0)
    examples, env = sampler.epoch(0)
    assert examples.shape == (1, 1, 50)
    assert env.tolist() == [[0]]


def weighted(weights: list[float], env: list[int]) -> Split:
    return replace(
        Split(torch.arange(len(env)), torch.zeros(len(env)), torch.tensor(env)), weights=torch.tensor(weights)
    )


def test_weighted_examples_are_drawn_as_often_as_their_weights_say() -> None:
    """In each environment by itself, though the weights of one are far larger than those of the other."""
    env = [0, 1] * 6
    weights = [1e20 * (i // 2) if i % 2 == 0 else 1e-20 * (6 - i // 2) for i in range(12)]
    sampler = Sampler.of(weighted(weights, env), trainer(3), seed=5)
    assert not sampler.whole
    assert sampler.steps_per_epoch == 2
    drawn = torch.cat([sampler.epoch(number)[0].flatten() for number in range(2000)]).bincount(minlength=12).numpy()
    assert drawn[0] == 0, "its weight is 0"
    for number in (0, 1):
        counts, expected = drawn[number::2], np.array(weights[number::2])
        there = expected > 0
        p = stats.chisquare(counts[there], counts.sum() * expected[there] / expected.sum()).pvalue
        assert p > 0.01, f"environment {number}"


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.data())
def test_weighted_epoch(sizes: list[int], data: st.DataObject) -> None:
    """As many examples, and as many of each environment in each step, as without weights; none of weight 0."""
    batch_size = data.draw(st.integers(1, min(sizes)))
    per_step = data.draw(st.integers(1, len(sizes)))
    part = split(sizes)
    assert part.env is not None
    positive = torch.tensor([data.draw(st.booleans()) for _ in part.y])
    for number in range(len(sizes)):
        positive[torch.where(part.env == number)[0][0]] = True
    sampler = Sampler.of(replace(part, weights=positive.float()), trainer(batch_size, per_step), seed=3)
    examples, env = sampler.epoch(0)
    plain = Sampler.of(part, trainer(batch_size, per_step), seed=3)
    assert sampler.steps_per_epoch == plain.steps_per_epoch
    assert examples.shape == (sampler.steps_per_epoch, per_step, batch_size)
    assert env.shape == (sampler.steps_per_epoch, per_step)
    assert torch.equal(part.env[examples], env[..., None].expand_as(examples)), "rows come from their environment"
    assert all(step.unique().numel() == per_step for step in env), "no environment twice in a step"
    assert positive[examples].all()
    again = Sampler.of(replace(part, weights=positive.float()), trainer(batch_size, per_step), seed=3)
    assert torch.equal(again.epoch(0)[0], examples)


def test_equal_weights_are_drawn_with_replacement_and_all_examples_afresh_in_each_step() -> None:
    sampler = Sampler.of(weighted([2.0] * 60, [0, 1] * 30), trainer(None), seed=0)
    first, second = sampler.epoch(0)[0], sampler.epoch(1)[0]
    assert first.shape == (1, 2, 30)
    assert first.unique().numel() < 60
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (
            [0.0, 1.0, 0.0, 1.0],
            "environment 0 has no example with a weight above 0 left to train on; .*validation_share",
        ),
        ([1.0, 1.0, -1.0, 1.0], "weights of the training examples must be finite numbers from 0, one of each"),
        ([1.0, 1.0, float("inf"), 1.0], "must be finite numbers from 0"),
        ([1.0, float("nan"), 1.0, 1.0], "must be finite numbers from 0"),
        ([[1.0], [1.0], [1.0], [1.0]], "must be finite numbers from 0, one of each"),
    ],
)
def test_bad_weights_are_one_clear_line(weights: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampler.of(weighted(weights, [0, 1, 0, 1]), trainer(2), 0)


def test_a_single_environment_without_a_weight_is_no_number() -> None:
    part = Split(torch.arange(4), torch.zeros(4), weights=torch.zeros(4))
    with pytest.raises(UserError, match="there is no example with a weight above 0 left to train on"):
        Sampler.of(part, trainer(2), 0)


def test_bad_sizes_are_one_clear_line() -> None:
    with pytest.raises(UserError, match="batch_size is 9, but an environment has only 8 examples"):
        Sampler.of(split([8, 9]), trainer(9), 0)
    with pytest.raises(UserError, match="environments_per_step is 3, but there are only 2"):
        Sampler.of(split([8, 9]), trainer(4, 3), 0)


def test_streams_are_independent_and_fixed() -> None:
    """Golden numbers: adding an axis, a method or a dataset must not move anybody's stream."""
    numbers = {axis: as_int(stream(7, axis)) for axis in ("data", "init", "order", "noise", "evaluation")}  # type: ignore[arg-type]
    assert len(set(numbers.values())) == 5
    assert numbers["data"] == 1693125408465869867
    assert as_int(stream(7, "init", "and_mask")) == 6759473066169085034
    assert as_int(stream(7, "order", 3)) == 8340754979647278024
