"""The one contract: what every registered method must do on every dataset it can run on."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cells import (
    SMALL,
    assert_same_training,
    load,
    objective_of,
    possible_cells,
    possible_uncoupled_cells,
    run_until,
    small_cell,
    without_coupling,
)
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from invbench.core.composition import GRADIENT, Composition
from invbench.core.data import Batch, Problem
from invbench.core.method import Gradients, Method, Outputs, State, as_outputs, class_overrides
from invbench.core.registry import DATASETS, METHODS, unmet
from invbench.core.settings import setting
from invbench.core.task import Regression
from invbench.runs.record import RunFolder
from invbench.runs.resolve import Cell
from invbench.seeding import stream
from invbench.training.build import build_model
from invbench.training.critic_training import find_critics, with_critics
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective, Step, detached
from invbench.training.loop import TrainingLoop
from invbench.training.sampling import Sampler

CELLS = [cell for cell in possible_cells() if METHODS.literal(cell[0], "trains", True)]
pytestmark = pytest.mark.usefixtures("standins")
RUNS = 3
QUICK = ("spirals", "digits", "colored_digits")
VARIANTS: list[tuple[str, str, dict[str, Any]]] = [
    ("augerino", "olivetti", {"method__train_copies": 3, "method__generators": ["rotation", "shear"]}),
    ("augerino", "qm9", {"method__interval": "symmetric", "backbone__group": "trivial"}),
    ("augerino", "digits", {"method__average": "probabilities", "method__train_copies": 2}),
    ("fixed_augmentation", "qm9", {"method__distribution": "affine", "method__widths": {"rotation_x": 1.0}}),
    ("fixed_augmentation", "cifar10", {"method__distribution": "crop_flip"}),
    ("erm", "cifar10", {"backbone__name": "resnet9"}),
    ("and_mask", "cifar10", {"backbone__name": "resnet9", "backbone__norm": "group"}),
    ("erm", "qm9", {"backbone__name": "egnn"}),
    ("erm", "qm9", {"backbone__group": "trivial"}),
    ("and_mask", "linear_unit_tests", {"dataset__example": "example2s"}),
    ("and_mask", "linear_unit_tests", {"dataset__example": "example3"}),
    ("and_mask", "irm_regression", {"dataset__problem": "cows_camels"}),
    ("and_mask", "irm_regression", {"dataset__problem": "small_margin"}),
    ("and_mask", "chain_sem", {"dataset__setup": "pes"}),
    ("and_mask", "colored_mnist", {"dataset__variant": "domainbed"}),
    ("erm", "colored_mnist", {"dataset__grayscale": True}),
    ("erm", "olivetti", {"dataset__task": "identity"}),
    ("erm", "cifar10", {"dataset__random_labels_fraction": 1.0, "dataset__transform": "none"}),
    ("erm", "digits", {"dataset__environments": "rotation_bins"}),
    ("erm", "qm9", {"dataset__target": "Cv"}),
    ("erm", "mi_toy", {"dataset__nuisance": "latent"}),
]
"""Other forms of the datasets than their defaults."""


@pytest.mark.parametrize(("method", "dataset", "settings"), [*((*cell, {}) for cell in CELLS), *VARIANTS])
def test_a_few_steps_stay_finite_and_move_the_parameters(
    method: str, dataset: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    cell = small_cell(method, dataset, trainer__strategy="joint", trainer__learning_rate=1e-2, **settings)
    problem = load(cell)
    training = TrainingLoop(cell, problem, build_model(cell, problem), RunFolder(tmp_path), "", 0)
    before = {name: value.detach().clone() for name, value in training.parameters.items()}
    for examples, env in zip(*(part[:2] for part in training.sampler.epoch(0)), strict=True):
        training.step(examples, env)
        assert torch.isfinite(training.loss)
    assert all(torch.isfinite(value).all() for value in training.parameters.values())
    assert any(not torch.equal(value, before[name]) for name, value in training.parameters.items())


@pytest.mark.parametrize(("method", "dataset", "settings"), [*((*cell, {}) for cell in CELLS), *VARIANTS])
def test_the_problem_provides_what_its_class_says(method: str, dataset: str, settings: dict[str, Any]) -> None:
    cell = small_cell(method, dataset, **settings)
    problem, provides = load(cell), set(cell.dataset.capabilities())
    train = problem.splits["train"]
    assert problem.kind in provides
    assert ("environments" in provides) == (train.env is not None)
    assert ("nuisance" in provides) == (train.nuisance is not None)
    assert ("regression" if isinstance(problem.task, Regression) else "classification") in provides
    assert len({"classification", "regression"} & provides) == 1
    assert not unmet(METHODS.traits(method), tuple(provides))
    assert provides <= set(DATASETS.traits(dataset))


@pytest.mark.parametrize(("method", "dataset"), CELLS)
def test_hooks_are_pure(method: str, dataset: str) -> None:
    """The same arguments give the same result, and are what they were afterwards."""
    objective, parameters, batch, state = objective_of(without_coupling(small_cell(method, dataset)), "joint")
    kept = copy.deepcopy((dict(parameters), batch, state))
    with torch.random.fork_rng():
        first = objective.step(parameters, batch, state)
    second = objective.step(parameters, batch, state)
    for a, b in zip(_leaves((parameters, batch, state)), _leaves(kept), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(_leaves(first), _leaves(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("method", "dataset"), CELLS)
def test_order_of_environments_does_not_matter(method: str, dataset: str) -> None:
    objective, parameters, batch, state = objective_of(without_coupling(small_cell(method, dataset)), "joint")
    order = torch.randperm(len(batch.x))
    shuffled = Batch(*(part if part is None else part[order] for part in batch))
    first, second = objective.step(parameters, batch, state), objective.step(parameters, shuffled, state)
    for name, gradient in first.gradients.items():
        assert torch.allclose(second.gradients[name], gradient, atol=1e-10), name


@pytest.mark.parametrize(("method", "dataset"), possible_uncoupled_cells())
def test_strategies_agree(method: str, dataset: str) -> None:
    cell = without_coupling(small_cell(method, dataset))
    steps = []
    for strategy in ("joint", "loop", "vmap"):
        objective, parameters, batch, state = objective_of(cell, strategy)  # type: ignore[arg-type]
        steps.append(objective.step(parameters, batch, state))
    for step in steps[1:]:
        for name, gradient in steps[0].gradients.items():
            assert torch.allclose(step.gradients[name], gradient, atol=1e-10), name
        assert torch.allclose(step.objective, steps[0].objective, atol=1e-10)


@pytest.mark.parametrize(("method", "dataset"), possible_uncoupled_cells())
def test_whole_runs_can_be_mapped(method: str, dataset: str) -> None:
    """vmap over runs that differ in seed and in every fusable setting equals a loop over them, step after step.

    Two steps, so that state that came out of a mapped step goes into one.
    """
    cells = [without_coupling(small_cell(method, dataset, seed)) for seed in range(RUNS)]
    parts = cells[0].method.parts
    settings = {name: _spread(part) for name, part in parts.items()}
    problems = [load(cell, torch.float64) for cell in cells]
    models = [build_model(cell, problem).double() for cell, problem in zip(cells, problems, strict=True)]
    batches = [_batches(cell, problem) for cell, problem in zip(cells, problems, strict=True)]
    critics = [find_critics(*run) for run in zip(cells, problems, models, strict=True)]
    networks = {name: FlatModule(critic.network) for name, critic in critics[0].items()}
    seconds = [with_critics({name: {} for name in found}, found) for found in critics]

    def two_steps(
        values: dict[str, dict[str, Tensor]], theta: dict[str, Tensor], data: list[Batch], second: State
    ) -> Step:
        composition = cells[0].method.with_settings(values)
        objective = Objective(composition, problems[0].task, models[0], "vmap", critics=networks)
        first = composition.initial_state(theta, len(data[0].x))
        state = {name: own | second.get(name, {}) for name, own in first.items()}
        for batch in data:
            step = objective.step(theta, batch, state)
            theta = {name: value - 0.1 * step.gradients[name] for name, value in theta.items()}
            state = detached(composition.advance(step.state))
        return step._replace(gradients=theta, state=state)

    stacked, _ = stack_module_state(models)
    stacked = {name: value.detach() for name, value in stacked.items()}
    together = [_stack([run[i] for run in batches]) for i in range(2)]
    arguments = (settings, stacked, together, _stack(seconds))
    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arguments)
    mapped = vmap(two_steps, in_dims=axes, randomness="different")(*arguments)
    for run in range(RUNS):
        own = {part: {name: value[run] for name, value in values.items()} for part, values in settings.items()}
        theta = {name: value.detach() for name, value in models[run].named_parameters()}
        alone = two_steps(own, theta, batches[run], seconds[run])
        for name, value in alone.gradients.items():
            assert torch.allclose(mapped.gradients[name][run], value, atol=1e-9), name
        assert torch.allclose(mapped.objective[run], alone.objective, atol=1e-9)
        for a, b in zip(_leaves(mapped.state), _leaves(alone.state), strict=True):
            assert torch.allclose(a[run].double(), b.double(), atol=1e-9)


@pytest.mark.parametrize("method", sorted({method for method, _ in CELLS}))
def test_a_run_that_is_taken_up_ends_as_if_nothing_had_happened(method: str, tmp_path: Path) -> None:
    """To the last bit; tests/test_resume.py kills real processes."""
    dataset = next(dataset for name, dataset in CELLS if name == method and dataset in QUICK)
    cell = small_cell(method, dataset, trainer__steps=6, trainer__evaluate_every=3)
    whole, parted = (RunFolder(tmp_path / name) for name in ("whole", "parted"))
    for folder in (whole, parted):
        folder.path.mkdir()
    run_until(cell, whole, 6)
    run_until(cell, parted, 4)
    run_until(cell, parted, 6)
    assert_same_training(whole, parted)


def gradients_of(cell: Cell, method: Composition) -> dict[str, Tensor]:
    """Of one step."""
    objective, parameters, batch, state = objective_of(cell, "joint", method=method)
    with torch.random.fork_rng():
        return objective.step(parameters, batch, state).gradients


def differ(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return any(not torch.allclose(value, second[name], atol=1e-12) for name, value in first.items())


def adds_penalties(cell: Cell) -> bool:
    """Whether a further penalty moves the step of a method."""
    further = Composition({**cell.method.parts, "further": ForgetsWeight()})
    return differ(gradients_of(cell, cell.method), gradients_of(cell, further))


def passes_learned_on(method: Method, problem: Problem, backbone: nn.Module) -> bool:
    """Whether a method's model tells what the model that it wraps has learned."""
    torch.manual_seed(0)
    model = method.build(Learning(backbone), problem)
    x = problem.splits["test"].x[:4]
    return all("width" in as_outputs(model.train(training)(x)).learned for training in (True, False))


def heeds_its_weight(cell: Cell) -> bool:
    """Whether a step with three times the weight is another one."""
    ((name, part),) = list(cell.method.parts.items())[-1:]
    changed = dict.fromkeys(("anneal_steps", "pretrain_steps"), 0)
    fields = {field: value for field, value in changed.items() if field in type(part).model_fields}
    steps = [
        gradients_of(cell, cell.method.with_settings({name: fields | {"weight": factor * part.weight}}))  # type: ignore[attr-defined]
        for factor in (1, 3)
    ]
    return differ(*steps)


class Learning(nn.Module):
    """A network that has learned a width besides its weights."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.width = backbone, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Outputs:
        return as_outputs(self.backbone(x))._replace(learned={"width": self.width})


class ForgetsPenalty(Method):
    """A rule that leaves the penalty out."""

    def combine(
        self, risk_grads: Gradients, penalty_grad: Gradients, env: Tensor, state: State
    ) -> tuple[Gradients, State]:
        return {name: gradient.mean(0) for name, gradient in risk_grads.items()}, state


class ForgetsLearned(Method):
    """A model that keeps the prediction only."""

    def build(self, model: nn.Module, problem: Problem) -> nn.Module:
        class Wrapped(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                prediction: Tensor = model(x).prediction
                return prediction

        return Wrapped()


class ForgetsWeight(Method):
    """A penalty that has a weight and does not use it."""

    weight: float = setting(1.0, "λ", fusable=True)

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return outputs.prediction.square().mean(), state


def first_cell(method: str) -> Cell:
    """The method on the first quick dataset, or on any."""
    datasets = [dataset for name, dataset in CELLS if name == method]
    quick = [dataset for dataset in datasets if dataset in QUICK]
    return without_coupling(small_cell(method, (quick or datasets)[0]))


def methods_with(*hooks: str) -> list[str]:
    return [name for name in sorted({method for method, _ in CELLS}) if class_overrides(METHODS.load(name), *hooks)]


@pytest.mark.parametrize("method", methods_with(*GRADIENT))
def test_a_gradient_rule_adds_the_penalty(method: str) -> None:
    """Else `irmv1+rule` is the rule alone."""
    assert adds_penalties(first_cell(method))


WRAPPING = [name for name in methods_with("build") if not METHODS.literal(name, "replaces_model", False)]


@pytest.mark.parametrize("method", WRAPPING)
def test_a_model_tells_what_the_one_inside_has_learned(method: str) -> None:
    """Else nothing of it is in the curves, and no regulariser sees it."""
    dataset = next(dataset for name, dataset in CELLS if name == method)
    cell = small_cell(method, dataset)
    problem = load(cell)
    assert cell.backbone is not None
    assert passes_learned_on(cell.method.parts[method], problem, cell.backbone.build(problem))


WEIGHING = [name for name, _ in dict(CELLS).items() if "weight" in METHODS.load(name).model_fields]


@pytest.mark.parametrize("method", WEIGHING)
def test_a_penalty_heeds_its_weight(method: str) -> None:
    assert heeds_its_weight(first_cell(method))


def test_methods_that_forget_are_found() -> None:
    cell = without_coupling(small_cell("erm", "spirals"))
    problem = load(cell, torch.float64)

    def of(method: Method) -> Cell:
        return replace(cell, method=Composition({"own": method}))

    assert not adds_penalties(of(ForgetsPenalty()))
    assert not heeds_its_weight(of(ForgetsWeight()))
    assert cell.backbone is not None
    backbone = cell.backbone.build(problem).double()
    assert not passes_learned_on(ForgetsLearned(), problem, backbone)
    assert passes_learned_on(Method(), problem, backbone), "that wraps nothing"


@pytest.mark.parametrize("method", METHODS.entries())
def test_fusable_settings_are_numbers(method: str) -> None:
    cls = METHODS.load(method)
    assert all(type(cls.model_fields[name].get_default()) in (int, float) for name in cls.fusable())


@pytest.mark.parametrize("dataset", DATASETS.entries())
def test_loading_is_pure(dataset: str) -> None:
    """The same seed gives the same problem, however often; another seed gives another, or the same on purpose."""
    seed, made = stream(0, "data"), small_cell("erm", dataset).dataset
    assert made.load(seed).fingerprint == made.load(seed).fingerprint == made.load(stream(0, "data")).fingerprint
    same = made.load(stream(1, "data")).fingerprint == made.load(seed).fingerprint
    assert same == (dataset in ("and_mask_regression", "cifar10", "qm9"))


def test_every_dataset_has_a_small_version() -> None:
    assert set(DATASETS.entries()) <= set(SMALL)


def _spread(part: Method) -> dict[str, Tensor]:
    """For each fusable setting a value per run: the default, and two others inside its bounds."""
    values = {}
    for name in type(part).fusable():
        default = getattr(part, name)
        candidates = [type(default)(factor * default) for factor in (1, 0.5, 0.25)]
        for value in candidates:
            type(part).parse({name: value}, "method")
        values[name] = torch.tensor(candidates, dtype=torch.int64 if isinstance(default, int) else torch.float64)
    return values


def _batches(cell: Cell, problem: Problem) -> list[Batch]:
    sampler = Sampler.of(problem.splits["train"], cell.trainer, cell.spec.seed)
    epochs = [sampler.epoch(number) for number in range(2)]
    return [sampler.batch(examples[0], env[0]) for examples, env in epochs]


def _stack(trees: list[Any]) -> Any:
    """Equal trees of tensors, with an axis of runs in front of each."""
    return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *trees)


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
