"""Checks of a method on a dataset that it can run on."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import stack_module_state, vmap
from torch.utils._pytree import tree_leaves, tree_map

from invbench.core.composition import GRADIENT, Composition
from invbench.core.data import Batch, Problem
from invbench.core.hooks import BatchMixing, FeatureTransform, LossChange
from invbench.core.method import Method, Outputs, State, as_outputs, class_overrides
from invbench.core.settings import setting
from invbench.core.trainer import Strategy
from invbench.errors import UserError
from invbench.runs.folder import RunFolder
from invbench.runs.resolve import RunConfig, from_spec
from invbench.testing.cells import assert_same_training, load, objective_of, run_until, without_coupling
from invbench.training.build import build_model, load_problem
from invbench.training.critic_training import find_critics, with_critics
from invbench.training.examples import counts_of
from invbench.training.flat_module import FlatModule
from invbench.training.gradients import Objective, Step, detached
from invbench.training.loop import TrainingLoop
from invbench.training.sampling import Sampler

RUNS = 3
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class MethodCheck:
    """Describe the check of one property of a method.

    Args:
        run: raises AssertionError where a cell does not have it.
        applies: whether a class can have it.
        everywhere: it is checked on every dataset, else on one.
    """

    run: Callable[[RunConfig], None]
    applies: Callable[[type[Method]], bool]
    everywhere: bool = True

    @property
    def name(self) -> str:
        """Return the name of the function."""
        return self.run.__name__


def require(condition: bool, otherwise: str) -> None:
    """Raise AssertionError with this text unless the condition holds."""
    if not condition:
        raise AssertionError(otherwise)


def fusable_settings_are_numbers(config: RunConfig) -> None:
    """Check that the default of each fusable setting is an int or a float, which can be stacked."""
    cls = type(list(config.method.parts.values())[-1])
    wrong = [name for name in cls.fusable() if type(cls.model_fields[name].get_default()) not in (int, float)]
    require(not wrong, f"setting {', '.join(wrong)} is fusable, but its default is no number")


def trains(config: RunConfig) -> None:
    """Check that steps of one epoch with a high learning rate are finite and move the parameters."""
    problem = load_problem(config).to(torch.device("cpu"), torch.float32)
    with TemporaryDirectory() as folder:
        training = TrainingLoop(config, problem, build_model(config, problem), RunFolder(Path(folder)), "", 0)
        before = {name: value.detach().clone() for name, value in training.parameters.items()}
        for number in range(min(2, training.sampler.steps_per_epoch)):
            training.step(training.next_batch())
            require(
                bool(torch.isfinite(training.objective_sum)),
                f"the objective of step {number} is {training.objective_sum.item()}",
            )
    broken = [name for name, value in training.parameters.items() if not torch.isfinite(value).all()]
    require(not broken, f"parameter {', '.join(broken)} is not finite after a step")
    moved = any(not torch.equal(value, before[name]) for name, value in training.parameters.items())
    require(moved, "no parameter moves")


def hooks_are_pure(config: RunConfig) -> None:
    """Check that the same arguments give the same step, and are afterwards what they were."""
    objective, parameters, batch, state = objective_of(without_coupling(config), "joint")
    kept = copy.deepcopy((dict(parameters), batch, state))
    first, second = (_step(objective, parameters, batch, state) for _ in range(2))
    changed = not _equal((parameters, batch, state), kept)
    require(not changed, "a hook changes the parameters, the batch or the state that it is given in place")
    require(_equal(first, second), "the same parameters, batch and state give another step the second time")


def order_of_environments_does_not_matter(config: RunConfig) -> None:
    """Check that two environments that change places in a batch leave the gradient as it is, to rounding."""
    objective, parameters, batch, state = objective_of(without_coupling(config), "joint")
    if len(batch.x) < 2:
        return
    order = torch.tensor([1, 0, *range(2, len(batch.x))])
    other = batch.at(order)
    first, second = (_step(objective, parameters, one, state).gradients for one in (batch, other))
    _require_close(first, second, 1e-10, "when two environments change places")


def strategies_agree(config: RunConfig) -> None:
    """Check that strategies joint, loop and vmap give one gradient and one objective, to rounding."""
    config = without_coupling(config)
    names: tuple[Strategy, ...] = ("joint", "loop", "vmap")
    first, *others = (_step(*objective_of(config, strategy)) for strategy in names)
    for name, other in zip(names[1:], others, strict=True):
        _require_close(first.gradients, other.gradients, 1e-10, f"between trainer.strategy=joint and {name}")
        same = torch.allclose(other.objective, first.objective, atol=1e-10)
        require(same, f"the objective differs between trainer.strategy=joint and {name}")


def whole_runs_can_be_mapped(config: RunConfig) -> None:
    """Check that vmap over runs that differ in seed and in every fusable setting equals a loop over them.

    Both take two steps, so that state that came out of a mapped step goes into one.
    """
    configs = [without_coupling(from_spec(config.spec.model_copy(update={"seed": seed}))) for seed in range(RUNS)]
    settings = {name: _spread(part) for name, part in configs[0].method.parts.items()}
    problems = [load(one, torch.float64) for one in configs]
    models = [build_model(one, problem).double() for one, problem in zip(configs, problems, strict=True)]
    batches = [_batches(one, problem) for one, problem in zip(configs, problems, strict=True)]
    critics = [find_critics(*run) for run in zip(configs, problems, models, strict=True)]
    networks = {name: FlatModule(critic.network) for name, critic in critics[0].items()}
    seconds = [with_critics({name: {} for name in each}, each) for each in critics]
    pairs = zip(configs, problems, strict=True)
    counts = [counts_of(one.method.examples(problem, one.spec.seed), problem) for one, problem in pairs]

    def two_steps(values: dict[str, Tensors], theta: Tensors, data: list[Batch], second: State, counts: State) -> Step:
        composition = configs[0].method.with_settings(values)
        objective = Objective(composition, problems[0].task, models[0], "vmap", critics=networks)
        first = composition.initial_state(theta, len(data[0].x), counts=counts)
        state = {name: part | second.get(name, {}) for name, part in first.items()}
        for batch in data:
            step = objective.pure_step(theta, batch, state)
            theta = {name: value - 0.1 * step.gradients[name] for name, value in theta.items()}
            state = detached(composition.advance(step.state))
        return step._replace(gradients=theta, state=state)

    stacked = {name: value.detach() for name, value in stack_module_state(models)[0].items()}
    together = [_stack([run[i] for run in batches]) for i in range(2)]
    arguments = (settings, stacked, together, _stack(seconds), _stack(counts))
    axes = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, arguments)
    mapped = vmap(two_steps, in_dims=axes, randomness="different")(*arguments)
    for run in range(RUNS):
        values = {part: {name: value[run] for name, value in each.items()} for part, each in settings.items()}
        theta = {name: value.detach() for name, value in models[run].named_parameters()}
        alone = two_steps(values, theta, batches[run], seconds[run], counts[run])
        parameters = {name: value[run] for name, value in mapped.gradients.items()}
        _require_close(alone.gradients, parameters, 1e-9, "after two steps, between a run alone and among others")
        rest = zip(_leaves((alone.objective, alone.state)), _leaves((mapped.objective, mapped.state)), strict=True)
        same = all(torch.allclose(b[run].double(), a.double(), atol=1e-9) for a, b in rest)
        require(same, "the objective or the state differs between a run alone and among others")


def resumes_to_the_bit(config: RunConfig) -> None:
    """Check that a run that stops between two evaluations and is resumed ends as one that does not, to the last bit."""
    trainer = config.spec.trainer | {"steps": 6, "evaluate_every": 3}
    config = from_spec(config.spec.model_copy(update={"trainer": trainer}))
    with TemporaryDirectory() as folder:
        whole, parted = (RunFolder(Path(folder, name)) for name in ("whole", "parted"))
        for run in (whole, parted):
            run.path.mkdir()
        run_until(config, whole, 6)
        run_until(config, parted, 4)
        run_until(config, parted, 6)
        try:
            assert_same_training(whole, parted)
        except AssertionError as error:
            raise AssertionError(f"a run that is taken up ends otherwise: {error}") from None


def rule_adds_penalty(config: RunConfig) -> None:
    """Check that a further penalty moves the step. Else `irmv1+rule` is the rule alone."""
    config = without_coupling(config)
    further = Composition({**config.method.parts, "further": _MeanSquare()})
    unmoved = _close(*(_gradients(config, method) for method in (config.method, further)))
    require(not unmoved, "the rule drops the penalty's gradient")


def penalty_heeds_its_weight(config: RunConfig) -> None:
    """Check that a step with three times the weight is another one."""
    config = without_coupling(config)
    name, part = list(config.method.parts.items())[-1]
    course = {field: 0 for field in ("anneal_steps", "pretrain_steps") if field in type(part).model_fields}
    weight: float = part.weight  # type: ignore[attr-defined]
    tried = [config.method.with_settings({name: course | {"weight": factor * weight}}) for factor in (1, 3)]
    require(not _close(*(_gradients(config, method) for method in tried)), "the step is the same with another weight")


def model_reports_what_is_learned(config: RunConfig) -> None:
    """Check that a model that wraps another one tells what that has learned.

    Else it is in no curve, and no penalty sees it.
    """
    name, part = list(config.method.parts.items())[-1]
    if config.backbone is None:
        raise AssertionError("there is no network to wrap")
    problem = load(config)
    backbone, inputs = config.backbone, config.method.inputs(problem)
    torch.manual_seed(0)
    try:
        whole = Composition({name: part})
        model = whole.build(_Learning(backbone.build(inputs)), problem, 0, lambda: backbone.build(inputs))
    except UserError:
        return  # it takes no network that has learned such
    x = problem.splits["test"].x[:4]
    for training in (True, False):
        learned = as_outputs(model.train(training)(x)).learned
        require("width" in learned, f"the model of {name} drops `Outputs.learned` of the model that it wraps")


def _trains(cls: type[Method]) -> bool:
    return cls.trains


def _separable(cls: type[Method]) -> bool:
    """Tell whether environments can be gone through one by one: not where hooks see the examples of all of them."""
    return (
        cls.trains
        and not (cls.replaces_model or cls.couples_rows)
        and not issubclass(cls, FeatureTransform | LossChange)
    )


def _mappable(cls: type[Method]) -> bool:
    return cls.trains and not (cls.replaces_model or cls.couples_rows) and not issubclass(cls, BatchMixing)


METHOD_CHECKS = (
    MethodCheck(fusable_settings_are_numbers, lambda cls: True, everywhere=False),
    MethodCheck(trains, _trains),
    MethodCheck(hooks_are_pure, _trains),
    MethodCheck(order_of_environments_does_not_matter, _trains),
    MethodCheck(strategies_agree, _separable),
    MethodCheck(whole_runs_can_be_mapped, _mappable),
    MethodCheck(resumes_to_the_bit, _trains, everywhere=False),
    MethodCheck(rule_adds_penalty, lambda cls: cls.trains and class_overrides(cls, *GRADIENT), everywhere=False),
    MethodCheck(
        model_reports_what_is_learned,
        lambda cls: cls.trains and class_overrides(cls, "build") and not cls.replaces_model,
        everywhere=False,
    ),
    MethodCheck(penalty_heeds_its_weight, lambda cls: cls.trains and "weight" in cls.model_fields, everywhere=False),
)


class _Learning(nn.Module):
    """Pass a network off as one that has learned a width besides its weights."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.width = backbone, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Outputs:
        return as_outputs(self.backbone(x))._replace(learned={"width": self.width})


class _MeanSquare(Method):
    """Penalise the mean square of the predictions."""

    weight: float = setting(1.0, "λ")

    def penalty(self, risks: Tensor, outputs: Outputs, batch: Batch, state: State) -> tuple[Tensor, State]:
        return self.weight * outputs.prediction.square().mean(), state


def _step(objective: Objective, parameters: Tensors, batch: Batch, state: State) -> Step:
    """Take one step, and leave torch's generator as it was, so that the next one draws the same."""
    with torch.random.fork_rng(devices=()):
        return objective.step(parameters, batch, state)


def _gradients(config: RunConfig, method: Composition) -> Tensors:
    return _step(*objective_of(config, "joint", method=method)).gradients


def _spread(part: Method) -> Tensors:
    """Return a value per run for each fusable setting: the default, and two others inside its bounds."""
    values = {}
    for name in type(part).fusable():
        default = getattr(part, name)
        candidates = [type(default)(factor * default) for factor in (1, 0.5, 0.25)]
        for value in candidates:
            type(part).parse({name: value}, "method")
        values[name] = torch.tensor(candidates, dtype=torch.int64 if isinstance(default, int) else torch.float64)
    return values


def _batches(config: RunConfig, problem: Problem) -> list[Batch]:
    sampler = Sampler.of(config.method.examples(problem, config.spec.seed), config.trainer, config.spec.seed)
    epochs = [sampler.epoch(number) for number in range(2)]
    return [sampler.batch(examples[0], env[0]) for examples, env in epochs]


def _stack(trees: list[Any]) -> Any:
    """Stack equal trees of tensors along a new first axis of runs."""
    return tree_map(lambda *leaves: torch.stack(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *trees)


def _leaves(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _equal(first: Any, second: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(_leaves(first), _leaves(second), strict=True))


def _close(first: Tensors, second: Tensors) -> bool:
    return all(torch.allclose(value, second[name], atol=1e-12) for name, value in first.items())


def _require_close(first: Tensors, second: Tensors, tolerance: float, when: str) -> None:
    wrong: Iterable[str] = (n for n, v in first.items() if not torch.allclose(second[n], v, atol=tolerance))
    name = next(iter(wrong), "")
    require(not name, f"the gradient of {name} changes {when}")
