"""Small versions of every cell, and stand-ins for methods that the suite does not have yet."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from invbench.composition import Composition
from invbench.gradients import Objective
from invbench.method import Gradients, Method, Outputs, State
from invbench.problem import Batch, Problem
from invbench.registry import DATASETS, METHODS, unmet
from invbench.runner import build_model
from invbench.sampling import Sampler
from invbench.seeds import stream
from invbench.settings import setting
from invbench.spec import Cell, resolve
from invbench.trainer import Strategy

SMALL: dict[str, dict[str, Any]] = {
    "spirals": {
        "dataset.environments": 4,
        "dataset.examples": 48,
        "dataset.validation_examples": 16,
        "dataset.test_examples": 50,
        "backbone.width": 12,
        "backbone.depth": 2,
        "trainer.batch_size": 16,
    },
    "digits": {"backbone.width": 2, "trainer.batch_size": 20},
    "rotmnist": {"backbone.width": 2, "dataset.rotation_bins": 2, "trainer.batch_size": 10},
    "cifar10": {"dataset.transform": "fixed", "backbone.width": 2, "trainer.batch_size": 10},
    "colored_mnist": {"backbone.width": 8, "trainer.batch_size": 8},
    "colored_digits": {"backbone.width": 8, "trainer.batch_size": 20},
    "mario_iggy": {
        "dataset.train_examples": 40,
        "dataset.test_examples": 20,
        "backbone.width": 2,
        "trainer.batch_size": 20,
    },
    "olivetti": {"dataset.copies": 1, "backbone.width": 2, "trainer.batch_size": 20},
    "qm9": {"backbone.width": 8, "dataset.smallest_size": 8, "trainer.batch_size": 10, "trainer.warmup": 0.0},
    "linear_unit_tests": {"dataset.examples": 40},
    "chain_sem": {"dataset.examples": 40},
    "irm_regression": {"dataset.examples": 40, "dataset.validation_examples": 20, "dataset.test_examples": 20},
    "and_mask_regression": {},
    "pivot": {"dataset.train_examples": 200, "dataset.validation_examples": 50, "dataset.test_examples": 50},
    "mi_toy": {
        "dataset.train_examples": 200,
        "dataset.validation_examples": 50,
        "dataset.test_examples": 50,
        "trainer.batch_size": 50,
    },
    "tabular_nuisance": {
        "dataset.examples": 400,
        "dataset.bins": 3,
        "backbone.width": 12,
        "trainer.batch_size": 50,
    },
}
"""Settings that make a dataset's recipe quick."""
PER_EXAMPLE = {"cifar10": {"trainer.batch_size": 1, "trainer.environments_per_step": 8}}
"""More of them, for methods to which every example is an environment."""


def small_cell(method: str, dataset: str, seed: int = 0, **settings: Any) -> Cell:
    """A cell that trains in a second. Keyword `trainer__steps` stands for `trainer.steps`."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    each = PER_EXAMPLE.get(dataset, {}) if "environments" in METHODS.traits(method) else {}
    return resolve(method, dataset, seed, {"trainer.steps": 12} | SMALL[dataset] | each | given)


def possible_cells() -> list[tuple[str, str]]:
    """Every registered method with every dataset that provides what it requires."""
    return [
        (method, dataset)
        for method in METHODS.entries()
        for dataset in DATASETS.entries()
        if not unmet(METHODS.traits(method), DATASETS.traits(dataset))
    ]


def without_coupling(cell: Cell) -> Cell:
    """The cell on a network that treats each row by itself and draws nothing, so that all strategies agree."""
    if cell.spec.backbone != "cnn_small":
        return cell
    sizes = ("steps", "batch_size", "environments_per_step")
    keep = {f"trainer.{name}": value for name, value in cell.spec.trainer.items() if name in sizes}
    data = {f"dataset.{name}": value for name, value in cell.spec.dataset_settings.items()}
    network = {"backbone.name": "mlp", "backbone.width": 8}
    return resolve(cell.spec.method, cell.spec.dataset, cell.spec.seed, keep | data | network)


def objective_of(
    cell: Cell, strategy: Strategy, dtype: torch.dtype = torch.float64, method: Composition | None = None
) -> tuple[Objective, dict[str, Tensor], Batch, State]:
    """The engine's gradient function of a cell with its first parameters, batch and state."""
    problem = load(cell, dtype)
    model = build_model(cell, problem).to(dtype)
    method = method or cell.method
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    sampler = Sampler.of(problem.splits["train"], cell.trainer, cell.spec.seed)
    examples, env = sampler.epoch(0)
    state = method.initial_state(parameters, sampler.per_step)
    return Objective(method, problem.task, model, strategy), parameters, sampler.batch(examples[0], env[0]), state


def load(cell: Cell, dtype: torch.dtype = torch.float32) -> Problem:
    """The cell's problem on the CPU."""
    return cell.dataset.load(stream(cell.spec.seed, "data")).to(torch.device("cpu"), dtype)


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

    def risk(self, risks: Tensor, state: State) -> tuple[Tensor, State]:
        weights = state["weights"] * (self.rate * risks.detach()).exp()
        weights = weights / weights.sum()
        return (weights * risks).sum(), state | {"weights": weights}


class MedianGradient(Method):
    """Element-wise median, as an example of a rule that moments cannot express."""

    def combine(self, risk_grads: Gradients, penalty_grad: Gradients, state: State) -> tuple[Gradients, State]:
        return {name: g.median(0).values + penalty_grad[name] for name, g in risk_grads.items()}, state
