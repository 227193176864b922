"""Small cells: a method on a dataset, trained in about a second, and what the engine makes of it."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from invbench.core.backbone import couples_rows
from invbench.core.composition import Composition
from invbench.core.data import Batch, Problem
from invbench.core.method import State
from invbench.core.registry import DATASETS, METHODS
from invbench.core.trainer import Strategy
from invbench.pytree import flatten
from invbench.runs.checkpoint import Checkpoint
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, resolve, with_penalty
from invbench.training.build import build_model, load_problem, loaded, model_on
from invbench.training.critic_training import find_critics, with_critics
from invbench.training.curve_columns import SECONDS
from invbench.training.examples import counts_of
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective
from invbench.training.loggers import Loggers
from invbench.training.loop import TrainingLoop
from invbench.training.progress import Report
from invbench.training.sampling import Sampler

STEPS = 12
PLAIN = {"vector": "mlp", "image": "mlp", "point_cloud": "deep_sets"}
"""Networks that treat each row by itself, by kind of input."""


def small_settings(method: str, dataset: str) -> dict[str, Any]:
    """Return the settings by dotted name that make a cell quick.

    Those of the dataset come first, then those of the method; of a composition `a+b` those of b.
    """
    method = method.rpartition("+")[2]
    settings = dict(DATASETS.literal(dataset, "small", {})) | dict(METHODS.literal(method, "small", {}))
    for requirement, more in DATASETS.literal(dataset, "small_when", {}).items():
        if requirement in METHODS.traits(method):
            settings |= more
    has_network = METHODS.literal(method, "replaces_model", False)
    return {name: value for name, value in settings.items() if not (has_network and name.startswith("backbone."))}


def small_config(method: str, dataset: str, seed: int = 0, settings: Mapping[str, Any] | None = None) -> RunConfig:
    """Return a cell that trains in about a second; `settings`, by dotted name, win over those that make it quick."""
    whole = method if "+" in method else with_penalty(method)
    quick = {"trainer.steps": STEPS} | small_settings(method, dataset)
    return resolve(whole, dataset, seed, quick | dict(settings or {}))


def without_coupling(config: RunConfig) -> RunConfig:
    """Return the cell on a network that treats each row by itself, without chance, so that all strategies agree."""
    method = config.spec.method.rpartition("+")[2]
    still: dict[str, Any] = {}
    for provided, settings in METHODS.literal(method, "deterministic", {}).items():
        if provided in config.dataset.provides:
            still |= settings
    network = {f"backbone.{name}": value for name, value in config.spec.backbone_settings.items()}
    if _couples_rows(config):
        network = {"backbone.name": PLAIN[load_problem(config).kind], "backbone.width": 8}
    elif not still:
        return config
    else:
        network |= {"backbone.name": config.spec.backbone} if config.backbone else {}
    kept = (
        *("steps", "batch_size", "environments_per_step", "dtype", "strategy"),
        *("optimizer", "epsilon", "learning_rate"),
    )
    trainer = {f"trainer.{name}": value for name, value in config.spec.trainer.items() if name in kept}
    data = {f"dataset.{name}": value for name, value in config.spec.dataset_settings.items()}
    small = dict(METHODS.literal(method, "small", {}))
    return resolve(config.spec.method, config.spec.dataset, config.spec.seed, trainer | data | network | small | still)


def _couples_rows(config: RunConfig) -> bool:
    """Tell whether the cell's backbone has layers that normalise over a batch, or drop at random."""
    if config.backbone is None:
        return False
    with torch.random.fork_rng(devices=()):
        network = config.backbone.build(load_problem(config))
    return couples_rows(network) or any(isinstance(module, _DropoutNd) for module in network.modules())


def load(config: RunConfig, dtype: torch.dtype = torch.float32) -> Problem:
    """Load the cell's problem onto the CPU, as its dataset makes it."""
    return loaded(config).to(torch.device("cpu"), dtype)


def objective_of(
    config: RunConfig, strategy: Strategy, dtype: torch.dtype = torch.float64, method: Composition | None = None
) -> tuple[Objective, dict[str, Tensor], Batch, State]:
    """Return the engine's gradient function of a cell, with its first parameters, batch and state."""
    problem = load(config, dtype)
    model = build_model(config, problem).to(dtype)
    method = method or config.method
    parameters = {name: value.detach().requires_grad_() for name, value in model.named_parameters()}
    split = method.examples(problem, config.spec.seed)
    sampler = Sampler.of(split, config.trainer, config.spec.seed)
    examples, env = sampler.epoch(0)
    critics = find_critics(config, problem, model)
    fresh = method.initial_state(parameters, sampler.environments, counts=counts_of(split, problem))
    state = with_critics(fresh, critics)
    networks = {name: FlatModule(critic.network) for name, critic in critics.items()}
    objective = Objective(method, problem.task, model, strategy, critics=networks)
    return objective, parameters, sampler.batch(examples[0], env[0]), state


def run_until(
    config: RunConfig, folder: RunFolder, step: int, loggers: Loggers | None = None, origin: str = ""
) -> None:
    """Train from the folder's checkpoint, or afresh, and keep a checkpoint after this step."""

    class Stop(Exception):
        """Stop a run in the place of a kill."""

    class Until(Report):
        def step(self, number: int) -> None:
            if number > step:
                raise Stop

    problem = load(config, getattr(torch, config.trainer.dtype))
    training = TrainingLoop(config, problem, model_on(torch.device("cpu"), config, problem), folder, origin, 0, loggers)
    with suppress(Stop), Until("", step, folder.log, quiet=True) as report:
        training.run(report)


def curves_of(folder: RunFolder) -> pd.DataFrame:
    """Read a run's curves without the columns that the clock fills."""
    return pd.read_parquet(folder.curves).drop(columns=SECONDS)


def assert_same_training(first: RunFolder, second: RunFolder) -> None:
    """Raise AssertionError unless curves and every tensor of the last checkpoint are equal to the last bit."""
    pd.testing.assert_frame_equal(curves_of(first), curves_of(second), check_exact=True)
    left, right = Checkpoint.load(first.checkpoint), Checkpoint.load(second.checkpoint)
    if left is None or right is None:
        raise AssertionError("a run has left no checkpoint")
    tensors = flatten(right.tensors)
    for name, value in flatten(left.tensors).items():
        if not torch.equal(value, tensors[name]):
            raise AssertionError(f"{name} differs")
