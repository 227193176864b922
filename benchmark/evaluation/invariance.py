"""Measure how far predictions change when inputs are transformed."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from invbench.components.affine import action, basis, exponential, generators, random_motion
from invbench.components.eval_mode import eval_mode
from invbench.components.symmetry import EquivariantLayer
from invbench.core.data import Problem
from invbench.core.method import Outputs
from invbench.core.task import Regression
from invbench.evaluation.groups import MOST
from invbench.evaluation.metrics import outputs_of
from invbench.seeding import stream, torch_stream

EXAMPLES, FEWEST = 128, 8
"""Default number of test examples that are transformed: in long runs, and the least in short ones."""
SHARE = 0.1
"""Largest cost of the measurement as a share of the training's, for the default number of examples."""
STEP_COST = 3
"""Cost of a training step in forward passes."""
POINTS = 13
"""Number of magnitudes of each generator, from minus to plus its reach; the middle one is 0."""
REACH = {"rotation": math.pi, "translation": 2.0}
DEFORMATION = {"image": 0.5, "point_cloud": 0.2}
"""Largest magnitude of shears, stretches and scalings, by kind of input."""
MOTIONS = 8
"""Number of random rigid motions of each point cloud."""


def transformations(problem: Problem) -> int:
    """Count how often `measure` predicts each example; 0 for vectors."""
    if problem.kind == "vector":
        return 0
    profile = POINTS * len(generators(problem))
    exact = 4 if problem.input_shape[-1] == problem.input_shape[-2] else 0
    return 1 + profile + (MOTIONS if problem.kind == "point_cloud" else exact)


def measure(
    model: nn.Module,
    problem: Problem,
    seed: int,
    step: int,
    examples: int = EXAMPLES,
    advanced: Callable[[int], object] = lambda count: None,
) -> dict[str, Any]:
    """Measure how far predictions on transformed test examples change, in units of `Task.change`; {} for vectors.

    A model that is random in evaluation draws the same numbers for an input and for its transformations.

    Args:
        model: predicts inputs (N, ...); it is in evaluation mode meanwhile.
        problem: what it was trained on.
        seed, step: of the random numbers.
        examples: largest number of test examples, evenly spread over the test set.
        advanced: called after each transformation with the number of those done.

    Returns:
        `generators`: for each its `magnitudes` and the mean `changes`; of two to 32 classes also `by_class`, for each
        the mean over magnitudes and its examples; where the network has a representation φ also `representation`,
        the mean of ‖φ(g x) - φ(x)‖ / ‖φ(x)‖ at each magnitude. Square images: `quarter_turns` and `reflection`,
        mean changes, exact on the pixels, and `quarter_turns_error` and `reflection_error`, the largest differences of
        any output; and where the network has equivariant convolutions `layers`, for each φ, in the order of their
        calls, the mean of ‖φ(ρ(g) z) - ρ'(g) φ(z)‖ / ‖φ(z)‖ over quarter turns g and the inputs z that some examples
        give it, which turn by a representation ρ as its outputs do by ρ'. Point clouds: `rigid_motions`, the mean
        change under shifts and turns at random.
    """
    if problem.kind == "vector":
        return {}
    split = problem.splits["test"]
    rows = torch.linspace(0, len(split) - 1, min(examples, len(split)), device=split.x.device).long()
    with eval_mode(model), torch.no_grad():
        probe = _Probe(model, problem, split.x[rows], split.y[rows], seed, step, advanced)
        profile: dict[str, Any] = {"examples": len(rows), "generators": _profiles(probe)}
        if problem.kind == "point_cloud":
            profile["rigid_motions"] = _rigid_motions(probe)
        elif probe.x.shape[-1] == probe.x.shape[-2]:
            profile |= _exact(probe, "quarter_turns", [partial(torch.rot90, k=k, dims=(-2, -1)) for k in (1, 2, 3)])
            profile |= _exact(probe, "reflection", [partial(torch.flip, dims=(-1,))])
            if layers := _layers(probe):
                profile["layers"] = layers
    return profile


def affordable_examples(problem: Problem, trained: int) -> int:
    """Return the default number of examples to measure after training on so many examples, repeats counted.

    It depends on numbers of forward passes, not on the clock: the same run measures the same examples on any machine.
    """
    affordable = int(SHARE * STEP_COST * trained / max(1, transformations(problem)))
    return min(EXAMPLES, max(FEWEST, affordable))


class _Probe:
    """A model, inputs x (N, ...), and the predictions on them as they are."""

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        x: Tensor,
        y: Tensor,
        seed: int,
        step: int,
        advanced: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.model, self.problem, self.x, self.stream = model, problem, x, (seed, step)
        self.advanced, self.count = advanced, 0
        self.rows = {} if isinstance(problem.task, Regression) else rows_of_classes(y.long())
        self.outputs = self.outputs_on(x)
        self.before = self.outputs.prediction

    def predict(self, x: Tensor) -> Tensor:
        """Predict (N, outputs) with the same random numbers at every call."""
        return self.outputs_on(x).prediction

    def outputs_on(self, x: Tensor) -> Outputs:
        """Return the outputs (N, ...) with the same random numbers at every call, and say that one more is done."""
        outputs = self.forward(x)
        self.count += 1
        self.advanced(self.count)
        return outputs

    def forward(self, x: Tensor) -> Outputs:
        """Return the outputs (N, ...) with the same random numbers at every call."""
        seed, step = self.stream
        with torch_stream(stream(seed, "evaluation", step), x.device):
            return outputs_of(self.model, x)

    def change(self, x: Tensor) -> Tensor:
        """Return the mean change of the prediction on transformed inputs, a 0-dimensional tensor."""
        return self.problem.task.change(self.before, self.predict(x)).mean()


def _profiles(probe: _Probe) -> dict[str, dict[str, Any]]:
    """Measure the mean changes over the magnitudes of each generator."""
    act, profiles = action(probe.problem), {}
    for name in generators(probe.problem):
        reach = REACH.get(name.partition("_")[0], DEFORMATION[probe.problem.kind])
        magnitudes = torch.linspace(-reach, reach, POINTS, dtype=probe.x.dtype, device=probe.x.device)
        matrices = exponential(magnitudes[:, None], basis(probe.problem, [name]).to(probe.x))
        after = [probe.outputs_on(act(probe.x, matrix.expand(len(probe.x), -1, -1))) for matrix in matrices]
        each = torch.stack([probe.problem.task.change(probe.before, outputs.prediction) for outputs in after])
        profile: dict[str, Any] = {"magnitudes": magnitudes.tolist(), "changes": each.mean(1).tolist()}
        if probe.rows:
            profile["by_class"] = {str(k): each[:, rows].mean().item() for k, rows in probe.rows.items()}
        if (expected := probe.outputs.representation) is not None:
            distances = [_relative_distance(outputs.representation, expected) for outputs in after]  # type: ignore[arg-type]
            profile["representation"] = torch.stack(distances).tolist()
        profiles[name] = profile
    return profiles


def _relative_distance(values: Tensor, expected: Tensor) -> Tensor:
    """Return the mean over examples (N, ...) of ‖values - expected‖ / ‖expected‖, a 0-dimensional tensor."""
    distances: Tensor = (values - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1).clamp(min=1e-12)
    return distances.mean()


def rows_of_classes(y: Tensor) -> dict[int, Tensor]:
    """Return the rows of each class of labels (N,); {} where there are more than 32 or one."""
    classes = y.unique().tolist()
    return {k: (y == k).nonzero()[:, 0] for k in classes} if 2 <= len(classes) <= MOST else {}


def _exact(probe: _Probe, name: str, elements: list[Callable[[Tensor], Tensor]]) -> dict[str, float]:
    """Measure the mean change, and the largest difference of any output, under transformations without resampling."""
    after = [probe.predict(element(probe.x)) for element in elements]
    changes = torch.stack([probe.problem.task.change(probe.before, prediction).mean() for prediction in after])
    largest = torch.stack([(prediction - probe.before).abs().max() for prediction in after]).max()
    return {name: changes.mean().item(), f"{name}_error": largest.item()}


def _layers(probe: _Probe) -> dict[str, float]:
    """Measure how far the outputs of each equivariant layer do not turn with its inputs, by quarters."""
    layers = {name: part for name, part in probe.model.named_modules() if isinstance(part, EquivariantLayer)}
    if not layers:
        return {}
    x = probe.x[:: max(1, len(probe.x) // FEWEST)][:FEWEST]
    errors: dict[str, float] = {}
    for (name, number), inputs in _calls(probe, layers, x).items():
        layer = layers[name]
        before = layer(*inputs)
        turns = [(layer.turned_inputs(inputs, k), layer.turned_outputs(before, k, inputs)) for k in (1, 2, 3)]
        each = [
            _relative_distance(layer(*turned), expected)
            for turned, expected in turns
            if turned is not None and expected is not None
        ]
        if each:
            errors[name if number == 1 else f"{name} {number}"] = torch.stack(each).mean().item()
    return errors


def _calls(probe: _Probe, layers: Mapping[str, nn.Module], x: Tensor) -> dict[tuple[str, int], tuple[Any, ...]]:
    """Return the inputs of layers, in the order of their calls, by name and number of the call."""
    calls: dict[tuple[str, int], tuple[Any, ...]] = {}
    counts: Counter[str] = Counter()

    def keep(name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        counts[name] += 1
        calls[name, counts[name]] = tuple(value.detach() if isinstance(value, Tensor) else value for value in inputs)

    with ExitStack() as hooks, torch.enable_grad():  # without gradients a steerable network has plain layers
        # Many inputs are predicted in parts, of which the last one is kept.
        hooks.callback(probe.model.register_forward_pre_hook(lambda model, inputs: counts.clear()).remove)
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(partial(keep, name)).remove)
        probe.forward(x)
    return calls


def _rigid_motions(probe: _Probe) -> float:
    """Measure the mean change under random rigid motions."""
    seed, step = probe.stream
    with torch_stream(stream(seed, "evaluation", step), probe.x.device):
        moved = [random_motion(probe.x) for _ in range(MOTIONS)]
    return torch.stack([probe.change(x) for x in moved]).mean().item()
