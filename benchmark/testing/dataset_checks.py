"""Checks of a dataset, with ERM on it."""

import copy
import math
from collections.abc import Callable

import torch

from invbench.core.data import Problem, Split
from invbench.core.task import BinaryClassification, Classification, Regression
from invbench.evaluation.metrics import evaluate
from invbench.runs.resolve import RunConfig
from invbench.seeding import stream
from invbench.testing.cells import load
from invbench.testing.method_checks import require, trains
from invbench.training.build import build_model

DatasetCheck = Callable[[RunConfig], None]
"""Function of ERM on the dataset that raises AssertionError where a property is missing."""


def provides_what_it_says(config: RunConfig) -> None:
    """Check that the capabilities with the cell's settings are the problem's, and all of them in `provides`."""
    provides, problem = set(config.dataset.capabilities()), load(config)
    train = problem.splits["train"]
    task = "regression" if isinstance(problem.task, Regression) else "classification"
    facts = {problem.kind: True, task: True, "environments": train.env is not None}
    facts["nuisance"] = train.nuisance is not None
    missing = [name for name, there in facts.items() if there and name not in provides]
    require(not missing, f"the data have {', '.join(missing)}, which `capabilities` does not name")
    kinds = {"vector", "image", "point_cloud", "classification", "regression", "environments", "nuisance"}
    absent = sorted(name for name in provides & kinds if not facts.get(name))
    require(
        not absent, f"`provides`, or what `capabilities` returns, names {', '.join(absent)}, which the data do not have"
    )
    unknown = sorted(provides - set(config.dataset.provides))
    require(not unknown, f"`capabilities` names {', '.join(unknown)}, which `provides` does not")


def optional_settings_turn_on(config: RunConfig) -> None:
    """Check that with the settings that `optional` names the dataset provides what is off by default."""
    for name, settings in config.dataset.optional.items():
        data = type(config.dataset).parse(config.dataset.canonical() | dict(settings), "dataset")
        require(name in data.capabilities(), f"`optional` says how to turn {name} on, but that does not provide it")


def loading_is_pure(config: RunConfig) -> None:
    """Check that equal seeds give equal tensors, from one object or two, without torch's generator."""
    seed, data, generator = stream(0, "data"), config.dataset, torch.get_rng_state()
    first = data.load(seed).fingerprint
    require(data.load(seed).fingerprint == first, "`load` gives other tensors when it is called again with one seed")
    require(copy.deepcopy(data).load(stream(0, "data")).fingerprint == first, "equal seeds give other tensors")
    require(torch.equal(torch.get_rng_state(), generator), "`load` draws from torch's generator, not from its seed")


def splits_are_sound(config: RunConfig) -> None:
    """Check that every split has examples, finite numbers, and labels and environments in range."""
    problem = load(config)
    for name, split in problem.splits.items():
        require(len(split) > 0, f"split {name} is empty")
        for part, value in split.tensors().items():
            finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
            require(finite, f"{part} of split {name} is not finite")
        _require_labels(problem, name, split)
    env = problem.splits["train"].env
    if env is not None:
        used = sorted(set(env.tolist()))
        require(used == list(range(len(used))), f"training environments are numbered {used}, not from 0 without gaps")


def splits_can_be_measured(config: RunConfig) -> None:
    """Check that an untrained network has finite metrics on every split, the dataset's own metric among them."""
    problem = load(config)
    for name, split in problem.splits.items():
        shape, expected = tuple(split.x.shape[1:]), tuple(problem.input_shape)
        require(shape == expected, f"inputs of split {name} have shape {shape}, those of train {expected}")
    model = build_model(config, problem)
    metrics = evaluate(model, problem, tuple(problem.splits), config.spec.seed, 0)
    broken = [name for name, value in metrics.items() if not math.isfinite(value)]
    require(not broken, f"{', '.join(broken)} of an untrained network is not finite")
    headline = problem.provenance["metric"]
    require(headline in metrics, f"`metric` of the problem is '{headline}', and runs measure {', '.join(metrics)}")


def _require_labels(problem: Problem, name: str, split: Split) -> None:
    classes = {BinaryClassification: 2, Classification: problem.task.outputs}.get(type(problem.task))
    if classes is not None:
        inside = bool(((split.y >= 0) & (split.y < classes) & (split.y == split.y.floor())).all())
        require(inside, f"labels of split {name} are not whole numbers from 0 to {classes - 1}")


DATASET_CHECKS: tuple[DatasetCheck, ...] = (
    provides_what_it_says,
    optional_settings_turn_on,
    loading_is_pure,
    splits_are_sound,
    splits_can_be_measured,
    trains,
)
