"""Small cells for the suite, and stand-ins for methods that the suite does not have yet."""

from collections.abc import Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.core.data import Batch, Problem
from invbench.core.method import Gradients, Method, Outputs, State
from invbench.core.registry import DATASETS, METHODS, datasets_with_defaults, unmet
from invbench.core.settings import setting
from invbench.runs.resolve import RunConfig
from invbench.testing import cells
from invbench.testing.cells import (
    assert_same_training,
    curves_of,
    load,
    objective_of,
    run_until,
    small_settings,
    without_coupling,
)

__all__ = [
    "assert_same_training",
    "curves_of",
    "load",
    "objective_of",
    "run_until",
    "small_settings",
    "without_coupling",
]

SMALL: dict[str, dict[str, Any]] = {
    name: dict(DATASETS.literal(name, "small", {})) for name in datasets_with_defaults()
}
"""Settings that make a dataset's recipe quick."""
QUICK = ("spirals", "digits", "colored_digits")
KINDS = ("vector", "image", "point_cloud", "regression", "classification")
EVERYWHERE = ("erm", "and_mask", "irmv1", "mutual_information")
"""Methods that are tested on all datasets: no hook, a gradient rule, a penalty, a critic."""
ONE_EXAMPLE = ("and_mask_regression", "cifar10")
"""Data with a single example in every environment."""


def small_config(method: str, dataset: str, seed: int = 0, **settings: Any) -> RunConfig:
    """Return a cell that trains in a second. Keyword `trainer__steps` stands for `trainer.steps`."""
    return cells.small_config(method, dataset, seed, {name.replace("__", "."): v for name, v in settings.items()})


@cache
def possible_cells() -> list[tuple[str, str]]:
    """List every registered method with every dataset that provides what it requires, and examples enough."""
    return [
        (method, dataset)
        for method in METHODS.entries()
        for dataset in datasets_with_defaults()
        if not unmet(METHODS.traits(method), DATASETS.traits(dataset))
        # Of one example none is left for validation, either.
        and not (dataset in ONE_EXAMPLE and (METHODS.load(method)().min_examples > 1 or method == "swad"))
        # A network, or a category, for every example.
        and not (dataset == "cifar10" and method in ("irm_games", "mutual_information", "adversary"))
    ]


def one_of_each_kind(datasets: list[str], kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Return a dataset of each kind, by what they provide; the quickest where one is quick."""
    chosen: dict[tuple[str, ...], str] = {}
    for dataset in sorted(datasets, key=lambda name: (*QUICK, name).index(name)):
        provides = DATASETS.traits(dataset)
        chosen.setdefault(tuple(kind for kind in kinds if kind in provides), dataset)
    return list(chosen.values())


class SpreadPenalty(Method):
    """Variance of the risks, as an example of a penalty."""

    weight: float = setting(2.0, "strength", fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weight * risks.var(correction=0), state


class NormPenalty(Method):
    """Mean squared representation, as an example of a penalty on outputs."""

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        assert outputs.representation is not None
        return outputs.representation.square().mean(), state


class WorstRisk(Method):
    """Exponential weights on the risks with memory, as an example of another objective."""

    requires: ClassVar[tuple[str, ...]] = ("environments",)
    rate: float = setting(0.5, "step of the weights", fusable=True)

    def initial_state(self, parameters: Mapping[str, Tensor], environments: int) -> State:
        return {"weights": next(iter(parameters.values())).new_ones(environments)}

    def risk(self, risks: Tensor, env: Tensor, state: State) -> tuple[Tensor, State]:
        weights = state["weights"] * (self.rate * risks.detach()).exp()
        weights = weights / weights.sum()
        return (weights * risks).sum(), state | {"weights": weights}


class MedianGradient(Method):
    """Element-wise median, as an example of a rule that moments cannot express."""

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        return {name: g.median(0).values + penalty_grad[name] for name, g in risk_grads.items()}, state


def risks_of(model: torch.nn.Module, problem: Problem, batch: Batch) -> Tensor:
    """Compute the mean loss of every environment, one after another."""
    pairs = zip(batch.x, batch.y, strict=True)
    return torch.stack([problem.task.losses(model(x).prediction, y).mean() for x, y in pairs])
