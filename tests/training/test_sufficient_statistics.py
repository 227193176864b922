"""A few examples with the same moments stand for all of a linear problem."""

from pathlib import Path
from typing import Any

import pytest
import torch
from cells import small_config
from hypothesis import given, settings
from hypothesis import strategies as st

from invbench.core.data import Split
from invbench.runs.options import Options
from invbench.runs.resolve import RunConfig
from invbench.seeding import stream
from invbench.training.build import build_model
from invbench.training.examples import counts_of
from invbench.training.gradients import Objective
from invbench.training.runner import run_one
from invbench.training.sampling import Sampler
from invbench.training.sufficient_statistics import condensed, training_examples

LINEAR = ("linear_unit_tests", "chain_sem", "irm_regression")
EXACT = (
    "erm",
    "irmv1",
    "vrex",
    "mm_rex",
    "iga",
    "group_dro",
    "and_mask",
    "sand_mask",
    "adareg",
    "pcgrad",
    "fish",
    "mldg",
    "sam",
)


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 5), st.integers(2, 60))
def test_moments_are_kept(seed: int, environments: int, inputs: int, examples: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = 10 * torch.randn(environments * examples, inputs, generator=generator, dtype=torch.float64) + 3
    y = torch.randn(environments * examples, generator=generator, dtype=torch.float64) - 7
    split = Split(x, y, torch.arange(environments).repeat_interleave(examples))
    short = condensed(split)
    assert len(short) == environments * (min(examples, inputs + 1) + 1)
    for e in range(environments):
        actual, whole = (torch.cat([s.x[s.env == e], s.y[s.env == e][:, None]], 1) for s in (short, split))
        assert torch.allclose(actual.mean(0), whole.mean(0), atol=1e-10)
        assert torch.allclose(actual.T @ actual / len(actual), whole.T @ whole / len(whole), atol=1e-8)


def step_on(config: RunConfig, whole: bool) -> Any:
    """Take one step on all examples, or on those that training takes."""
    problem = config.dataset.load(stream(config.spec.seed, "data")).to(torch.device("cpu"), torch.float64)
    model = build_model(config, problem).double()
    train = problem.splits["train"]
    examples = train if whole else training_examples(train, problem, config.method, model, config.trainer)
    sampler = Sampler.of(examples, config.trainer, 0)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    counts = counts_of(train, problem)
    state = config.method.initial_state(parameters, sampler.environments, counts=counts)
    index, env = (part[0] for part in sampler.epoch(0))
    objective = Objective(config.method, problem.task, model, "joint")
    return objective.step(parameters, sampler.batch(index, env), state), len(examples)


@pytest.mark.parametrize("dataset", LINEAR)
@pytest.mark.parametrize("method", EXACT)
def test_steps_are_those_of_all_rows(method: str, dataset: str) -> None:
    config = small_config(method, dataset, dataset__examples=500)
    full, rows = step_on(config, whole=True)
    short, few = step_on(config, whole=False)
    assert few < rows / 10
    assert torch.allclose(full.objective, short.objective, rtol=1e-10)
    for name, gradient in full.gradients.items():
        assert torch.allclose(short.gradients[name], gradient, rtol=1e-8, atol=1e-8), name


@pytest.mark.parametrize("classifier", ["scale_and_offset", "head", "split"])
def test_every_classifier_of_irm(classifier: str) -> None:
    config = small_config("irmv1", "linear_unit_tests", dataset__examples=500, method__classifier=classifier)
    full, short = step_on(config, whole=True)[0], step_on(config, whole=False)[0]
    assert torch.allclose(full.penalty, short.penalty, rtol=1e-9)


@pytest.mark.parametrize(
    ("method", "dataset", "values"),
    [
        ("erm", "linear_unit_tests", {"dataset__example": "example2"}),  # not the squared loss
        ("erm", "linear_unit_tests", {"backbone__name": "mlp"}),  # not linear
        ("erm", "linear_unit_tests", {"trainer__batch_size": 100}),  # not all examples
        ("and_mask", "linear_unit_tests", {"trainer__environments_per_step": 2}),  # not all environments
        ("irmv1", "linear_unit_tests", {"method__estimate": "unbiased"}),  # halves
        ("coral", "linear_unit_tests", {}),  # n - 1
        ("fishr", "linear_unit_tests", {}),  # fourth moments
        ("adversary", "linear_unit_tests", {"method__independent_of": "environment"}),  # a critic sees examples
        ("pgrad", "linear_unit_tests", {}),  # thirds of the examples
        ("mixup", "linear_unit_tests", {}),  # pairs of examples
        ("erm", "linear_unit_tests", {"trainer__condense": False}),  # not wanted
        ("erm", "and_mask_regression", {}),  # nothing to gain
    ],
)
def test_where_it_is_not_exact_all_examples_are_taken(method: str, dataset: str, values: dict[str, Any]) -> None:
    more = {} if dataset == "and_mask_regression" else {"dataset__examples": 500}
    config = small_config(method, dataset, **more, **values)
    problem = config.dataset.load(stream(0, "data"))
    train, model = problem.splits["train"], build_model(config, problem)
    assert training_examples(train, problem, config.method, model, config.trainer) is train


def test_the_record_says_so_and_the_run_is_the_same(tmp_path: Path) -> None:
    short = small_config("irmv1", "chain_sem", trainer__steps=50, dataset__examples=300)
    full = small_config("irmv1", "chain_sem", trainer__steps=50, dataset__examples=300, trainer__condense=False)
    first, second = (run_one(config, Options(out=tmp_path)) for config in (short, full))
    assert (first.engine["condensed"], second.engine["condensed"]) == (True, False)
    for name, value in first.metrics.items():
        assert value == pytest.approx(second.metrics[name], rel=1e-8), name


def test_a_batch_of_exactly_all_examples_is_condensed(tmp_path: Path) -> None:
    """As no number at all is; the condensed examples are fewer than the batch."""
    import invbench

    settings = {"trainer.epochs": None, "trainer.steps": 20, "dataset.examples": 30, "backbone.name": "linear"}
    whole, named = (
        invbench.run("erm", "chain_sem", settings=settings | {"trainer.batch_size": size}, out=tmp_path)
        for size in (None, 30)
    )
    assert whole.engine["condensed"]
    assert named.metrics == whole.metrics
