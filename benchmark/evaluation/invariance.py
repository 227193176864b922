"""Invariance measured, not assumed: how far predictions move when inputs are transformed."""

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invbench.components.affine import action, basis, exponential, generators, random_motion
from invbench.core.data import Problem
from invbench.evaluation.eval_mode import eval_mode
from invbench.evaluation.metrics import outputs_of
from invbench.seeding import stream, torch_stream

if TYPE_CHECKING:
    pass

EXAMPLES, FEWEST = 128, 8
"""Test examples that are transformed where nobody says how many: in long runs, and in short ones at least."""
SHARE = 0.1
"""Most that measuring may cost of what training costs, where nobody says how many examples."""
STEP_COST = 3
"""Forward passes that a training step takes as long as."""
POINTS = 13
"""Magnitudes of each generator, from minus to plus its reach; the middle one is 0."""
REACH = {"rotation": math.pi, "translation": 2.0}
DEFORMATION = {"image": 0.5, "point_cloud": 0.2}
"""Reach of shears, stretches and scale."""
MOTIONS = 8
"""Random rigid motions of each point cloud."""


def transformations(problem: Problem) -> int:
    """How often `measure` predicts each example; never, if it is a vector."""
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
    """How far the model's predictions on test examples change, in the units of `Task.change`; {} for vectors.

    A model that is random in evaluation draws the same numbers for an input and for its transformations.

    Args:
        examples: of the test set at most, evenly spread over it.
        advanced: told how many transformations of all are done, after each.

    Returns:
        `generators`: for each its `magnitudes` and the mean `changes`. Square images: `quarter_turns` and `reflection`,
        mean changes, exact on the pixels, and `quarter_turns_error` and `reflection_error`, the largest differences of
        any output. Point clouds: `rigid_motions`, the mean change under shifts and turns at random.
    """
    if problem.kind == "vector":
        return {}
    split = problem.splits["test"]
    rows = torch.linspace(0, len(split) - 1, min(examples, len(split)), device=split.x.device).long()
    with eval_mode(model), torch.no_grad():
        probe = _Probe(model, problem, split.x[rows], seed, step, advanced)
        found: dict[str, Any] = {"examples": len(rows), "generators": _profiles(probe)}
        if problem.kind == "point_cloud":
            found["rigid_motions"] = _rigid_motions(probe)
        elif probe.x.shape[-1] == probe.x.shape[-2]:
            found |= _exact(probe, "quarter_turns", [partial(torch.rot90, k=k, dims=(-2, -1)) for k in (1, 2, 3)])
            found |= _exact(probe, "reflection", [partial(torch.flip, dims=(-1,))])
    return found


class _Probe:
    """A model, some inputs x (N, ...), and its predictions on them."""

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        x: Tensor,
        seed: int,
        step: int,
        advanced: Callable[[int], object] = lambda count: None,
    ) -> None:
        self.model, self.problem, self.x, self.stream = model, problem, x, (seed, step)
        self.advanced, self.count = advanced, 0
        self.before = self.predict(x)

    def predict(self, x: Tensor) -> Tensor:
        """Predictions (N, outputs) with the same random numbers at every call."""
        seed, step = self.stream
        with torch_stream(stream(seed, "evaluation", step), x.device):
            prediction = outputs_of(self.model, x).prediction
        self.count += 1
        self.advanced(self.count)
        return prediction

    def change(self, x: Tensor) -> Tensor:
        """Mean change of the prediction, a 0-dimensional tensor."""
        return self.problem.task.change(self.before, self.predict(x)).mean()


def _profiles(probe: _Probe) -> dict[str, dict[str, list[float]]]:
    act, profiles = action(probe.problem), {}
    for name in generators(probe.problem):
        reach = REACH.get(name.partition("_")[0], DEFORMATION[probe.problem.kind])
        magnitudes = torch.linspace(-reach, reach, POINTS, dtype=probe.x.dtype, device=probe.x.device)
        matrices = exponential(magnitudes[:, None], basis(probe.problem, [name]).to(probe.x))
        changes = [probe.change(act(probe.x, matrix.expand(len(probe.x), -1, -1))) for matrix in matrices]
        profiles[name] = {"magnitudes": magnitudes.tolist(), "changes": torch.stack(changes).tolist()}
    return profiles


def _exact(probe: _Probe, name: str, elements: list[Callable[[Tensor], Tensor]]) -> dict[str, float]:
    after = [probe.predict(element(probe.x)) for element in elements]
    changes = torch.stack([probe.problem.task.change(probe.before, prediction).mean() for prediction in after])
    largest = torch.stack([(prediction - probe.before).abs().max() for prediction in after]).max()
    return {name: changes.mean().item(), f"{name}_error": largest.item()}


def _rigid_motions(probe: _Probe) -> float:
    seed, step = probe.stream
    with torch_stream(stream(seed, "evaluation", step), probe.x.device):
        moved = [random_motion(probe.x) for _ in range(MOTIONS)]
    return torch.stack([probe.change(x) for x in moved]).mean().item()
