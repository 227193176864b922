"""Programs: the operations that one call of a function of tensors makes, recorded and repeated without the call.

torch.func's transforms result in a sequence of plain tensor operations, which does not depend on the tensors' values.
For small tensors most of the time goes into deriving that sequence again in every call.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import vmap
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from invbench.errors import CannotFuse
from invbench.pytree import Tree
from invbench.system.device import out_of_memory

aten = torch.ops.aten
FUNCTIONS = (
    *("abs", "add", "bmm", "cat", "div", "exp", "ge", "lerp", "log", "lt", "mean", "mul", "neg", "ones_like", "pow"),
    *("reciprocal", "rsub", "sigmoid", "sign", "sqrt", "squeeze", "sub", "sum", "transpose", "unsqueeze", "where"),
    "zeros_like",
)
SHAPED = (
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
)
"""Operations that take only shape and type from their tensor."""
METHODS = {"view": "view", "_unsafe_view": "view", "expand": "expand"}
"""Names of operations that torch has as a function, or tensors as a method, with the same arguments: half the cost."""
Flat = Callable[..., Sequence[Tensor]]


def traced(function: Flat, tensors: Sequence[Tensor]) -> Flat:
    """Record the operations of one call, as a function of tensors with the same shapes.

    Raises:
        CannotFuse: random numbers are drawn, which would be the same in every call; or the call changes a tensor in
            place that it has not made, which every call would change further.
    """
    recorder = Recorder(tensors)
    with recorder:
        results = function(*tensors)
    graph = recorder.graph
    graph.output([recorder.node(result) for result in results])
    _fold(recorder)
    for node in list(graph.nodes):
        if node.target is aten.detach.default:  # there is no graph of derivatives to detach from
            node.replace_all_uses_with(node.args[0])
        if node.target is aten.bmm.default and node.args[1].target is aten.transpose.int:
            _order(graph, node)
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if isinstance(node.target, OpOverload):
            node.target = _quick(node.target)
    module = GraphModule(recorder.root, graph)
    vars(module).update(module.named_buffers())  # plain attributes are faster to read
    forward: Flat = module.forward
    return forward


def _fold(recorder: "Recorder") -> None:
    """Keep what every call computes anew from nothing but constants, such as the weights of a mean.

    A tensor that is changed in place is not kept, nor is any that it derives from, whose memory it may share. A result
    is a copy, since the caller may change it.
    """
    nodes = list(recorder.graph.nodes)
    changed: set[Node] = set()
    for node in reversed(nodes):
        mutates = isinstance(node.target, OpOverload) and node.target._schema.is_mutable
        if mutates or node in changed:
            changed.update(node.all_input_nodes, [node])
    constants: set[Node] = set()
    for node in nodes:
        inputs = () if node.target in SHAPED else node.all_input_nodes
        made = node.op == "call_function" and node not in changed and constants.issuperset(inputs)
        if node.op == "get_attr" or made:
            constants.add(node)
        if made and node in recorder.values and node.users:
            with recorder.graph.inserting_before(node):
                constant = recorder.constant(recorder.values[node])
                copy = recorder.graph.call_function(aten.clone.default, (constant,))
            node.replace_all_uses_with(copy, lambda user: user.op == "output")
            node.replace_all_uses_with(constant)
            constants.add(constant)


def _memory(node: Node) -> Node:
    """Return the node that made the memory of a tensor: its own, or that of what it is a view of."""
    while node.target is operator.getitem or (
        isinstance(node.target, OpOverload) and any(result.alias_info for result in node.target._schema.returns)
    ):
        node = node.all_input_nodes[0]
    return node


def _quick(operation: OpOverload) -> Callable[..., Any]:
    """Return the same operation with less overhead in a call."""
    name = operation._schema.name.partition("::")[2]
    if name in FUNCTIONS:
        return getattr(torch, name)  # type: ignore[no-any-return]
    return getattr(Tensor, METHODS[name]) if name in METHODS else operation


def _order(graph: Graph, product: Node) -> None:
    """Multiply by a contiguous copy: up to twice as fast where rows are short, as in narrow layers."""
    left, right = product.args
    with graph.inserting_before(product):
        copy = graph.call_function(aten.clone.default, (right,), {"memory_format": torch.contiguous_format})
    product.args = (left, copy)


class Recorder(TorchDispatchMode):
    """Mode that records every operation below torch.func's transforms, where tensors are plain ones."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.graph, self.root = Graph(), nn.Module()
        self.nodes: dict[int, Node] = {}
        self.values: dict[Node, Tensor] = {}
        self.kept: list[Tensor] = []  # so that no two of them have the same id
        for number, tensor in enumerate(inputs):
            self._bind(tensor, self.graph.placeholder(f"input_{number}"))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes two seconds, only to exclude this class."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise CannotFuse("a step draws random numbers")
        if func is aten.lift_fresh.default:  # of torch.tensor: every call begins with the numbers of the first
            func = aten.clone.default
        changes = func._schema.is_mutable
        if changes:
            self._check_changed(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if not changes and isinstance(result, Tensor) and _is_same(result, args[0]):
            self._bind(result, self.node(args[0]))
            return result
        given = tree_map(self._known, args), tree_map(self._known, kwargs or {})
        node = self.graph.call_function(func, *given)
        if isinstance(result, Tensor):
            self._bind(result, node)
        elif isinstance(result, tuple | list):
            for i, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._bind(part, self.graph.call_function(operator.getitem, (node, i)))
        return result

    def node(self, tensor: Tensor) -> Node:
        """Return the node that makes a tensor; one that no recorded operation made is a constant."""
        if id(tensor) not in self.nodes:
            self._bind(tensor, self.constant(tensor))
        return self.nodes[id(tensor)]

    def constant(self, tensor: Tensor) -> Node:
        """Add a node that stands for a tensor, the same in every call."""
        name = f"constant_{len(self.root._buffers)}"  # all of them: `buffers` leaves out a tensor's second name
        self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def _check_changed(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Raise CannotFuse where an operation changes memory in place that no recorded operation made."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for tensor in tree_leaves([given.get(name) for name in written]):
            if isinstance(tensor, Tensor) and _memory(self.node(tensor)).op == "get_attr":
                raise CannotFuse("a step changes in place a tensor that it has not made")

    def _known(self, argument: Any) -> Any:
        return self.node(argument) if isinstance(argument, Tensor) else argument

    def _bind(self, tensor: Tensor, node: Node) -> None:
        self.kept.append(tensor)
        self.nodes[id(tensor)] = node
        self.values.setdefault(node, tensor)


def _is_same(result: Tensor, argument: Any) -> bool:
    """Tell whether the result of an operation is its argument under another name, such as a view of the same shape."""
    if not isinstance(argument, Tensor) or result.layout != torch.strided or result.dtype != argument.dtype:
        return False
    first, second = (
        (tensor.data_ptr(), tensor.size(), tensor.stride(), tensor.is_conj(), tensor.is_neg())
        for tensor in (result, argument)
    )
    return result is not argument and first == second and bool(result.numel())


Tensors = dict[str, Tensor]


RunStep = Callable[[Tree, Tensors, Tensors, Tensors], tuple[Tree, Tree]]
"""Function from a run, its settings, its batch and what all runs share, to the run after the step and its parts."""


StepResult = tuple[list[Tensor], Callable[[], Tree]]
"""Tensors of the runs after a step, and a function that returns the step's parts."""


class Program:
    """Step of one run, mapped over runs, as a recorded list of operations.

    Args:
        step: of one run.
        runs, settings, batch: of all runs, with a leading axis.
        shared: what is the same for all.
        batch_axis: 0, or None where all runs have the same batch, without that axis.

    Raises:
        CannotFuse: the step does something that cannot be mapped or repeated.
    """

    def __init__(
        self,
        step: RunStep,
        runs: Tree,
        settings: Tensors,
        batch: Tensors,
        shared: Tensors,
        batch_axis: int | None,
    ) -> None:
        leaves, treedef = tree_flatten((runs, settings, batch, shared))
        self.kept = len(tree_leaves(runs))
        self.settings = list(settings.values())

        def one_run(*arguments: Any) -> tuple[Tree, Tree]:
            after, aux = step(*arguments)
            return _match_structure(arguments[0], after), aux

        def flat(*tensors: Tensor) -> list[Tensor]:
            arguments = tree_unflatten(list(tensors), treedef)
            after, aux = vmap(one_run, in_dims=(0, 0, batch_axis, None), randomness="different")(*arguments)
            aux_leaves, self.aux_treedef = tree_flatten(aux)
            return [*tree_leaves(after), *aux_leaves]

        try:
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of slow mapping, which is done once
                self.operations = traced(flat, leaves)
        except RuntimeError as error:
            if out_of_memory(error):
                raise
            raise CannotFuse(f"a step of these runs cannot be mapped: {str(error).partition(chr(10))[0]}") from error

    def __call__(self, leaves: list[Tensor], batch: Tensors, shared: Tensors) -> StepResult:
        """Compute the runs' tensors after the step, and its parts."""
        results = list(self.operations(*leaves, *self.settings, *batch.values(), *shared.values()))
        return results[: self.kept], partial(tree_unflatten, results[self.kept :], self.aux_treedef)


def _match_structure(before: Tree, after: Tree) -> Tree:
    """Put the tree into the order and types of the one before. Raises CannotFuse where its names differ."""
    if before.keys() != after.keys():
        raise CannotFuse(f"a step changes what a run consists of: {', '.join(before.keys() ^ after.keys())}")
    return {
        name: _match_structure(old, after[name]) if isinstance(old, dict) else after[name].to(old.dtype)
        for name, old in before.items()
    }
