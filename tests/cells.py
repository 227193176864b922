"""Small versions of every cell, and stand-ins for methods that the suite does not have yet."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem
from invbench.core.method import Gradients, Method, Outputs, State
from invbench.core.registry import DATASETS, METHODS, unmet
from invbench.core.settings import setting
from invbench.core.trainer import Strategy
from invbench.pytree import flatten
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.record import RunFolder
from invbench.runs.resolve import Cell, resolve, with_penalty
from invbench.seeding import stream
from invbench.training.build import build_model, model_on
from invbench.training.critic_training import find_critics, with_critics
from invbench.training.curve_columns import SECONDS
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective
from invbench.training.loggers import Loggers
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report
from invbench.training.sampling import Sampler

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
    "cifar10": {"dataset.transform": "fixed", "backbone.name": "conv13", "backbone.width": 2, "trainer.batch_size": 10},
    "colored_mnist": {"backbone.width": 8, "trainer.batch_size": 8},
    "colored_digits": {"backbone.width": 8, "trainer.batch_size": 20},
    "mario_iggy": {
        "dataset.train_examples": 40,
        "dataset.test_examples": 20,
        "backbone.width": 2,
        "trainer.batch_size": 20,
    },
    "olivetti": {"dataset.copies": 1, "backbone.width": 2, "trainer.batch_size": 20},
    "qm9": {
        "backbone.width": 8,
        "backbone.depth": 2,
        "dataset.smallest_size": 8,
        "trainer.batch_size": 10,
        "trainer.warmup": 0.0,
    },
    "linear_unit_tests": {"dataset.examples": 40, "trainer.batch_size": None},
    "chain_sem": {"dataset.examples": 40, "trainer.batch_size": None},
    "irm_regression": {
        "dataset.examples": 40,
        "dataset.validation_examples": 20,
        "dataset.test_examples": 20,
        "trainer.batch_size": None,
    },
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
CRITIC = {
    "method.critic_width": 8,
    "method.critic_steps": 2,
    "method.critic_warm_up": 3,
    "method.pretrain_steps": 2,
}
SMALL_METHOD: dict[str, dict[str, Any]] = {
    "augerino": {"method.test_copies": 2},
    "steerable": {"method.width": 0.25},
    "pcgrad": {"method.order": "most_conflicting"},  # the paper's order is random
    "irm_games": {"method.width": 8, "method.dropout": 0.0},
    "mutual_information": CRITIC,
    "adversary": CRITIC,
    "soft_adareg": {"method.largest_weight": 10.0},  # without a cap its first step is huge
}
"""The same for methods."""
CLASSIFICATION = {
    "linear_unit_tests": {"dataset.example": "example3"},
    "irm_regression": {"dataset.problem": "small_margin"},
}
"""What makes them classification, for methods that require it."""
ONE_EXAMPLE = ("and_mask_regression", "cifar10")
"""Data with a single example in every environment."""
PER_EXAMPLE = {
    "cifar10": {
        "trainer.batch_size": 1,
        "trainer.environments_per_step": 4,
        "backbone.name": "mlp",
        "backbone.width": 8,
    }
}
"""More of them, for methods to which every example is an environment."""


UNCOUPLED = {"cnn_small": "mlp", "simple_conv": "mlp", "conv13": "mlp", "resnet9": "mlp", "point_resnet": "deep_sets"}
"""A network without batch norm in the place of one with it."""


def small_cell(method: str, dataset: str, seed: int = 0, **settings: Any) -> Cell:
    """A cell that trains in a second. Keyword `trainer__steps` stands for `trainer.steps`."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    whole = method if "+" in method else with_penalty(method)
    return resolve(whole, dataset, seed, {"trainer.steps": 12} | small_settings(method, dataset) | given)


def small_settings(method: str, dataset: str) -> dict[str, Any]:
    """What makes a cell quick."""
    each = PER_EXAMPLE.get(dataset, {}) if "environments" in METHODS.traits(method) else {}
    if "classification" in METHODS.traits(method):
        each = each | CLASSIFICATION.get(dataset, {})
    settings = SMALL[dataset] | SMALL_METHOD.get(method, {}) | each
    own = METHODS.literal(method, "replaces_model", False)
    return {name: value for name, value in settings.items() if not (own and name.startswith("backbone."))}


def possible_cells() -> list[tuple[str, str]]:
    """Every registered method with every dataset that provides what it requires, and examples enough."""
    return [
        (method, dataset)
        for method in METHODS.entries()
        for dataset in DATASETS.entries()
        if not unmet(METHODS.traits(method), DATASETS.traits(dataset))
        and not (dataset in ONE_EXAMPLE and METHODS.load(method)().min_examples > 1)
        # A network, or a category, for every example.
        and not (dataset == "cifar10" and method in ("irm_games", "mutual_information", "adversary"))
    ]


def possible_uncoupled_cells() -> list[tuple[str, str]]:
    """Those whose network can be one that treats each row by itself: not those of a method with its own."""
    return [(m, d) for m, d in possible_cells() if not METHODS.literal(m, "replaces_model", False)]


def without_coupling(cell: Cell) -> Cell:
    """The cell on a network that treats each row by itself and draws nothing, so that all strategies agree."""
    plain = UNCOUPLED.get(cell.spec.backbone)
    still = _without_noise(cell)
    if plain is None and not still:
        return cell
    sizes = ("steps", "batch_size", "environments_per_step")
    keep = {f"trainer.{name}": value for name, value in cell.spec.trainer.items() if name in sizes}
    data = {f"dataset.{name}": value for name, value in cell.spec.dataset_settings.items()}
    network = {f"backbone.{name}": value for name, value in cell.spec.backbone_settings.items()}
    network = {"backbone.name": plain, "backbone.width": 8} if plain else network
    own = SMALL_METHOD.get(cell.spec.method.rpartition("+")[2], {})
    return resolve(cell.spec.method, cell.spec.dataset, cell.spec.seed, keep | data | network | own | still)


def _without_noise(cell: Cell) -> dict[str, Any]:
    """Settings that make every transformation of the method the identity, in the graph where its gradient vanishes."""
    cloud = "point_cloud" in cell.dataset.provides
    settings = {"widths": {}} | cell.spec.method_settings.get(cell.spec.method, {})
    return {
        "augerino": {"method.initial_width": -40.0, "method.initial_widths": {} if cloud else {"rotation": -40.0}},
        "augerino_color": {"method.train_copies": 0},  # its gradient would be noise even without a change
        "fixed_augmentation": {
            "method.distribution": "affine",
            "method.widths": {"rotation_x": 0.0} if cloud else dict.fromkeys(settings["widths"], 0.0),
        },
    }.get(cell.spec.method, {})


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
    critics = find_critics(cell, problem, model)
    state = with_critics(method.initial_state(parameters, sampler.environments), critics)
    networks = {name: FlatModule(critic.network) for name, critic in critics.items()}
    objective = Objective(method, problem.task, model, strategy, critics=networks)
    return objective, parameters, sampler.batch(examples[0], env[0]), state


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
    """Every environment's mean loss, one after another."""
    pairs = zip(batch.x, batch.y, strict=True)
    return torch.stack([problem.task.losses(model(x).prediction, y).mean() for x, y in pairs])


def curves_of(folder: RunFolder) -> pd.DataFrame:
    """A run's curves without what the clock said."""
    return pd.read_parquet(folder.curves).drop(columns=SECONDS)


def assert_same_training(first: RunFolder, second: RunFolder) -> None:
    """Curves and every tensor of the last checkpoint are equal to the last bit."""
    pd.testing.assert_frame_equal(curves_of(first), curves_of(second), check_exact=True)
    left, right = Checkpoint.load(first.checkpoint), Checkpoint.load(second.checkpoint)
    assert left is not None
    assert right is not None
    tensors = flatten(right.tensors)
    for name, value in flatten(left.tensors).items():
        assert torch.equal(value, tensors[name]), name


def run_until(cell: Cell, folder: RunFolder, step: int, loggers: Loggers | None = None, origin: str = "") -> None:
    """Train from the folder's checkpoint, or afresh, and keep a checkpoint after this step."""

    class Stop(Exception):
        """In the place of a kill."""

    class Until(Report):
        def step(self, number: int) -> None:
            if number > step:
                raise Stop

    problem = load(cell)
    training = TrainingLoop(cell, problem, model_on(torch.device("cpu"), cell, problem), folder, origin, 0, loggers)
    with suppress(Stop), Until("", step, folder.log, quiet=True) as report:
        training.run(report)
