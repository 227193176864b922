"""Checks of a backbone, on small made-up inputs of each kind that it accepts."""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn

from invbench.core.backbone import Backbone
from invbench.core.data import Kind, Problem, Split
from invbench.core.method import as_outputs
from invbench.core.task import Classification, Regression, Task
from invbench.testing.method_checks import require

BackboneCheck = Callable[[Backbone], None]
"""Function that raises AssertionError where a backbone does not have a property."""
EXAMPLES = 6
TASKS: tuple[Task, ...] = (Classification(3), Regression("units"))


def problems(backbone: Backbone, tasks: Iterable[Task] = TASKS[:1]) -> Iterator[Problem]:
    """Yield a problem for each kind of input that the backbone accepts and each of these tasks.

    Raises:
        AssertionError: `accepts` names what is no kind of input.
    """
    require(bool(backbone.accepts), "`accepts` is empty, so no data suit the backbone")
    for kind in backbone.accepts:
        x = inputs(kind)
        for task in tasks:
            y = torch.zeros(EXAMPLES, dtype=torch.long if task.outputs > 1 else torch.float32)
            split = Split(x, y)
            yield Problem({"train": split, "test": split}, task, _kind(kind), "synthetic")


def inputs(kind: str) -> Tensor:
    """Make random vectors (N, 5), images (N, 3, 32, 32) or point clouds (N, 7, 4).

    A point is a position and a charge; the last two points of each cloud are padding.
    """
    generator = torch.Generator().manual_seed(0)
    if kind == "vector":
        return torch.randn(EXAMPLES, 5, generator=generator)
    if kind == "image":
        return torch.randn(EXAMPLES, 3, 32, 32, generator=generator)
    positions = torch.randn(EXAMPLES, 7, 3, generator=generator)
    charges = torch.tensor([1.0, 6.0, 7.0, 8.0, 9.0]).expand(EXAMPLES, 5)[..., None]
    return torch.cat([torch.cat([positions[:, :5], charges], dim=2), torch.zeros(EXAMPLES, 2, 4)], dim=1)


def _kind(name: str) -> Kind:
    if name not in ("vector", "image", "point_cloud"):
        raise AssertionError(f"`accepts` names '{name}', which is no kind of input: vector, image or point_cloud")
    return name  # type: ignore[return-value]


def predictions_have_the_right_shape(backbone: Backbone) -> None:
    """Check the shapes of the prediction, (N, outputs), and the representation, (N, features) if any, in both modes."""
    for problem in problems(backbone, TASKS):
        model, shape = _built(backbone, problem), (EXAMPLES, problem.task.outputs)
        for training in (True, False):
            outputs = as_outputs(model.train(training)(problem.splits["train"].x))
            actual = tuple(outputs.prediction.shape)
            require(actual == shape, f"predictions of {problem.kind} inputs have shape {actual}, not {shape}")
            representation = outputs.representation
            fits = representation is None or (representation.ndim == 2 and len(representation) == EXAMPLES)
            require(fits, "the representation is not of shape (N, features)")


def parameters_get_gradients(backbone: Backbone) -> None:
    """Check that every parameter that can be trained has a finite gradient."""
    for problem in problems(backbone):
        model = _built(backbone, problem)
        as_outputs(model(problem.splits["train"].x)).prediction.square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                require(parameter.grad is not None, f"parameter {name} gets no gradient on {problem.kind} inputs")
                finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
                require(finite, f"the gradient of {name} is not finite on {problem.kind} inputs")


def building_is_pure(backbone: Backbone) -> None:
    """Check that the same state of torch's generator gives the same first weights."""
    for problem in problems(backbone):
        first, second = (_built(backbone, problem).state_dict() for _ in range(2))
        wrong = [name for name, value in first.items() if not torch.equal(second[name], value)]
        require(not wrong, f"{', '.join(wrong)} differs between networks built from one state of torch's generator")


def rows_do_not_mix_in_evaluation(backbone: Backbone) -> None:
    """Check that in evaluation the prediction of an example depends neither on the others nor on chance."""
    for problem in problems(backbone):
        model, x = _built(backbone, problem).eval(), problem.splits["train"].x
        with torch.no_grad():
            together, again, alone = (as_outputs(model(part)).prediction for part in (x, x, x[:2]))
        require(torch.equal(together, again), "two passes in evaluation give two predictions")
        same = torch.allclose(together[:2], alone, atol=1e-4)
        require(same, "in evaluation the prediction of an example depends on the rest of the batch")


def takes_double_precision(backbone: Backbone) -> None:
    """Check that a network in float64 takes inputs in float64 and answers in it."""
    for problem in problems(backbone):
        prediction = as_outputs(
            _built(backbone, problem).double()(problem.splits["train"].inputs().double())
        ).prediction
        require(prediction.dtype == torch.float64, f"inputs in float64 give predictions in {prediction.dtype}")


BACKBONE_CHECKS: tuple[BackboneCheck, ...] = (
    predictions_have_the_right_shape,
    parameters_get_gradients,
    building_is_pure,
    rows_do_not_mix_in_evaluation,
    takes_double_precision,
)


def _built(backbone: Backbone, problem: Problem) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        return backbone.build(problem)
