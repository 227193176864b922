"""Runs of one process share their data, as long as these are the same and fit into some memory."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cells import ONE_EXAMPLE, small_config, small_settings

import invbench
from invbench.core.data import Problem, Split
from invbench.core.registry import DATASETS, datasets_with_defaults
from invbench.core.task import BinaryClassification
from invbench.datasets.chain_sem import ChainSEM
from invbench.errors import UserError
from invbench.runs.options import Options
from invbench.runs.resolve import resolve
from invbench.training import build as loading
from invbench.training.build import load_problem, loaded
from invbench.training.runner import run_one


def test_runs_that_agree_in_their_data_share_them() -> None:
    first = load_problem(small_config("erm", "spirals"))
    assert load_problem(small_config("and_mask", "spirals", trainer__steps=3)) is first
    assert load_problem(small_config("erm", "spirals", 1)) is not first
    assert load_problem(small_config("erm", "spirals", dataset__examples=64)) is not first
    held_out = load_problem(small_config("erm", "spirals", trainer__held_out_environment=1))
    assert held_out.environments == first.environments - 1
    assert load_problem(small_config("erm", "spirals")) is first


def test_a_file_that_has_changed_is_read_again(tmp_path: Path) -> None:
    sprites = tmp_path / "sprites.npz"
    draw = np.random.default_rng(0)

    def written() -> None:
        np.savez(sprites, **{name: draw.random((3, 32, 32), dtype=np.float32) for name in ("mario", "iggy")})

    settings = {"dataset.sprites": str(sprites), "dataset.train_examples": 8, "dataset.test_examples": 4}
    config = resolve("erm", "mario_iggy", 0, settings)
    written()
    first = load_problem(config)
    assert load_problem(config) is first
    written()
    assert load_problem(config).fingerprint != first.fingerprint


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "KEPT_BYTES", 0)
    first = load_problem(small_config("erm", "spirals"))
    assert load_problem(small_config("erm", "spirals")) is first, "the last one stays"
    load_problem(small_config("erm", "spirals", 1))
    assert len(loading._kept) == 1
    assert load_problem(small_config("erm", "spirals")) is not first


def numbered(*sizes: int) -> Problem:
    """Return examples that are their own numbers, in shuffled environments of these sizes."""
    env = torch.cat([torch.full((size,), e) for e, size in enumerate(sizes)])
    env = env[torch.randperm(len(env), generator=torch.Generator().manual_seed(0))]
    x = torch.arange(len(env))
    split = Split(x[:, None].float(), x.float(), env, x)
    return Problem({"train": split, "test": split}, BinaryClassification(), "vector", "synthetic")


def test_a_share_of_each_environment_is_held_out() -> None:
    problem = numbered(10, 25, 4, 1)
    held_out = problem.with_validation(0.2, np.random.SeedSequence(0))
    assert list(held_out.splits) == ["train", "validation", "test"]
    train, validation = held_out.splits["train"], held_out.splits["validation"]
    assert train.env is not None
    assert validation.env is not None
    assert torch.bincount(validation.env, minlength=4).tolist() == [2, 5, 0, 0], "rounded down"
    assert torch.bincount(train.env).tolist() == [8, 20, 4, 1]
    assert sorted([*train.y.tolist(), *validation.y.tolist()]) == problem.splits["train"].y.tolist()
    for split in (train, validation):
        assert split.nuisance is not None
        assert split.y.tolist() == split.x[:, 0].tolist() == split.nuisance.tolist(), "rows stay together"
    again, other = (problem.with_validation(0.2, np.random.SeedSequence(seed)) for seed in (0, 1))
    assert again.fingerprint == held_out.fingerprint != other.fingerprint


def test_what_is_held_out_is_drawn_evenly() -> None:
    problem = numbered(10)
    counts = torch.zeros(10)
    for seed in range(500):
        validation = problem.with_validation(0.35, np.random.SeedSequence(seed)).splits["validation"]
        counts[validation.y.long()] += 1
    assert counts.sum() == 1500
    assert (counts - 150).abs().max() < 5 * (500 * 0.3 * 0.7) ** 0.5


def test_data_with_a_validation_set_or_too_few_examples_stay_as_they_are() -> None:
    problem = numbered(1, 4)
    assert problem.with_validation(0.2, np.random.SeedSequence(0)) is problem
    assert numbered(10).with_validation(0.0, np.random.SeedSequence(0)).splits.keys() == {"train", "test"}
    spirals = small_config("erm", "spirals")
    assert load_problem(spirals).fingerprint == spirals.dataset.load(loading.stream(0, "data")).fingerprint


def test_validation_is_always_there(tmp_path: Path) -> None:
    """So that settings can be chosen by it; without, the refusal says why there is none."""
    settings = {"trainer.steps": 2, "backbone.width": 4}
    record = run_one(resolve("erm", "colored_digits", 0, settings), Options(out=tmp_path / "with"))
    assert record.data["examples"] == {"train": 1120, "validation": 280, "test": 397}
    assert record.best_validation is not None
    means = invbench.table(invbench.load_results(tmp_path / "with"), select="best_validation")
    assert means["at"].tolist() == ["best_validation"]
    without = resolve("erm", "colored_digits", 0, settings | {"dataset.validation_share": 0})
    run_one(without, Options(out=tmp_path / "without"))
    with pytest.raises(
        UserError, match="colored_digits was made without a validation set, by dataset.validation_share"
    ):
        invbench.table(invbench.load_results(tmp_path / "without"), select="best_validation")


ENVIRONMENTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in datasets_with_defaults() if "environments" in DATASETS.traits(name)),
    ("colored_mnist", {"dataset.variant": "domainbed"}),
    ("colored_mnist", {"dataset.variant": "domainbed", "dataset.test_environment": 0}),
    ("rotmnist", {"dataset.validation_size": 30}),
    ("spirals", {"dataset.validation_examples": 0}),
    ("chain_sem", {"dataset.validation_scale": 3.0}),
    ("cifar10", {"dataset.train_size": 4, "dataset.validation_size": 4}),
]
"""Every dataset that has environments, with validation sets of all sorts."""


@pytest.mark.usefixtures("standins")
@pytest.mark.parametrize(("dataset", "settings"), ENVIRONMENTS)
def test_of_an_environment_that_is_left_out_nothing_is_in_training_or_validation(
    dataset: str, settings: dict[str, Any]
) -> None:
    """The other environments stay whole, with the same number in both; and there is validation where there can be."""
    switch = DATASETS.load(dataset).optional.get("environments", {})
    small = small_settings("erm", dataset) | {f"dataset.{name}": value for name, value in switch.items()} | settings
    whole = loaded(resolve("erm", dataset, 0, small))
    assert whole.environments > 1
    refused = "validation" in whole.splits and whole.splits["validation"].env is None
    for number in range(min(whole.environments, 4)):
        config = resolve("erm", dataset, 0, small | {"trainer.held_out_environment": number})
        if refused:
            with pytest.raises(UserError, match="validation split of these data does not tell which of its examples"):
                load_problem(config)
            continue
        left, before = load_problem(config), rows_of(whole)
        kept = Counter({(env - (env > number), x): n for (env, x), n in before.items() if env != number})
        assert rows_of(left) == kept
        assert len(left.splits["held_out"]) == int((whole.splits["train"].env == number).sum())
        assert "validation" in left.splits or not config.dataset.validation_share or dataset in ONE_EXAMPLE


def rows_of(problem: Problem) -> Counter[tuple[int, bytes]]:
    """Count how often each input is in training and validation, by environment."""
    splits = [split for name, split in problem.splits.items() if name in ("train", "validation")]
    return Counter(
        (env, x.numpy().tobytes())
        for split in splits
        if split.env is not None
        for env, x in zip(split.env.tolist(), split.x, strict=True)
    )


@pytest.mark.parametrize(("scale", "number"), [(5.0, 2), (0.2, 0), (3.0, 3)])
def test_the_validation_set_of_a_chain_is_of_the_environment_of_its_scale(scale: float, number: int) -> None:
    validation = ChainSEM(validation_scale=scale, examples=4).load(np.random.SeedSequence(0)).splits["validation"]
    assert validation.env is not None
    assert validation.env.tolist() == [number] * 4


def test_of_what_an_environment_is_left_out_none_is_in_validation() -> None:
    config = small_config("erm", "colored_digits", trainer__held_out_environment=1)
    splits = load_problem(config).splits
    assert {name: len(split) for name, split in splits.items()} == {
        "train": 560, "validation": 140, "test": 397, "held_out": 700,
    }  # fmt: skip
