"""Merge operations of a recorded step: the same elementwise operation on many tensors becomes one on all of them.

An update of the parameters is a dozen operations on every parameter, and so are many gradient rules. The tensors are
small, so each call costs more than its arithmetic. An elementwise operation gives the same numbers on a concatenation.
"""

import operator
from collections.abc import Iterator
from itertools import accumulate, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Graph, Node

aten = torch.ops.aten
RESHAPES = (
    *(aten.view.default, aten._unsafe_view.default, aten.unsqueeze.default, aten.expand.default),
    *(aten.squeeze.dim, aten.squeeze.default, aten.detach.default, aten.alias.default),
)
"""Operations that keep the elements and their order, where there are as many after as before."""
SMALL = 256
"""Largest number of elements of constants that are compared."""
FEWEST = 3
"""Smallest number of operations that are merged."""


def merge(graph: Graph, values: dict[Node, Tensor]) -> None:
    """Compute once what is the same, and merge equal elementwise operations on different tensors.

    Args:
        graph: of operations that change nothing in place, on tensors with an axis of runs in front; it is changed.
        values: tensor of every node, for its shape and type.
    """
    if any(node.target is aten.as_strided.default for node in graph.nodes):  # which depends on the place in memory
        return
    _simplify(graph, values)
    _share_constants(graph, values)
    share(graph)
    merger = _Merger(graph, values)
    for kind, nodes in _groups(graph, values):
        for group in merger.in_order(kind, nodes):
            merger.merge(kind, group)
    for node in graph.nodes:  # a part lies in the memory of the whole, where not every view of it exists
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
    _sort(graph)


def _simplify(graph: Graph, values: dict[Node, Tensor]) -> None:
    """Leave out multiplications by one, as of the bias of a linear layer, and transposing and transposing back."""
    results = _results(graph)
    for node in list(graph.nodes):
        same = None
        if node.target in (aten.mul.Scalar, aten.mul.Tensor) and node.args[1] == 1:
            same = node.args[0]
        elif node.target is aten.transpose.int and node.args[0].target is node.target:
            axes = [{axis % values[node].ndim for axis in turned.args[1:]} for turned in (node, node.args[0])]
            same = node.args[0].args[0] if axes[0] == axes[1] else None
        if same is not None and values[same].dtype == values[node].dtype and memory(node) not in results:
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def _results(graph: Graph) -> set[Node]:
    """Return the nodes whose memory results lie in."""
    return {memory(node) for output in graph.nodes if output.op == "output" for node in output.all_input_nodes}


def _share_constants(graph: Graph, values: dict[Node, Tensor]) -> None:
    """Replace small constants of the same numbers by the first of them."""
    first: dict[str, Node] = {}
    results = _results(graph)
    for node in list(graph.nodes):
        if node.op == "get_attr" and values[node].numel() <= SMALL and not values[node]._is_zerotensor():
            value = values[node]
            same = first.setdefault(repr((value.dtype, value.shape, value.tolist())), node)
            if same is not node and not {same, node} <= results:
                node.replace_all_uses_with(same)
                graph.erase_node(node)


def share(graph: Graph) -> None:
    """Replace operations on the same arguments by the first of them.

    The memory of two results stays apart, since the caller may change one of them. Random numbers are drawn each time.
    What is changed in place, or reads what is, stays as it is.
    """
    first: dict[str, Node] = {}
    results = _results(graph)
    changed = {memory(argument) for node in graph.nodes if is_in_place(node) for argument in node.all_input_nodes}
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node):
            continue
        if not changed.isdisjoint(map(memory, (node, *node.all_input_nodes))):
            continue
        same = first.setdefault(repr((node.target, node.args, node.kwargs)), node)
        memories = {memory(same), memory(node)}
        if same is not node and (len(memories) == 1 or not memories <= results):
            results.update({memory(same)} if memories & results else ())
            node.replace_all_uses_with(same)
            graph.erase_node(node)


def is_random(node: Node) -> bool:
    """Tell whether an operation draws random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_in_place(node: Node) -> bool:
    """Tell whether an operation changes an argument in place. Batch normalisation does not say that it does."""
    if not isinstance(node.target, OpOverload):
        return False
    name = node.target._schema.name
    return node.target._schema.is_mutable or (name.endswith("batch_norm") and "backward" not in name)


def memory(node: Node) -> Node:
    """Return the node that made the memory of a tensor: its own, or that of what it is a view of."""
    while node.target is operator.getitem or (isinstance(node.target, OpOverload) and _is_view(node.target)):
        node = node.all_input_nodes[0]
    return node


def _is_view(operation: OpOverload) -> bool:
    schema = operation._schema
    return "unsafe" in schema.name or any(result.alias_info for result in schema.returns)


class Kind(NamedTuple):
    """What operations that can be merged have in common.

    Each argument is a constant; or the node of a tensor that is the same for all, and whether it has no axes; or the
    type of tensors that differ and have the shape of the result.
    """

    height: int  # number of operations after it: those of the same height do not depend on one another
    target: OpOverload
    arguments: tuple[Any, ...]
    keywords: str
    runs: int

    @property
    def differing(self) -> list[int]:
        """Positions of the arguments that differ."""
        return [i for i, argument in enumerate(self.arguments) if isinstance(argument, torch.dtype)]


def _groups(graph: Graph, values: dict[Node, Tensor]) -> Iterator[tuple[Kind, list[Node]]]:
    """Yield elementwise operations by their kinds, in an order in which none depends on a later one."""
    groups: dict[Kind, list[Node]] = {}
    unsure: list[tuple[Node, list[Kind]]] = []
    heights = _heights(graph)
    for node in graph.nodes:
        kinds = list(_kinds(node, values, heights[node])) if _is_elementwise(node) and node in values else []
        if len(kinds) == 1:
            groups.setdefault(kinds[0], []).append(node)
        elif kinds:
            unsure.append((node, kinds))
    for node, kinds in unsure:  # of tensors with one element for each run
        kind = next((kind for kind in kinds if kind in groups), kinds[0])
        groups.setdefault(kind, []).append(node)
    yield from sorted(groups.items(), key=lambda item: -item[0].height)


def _kinds(node: Node, values: dict[Node, Tensor], height: int) -> Iterator[Kind]:
    """Yield the kinds that an elementwise operation can be taken for."""
    shape = values[node].shape
    options = [_options(argument, shape, values) for argument in node.args]
    for arguments in product(*options):
        kind = Kind(height, node.target, arguments, repr(node.kwargs), shape[0] if shape else 0)  # type: ignore[arg-type]
        if values[node].numel() and shape and kind.differing:
            yield kind


def _options(argument: Any, shape: torch.Size, values: dict[Node, Tensor]) -> list[Any]:
    if not isinstance(argument, Node):
        return [argument if not isinstance(argument, list) else tuple(argument)]
    value = values[argument]
    aligned = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    is_same_for_all = shape and all(size == 1 for size in aligned[1:]) and aligned[0] in (1, shape[0])
    differs = [value.dtype] if value.shape == shape else []
    return [*differs, (root(argument, values), value.ndim == 0)] if is_same_for_all else differs


def _is_elementwise(node: Node) -> bool:
    """Tell whether each element of a node's only result depends on the same element of its arguments alone."""
    if not isinstance(node.target, OpOverload):
        return False
    is_pointwise = torch.Tag.pointwise in node.target.tags or node.target is aten._to_copy.default
    return is_pointwise and not any(isinstance(argument, Node) for argument in node.kwargs.values())


def _heights(graph: Graph) -> dict[Node, int]:
    """Count the operations on the longest way from each node to a result."""
    heights: dict[Node, int] = {}
    for node in reversed(graph.nodes):
        heights[node] = max((heights[user] for user in node.users), default=0) + (node.target not in RESHAPES)
    return heights


def root(node: Node, values: dict[Node, Tensor]) -> Node:
    """Return the node with the same elements of each run in the same order that is not a reshaped one."""
    while node.target in RESHAPES:
        shape, before = values[node].shape, values[node.all_input_nodes[0]].shape
        if shape[:1] != before[:1] or shape.numel() != before.numel():
            break
        node = node.all_input_nodes[0]
    return node


class _Merger:
    """Merging in one graph. `flat` holds the tensors (runs, elements) whose parts are known, by these."""

    def __init__(self, graph: Graph, values: dict[Node, Tensor]) -> None:
        self.graph, self.values = graph, values
        self.flat: dict[tuple[Node, ...], Node] = {}
        self.positions: dict[Node, tuple[str, int]] = {}

    def in_order(self, kind: Kind, nodes: list[Node]) -> list[list[Node]]:
        """Divide operations by the tensor that their arguments are parts of, and put them into the order of these."""
        groups: dict[str, list[tuple[int, Node]]] = {}
        for node in nodes:
            name, position = self.positions.get(self._root(node.args[kind.differing[0]]), ("", 0))
            groups.setdefault(name, []).append((position, node))
        return [[node for _, node in sorted(group, key=lambda pair: pair[0])] for group in groups.values()]

    def merge(self, kind: Kind, group: list[Node]) -> None:
        """Replace a group by one operation, where that leaves fewer."""
        parts = {i: tuple(self._root(node.args[i]) for node in group) for i in kind.differing}
        if len(group) < FEWEST or len({part for part in parts.values() if part not in self.flat}) >= len(group) - 1:
            return
        with self.graph.inserting_before(group[0]):
            arguments = [
                self._concatenated(parts[i], kind.runs) if i in parts else self._for_all(argument)
                for i, argument in enumerate(group[0].args)
            ]
            self._split(kind, self.graph.call_function(kind.target, tuple(arguments), group[0].kwargs), group)
        for node in group:
            self.graph.erase_node(node)

    def _concatenated(self, parts: tuple[Node, ...], runs: int) -> Node:
        """Return the tensor (runs, elements) of these parts."""
        if parts not in self.flat:
            rows = [
                part
                if self.values[part].ndim == 2
                else self.graph.call_function(aten.reshape.default, (part, (runs, -1)))
                for part in parts
            ]
            self.flat[parts] = self.graph.call_function(aten.cat.default, (rows, 1))
        return self.flat[parts]

    def _for_all(self, argument: Any) -> Any:
        """Return an argument that is the same in the whole group, fit for a tensor (runs, elements)."""
        if not isinstance(argument, Node) or self.values[argument].ndim == 0:
            return argument
        return self.graph.call_function(aten.reshape.default, (self._root(argument), (-1, 1)))

    def _split(self, kind: Kind, merged: Node, group: list[Node]) -> None:
        """Use parts of a merged operation in place of the operations of a group."""
        ends = list(accumulate(self.values[node].shape[1:].numel() for node in group))
        pieces = []
        for number, (node, start, end) in enumerate(zip(group, [0, *ends], ends, strict=False)):
            piece = self.graph.call_function(aten.slice.Tensor, (merged, 1, start, end))
            part = self.graph.call_function(aten.view.default, (piece, tuple(self.values[node].shape)))
            self.values[part], self.values[piece] = self.values[node], self.values[node].reshape(kind.runs, -1)
            self.positions[piece] = merged.name, number
            node.replace_all_uses_with(part)
            pieces.append(piece)
        self.flat[tuple(pieces)] = merged

    def _root(self, argument: Any) -> Node:
        return root(argument, self.values)


def _sort(graph: Graph) -> None:
    """Put the nodes into an order in which each comes after its arguments, as near to the present one as may be."""
    placed: set[Node] = set()
    for node in list(graph.nodes):
        waiting = [node]
        while waiting:
            missing = [argument for argument in waiting[-1].all_input_nodes if argument not in placed]
            if missing:
                waiting.extend(missing)
                continue
            ready = waiting.pop()
            if ready not in placed:
                placed.add(ready)
                graph._root.prepend(ready)
