"""Merging of recorded operations: the same numbers to the last bit, from fewer operations."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import vmap
from torch.fx import GraphModule
from torch.nn.functional import batch_norm, leaky_relu, linear

from invbench.errors import CannotFuse
from invbench.training.merging import RESHAPES
from invbench.training.recording import Recorder, traced

RUNS = 4
SHAPES = ((3, 2), (3,), (1, 3), (1,))
"""Of the parameters of a network with one output, whose last bias has one element for each run."""
FREE = {*RESHAPES, torch.ops.aten.slice.Tensor, torch.ops.aten.reshape.default, torch.ops.aten.transpose.int}


def adam(*tensors: Tensor) -> list[Tensor]:
    """Update parameters as Adam does, with a rate and a count of each run."""
    *tensors_of_parameters, rate, count = tensors
    k = len(tensors_of_parameters) // 4
    results = []
    for i in range(k):
        theta, g, m, v = (tensors_of_parameters[part * k + i] for part in range(4))
        m, v = torch.lerp(m, g, 0.1), 0.999 * v + (1 - 0.999) * g * g
        denominator = (v / (1 - 0.999 ** (count + 1))).sqrt() + 1e-8
        results += [theta - rate / (1 - 0.9 ** (count + 1)) * (m / denominator), m, v]
    return results


def agreement(*tensors: Tensor) -> list[Tensor]:
    """Keep the elements whose sign most agree on, scaled by their share in each tensor."""
    *gradients, threshold = tensors
    results = []
    for g in gradients:
        mask = (g.sign().abs() >= threshold).to(g.dtype)
        results.append(1 / (1e-10 + mask.mean()) * mask * g.transpose(0, -1).transpose(0, -1))
    return results


def of_runs(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    return lambda *tensors: list(vmap(function)(*tensors))


def operations(function: Callable[..., list[Tensor]], tensors: list[Tensor]) -> tuple[int, int]:
    """Count the operations of a call that compute something, before and after merging."""
    recorder = Recorder(tensors)
    with recorder:
        results = function(*tensors)
    recorder.end(results)
    counts = []
    for graph in (recorder.graph, recorder.merged(tensors).graph):
        counts.append(sum(node.op == "call_function" and node.target not in FREE for node in graph.nodes))
    return counts[0], counts[1]


def examples(copies: int, *further: torch.dtype) -> list[Tensor]:
    tensors = [torch.rand(RUNS, *shape) - 0.25 * (copies == 1) for _ in range(copies) for shape in SHAPES]
    return tensors + [torch.rand(RUNS, dtype=dtype) for dtype in further]


@pytest.mark.parametrize(
    ("function", "tensors", "most"),
    [(adam, examples(4, torch.float64, torch.float64), 25), (agreement, examples(1, torch.float32), 22)],
)
def test_the_same_bits_from_fewer_operations(
    function: Callable[..., list[Tensor]], tensors: list[Tensor], most: int
) -> None:
    mapped = of_runs(function)
    before, after = operations(mapped, tensors)
    assert after <= most < before
    again = traced(mapped, tensors)
    for arguments in (tensors, [1 - tensor for tensor in tensors]):
        ours, theirs = again(*arguments), mapped(*arguments)
        assert [value.shape for value in ours] == [value.shape for value in theirs]
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_results_that_are_the_same_can_be_changed_apart() -> None:
    first, second = traced(lambda x: [x * 2, x * 2], [torch.ones(2, 3)])(torch.ones(2, 3))
    first.add_(1)
    assert torch.equal(second, torch.full((2, 3), 2.0))


UNARY: list[Callable[[Tensor], Tensor]] = [torch.neg, torch.sin, torch.abs, lambda x: x * 1, lambda x: x[..., :1] * 2]
BINARY: list[Callable[[Tensor, Tensor], Tensor]] = [
    torch.add,
    torch.mul,
    lambda x, y: x - y,
    lambda x, y: torch.where(x > y, x, y.to(torch.float64)).float(),
    lambda x, y: (x.clone().add_(y), y)[0],
]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=25))
def test_any_sequence_of_operations(steps: list[tuple[int, int, int]]) -> None:
    """A random program, which applies each operation to tensors of all shapes, gives the same bits."""

    def program(*tensors: Tensor) -> list[Tensor]:
        rows = [list(tensors[i : i + len(SHAPES)]) for i in range(0, len(tensors) - 1, len(SHAPES))]
        scalar = tensors[-1]
        for number, one, other in steps:
            first, second = rows[one % len(rows)], rows[other % len(rows)]
            if number < len(UNARY):
                rows.append([UNARY[number](x) + 0 * x for x in first])
            else:
                operation = BINARY[number - len(UNARY)]
                rows.append([operation(x, y) * scalar for x, y in zip(first, second, strict=True)])
        return [value for row in rows[-2:] for value in row]

    tensors = examples(2, torch.float32)
    mapped = of_runs(program)
    again = traced(mapped, tensors)
    other = [tensor + 1 for tensor in tensors]
    for ours, theirs in zip(again(*other), mapped(*other), strict=True):
        assert torch.equal(ours, theirs)


def test_the_order_of_what_is_merged_is_that_of_the_arguments() -> None:
    """A sum of merged operations in another order than that of their tensors needs a concatenation of its own."""

    def function(a: Tensor, b: Tensor, c: Tensor) -> list[Tensor]:
        doubled = [x * 2 for x in (a, b, c)]
        return [x + y for x, y in zip(doubled, reversed(doubled), strict=True)]

    tensors = [torch.rand(2, 3) for _ in range(3)]
    again = traced(function, tensors)
    assert isinstance(again.__self__, GraphModule)  # type: ignore[attr-defined]
    for ours, theirs in zip(again(*tensors), function(*tensors), strict=True):
        assert torch.equal(ours, theirs)


def test_views_across_the_parts_of_a_merged_operation() -> None:
    """A part lies in the memory of the whole: a view of its rows as one, or by strides, is not one any more."""

    def rows(*tensors: Tensor) -> list[Tensor]:
        return [tensor.exp().view(-1) for tensor in tensors]

    def strided(*tensors: Tensor) -> list[Tensor]:
        return [tensor.exp().as_strided((RUNS * 2,), (1,)) for tensor in tensors]

    tensors = [torch.rand(RUNS, 3) for _ in range(4)]
    assert operations(rows, tensors) == (4, 2)  # one concatenation and one exponential
    for function in (rows, strided):
        assert all(map(torch.equal, traced(function, tensors)(*tensors), function(*tensors)))


def in_place(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Change the results of two equal operations: `linear` returns another view of its memory."""
    first, second = (leaky_relu(linear(x, weight), 0.1, inplace=True) for _ in range(2))
    return [first + 1, second * 2]


def changed_between(x: Tensor, weight: Tensor) -> list[Tensor]:
    first, _ = x.exp(), x.mul_(2)
    return [first + x.exp(), weight.exp(), weight.exp()]


def running_means(x: Tensor, weight: Tensor) -> list[Tensor]:
    """Two passes move the running means twice, and random numbers are drawn twice."""
    mean, variance = weight[0], weight[1].square()
    passes = [batch_norm(x.flatten(0, 1), mean, variance, training=True) for _ in range(2)]
    return [sum(passes), mean + variance, torch.rand_like(x) - torch.rand_like(x)]  # type: ignore[list-item]


@pytest.mark.parametrize("function", [in_place, changed_between, running_means])
def test_what_changes_is_computed_each_time(function: Callable[..., list[Tensor]]) -> None:
    """In the step of a single run, whose equal operations are made once."""
    examples = torch.rand(3, 5, 4), torch.rand(4, 4)
    recorder = Recorder([tensor.clone() for tensor in examples], is_alone=True)
    with recorder:
        results = function(*recorder.kept[:2])
    recorder.end(results)
    again = recorder.function()
    assert len({result.data_ptr() for result in again(*examples)}) == len(results), "the caller may change one of them"
    for _ in range(3):
        given = torch.randn(3, 5, 4), torch.randn(4, 4)
        copies = [tensor.clone() for tensor in given]
        torch.manual_seed(0)
        ours = again(*given)
        torch.manual_seed(0)
        theirs = function(*copies)
        assert all(map(torch.equal, [*ours, *given], [*theirs, *copies]))


def leading_axes(*tensors: Tensor) -> list[Tensor]:
    return [part for x in tensors for part in (x.exp().reshape(2, -1).sin(), x.exp().unsqueeze(0).cos())]


def scalars(*tensors: Tensor) -> list[Tensor]:
    """A tensor without axes leaves the type of its partner as it is, a view of it with axes does not."""
    scale = tensors[-1].double().sum()
    return [x * number for x in tensors for number in (scale, scale.view(1), scale.view(1, 1))]


def aliases(*tensors: Tensor) -> list[Tensor]:
    return [part for x in tensors for part in ((x * 1).t(), (x * 1)[0])]


def empty_constants(*tensors: Tensor) -> list[Tensor]:
    return [torch.cat([tensors[0], torch.zeros(0, 3)]), torch.zeros(0) + tensors[1].sum()]


@pytest.mark.parametrize("function", [leading_axes, scalars, aliases, empty_constants])
@pytest.mark.parametrize("rows", [RUNS, 0])
def test_tensors_of_unlike_shapes_and_types(function: Callable[..., list[Tensor]], rows: int) -> None:
    tensors = [torch.rand(rows, 3) for _ in range(4)] if function is not aliases or rows else [torch.rand(RUNS, 3)]
    ours, theirs = traced(function, tensors)(*tensors), function(*tensors)
    assert [(x.dtype, x.shape) for x in ours] == [(x.dtype, x.shape) for x in theirs]
    assert all(map(torch.equal, ours, theirs))
    given = {x.untyped_storage().data_ptr() for x in tensors} - {0}
    assert not given & {x.untyped_storage().data_ptr() for x in ours}, "no result lies in the memory of an input"


@pytest.mark.parametrize("read", [Tensor.tolist, Tensor.numpy])
def test_numbers_that_are_read_are_refused(read: Callable[[Tensor], object]) -> None:
    def reading(x: Tensor) -> list[Tensor]:
        return [x * float(read(x)[0])]  # type: ignore[index]

    with pytest.raises(CannotFuse, match="reads the number of a tensor"):
        traced(reading, [torch.rand(3)])
