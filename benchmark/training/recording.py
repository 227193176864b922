"""Record the operations that one call of a function of tensors makes, and repeat them without the call.

A step is a sequence of plain tensor operations, which does not depend on the tensors' values. For small tensors most of
the time goes into deriving that sequence again in every call: by torch.func's transforms, or by autograd.
"""

import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call, functionalize
from torch.fx import Graph, GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from invbench.errors import CannotFuse, UserError
from invbench.training.merging import is_in_place, is_random, memory, merge, share

aten = torch.ops.aten
FUNCTIONS = (
    *("abs", "add", "bmm", "cat", "div", "exp", "ge", "lerp", "log", "lt", "mean", "mul", "neg", "ones_like", "pow"),
    *("reciprocal", "reshape", "rsub", "sigmoid", "sign", "sqrt", "squeeze", "sub", "sum", "transpose", "unsqueeze"),
    *("where", "zeros_like"),
)
SHAPED = (
    *(aten.zeros_like.default, aten.ones_like.default, aten.full_like.default, aten.empty_like.default),
    *(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default),
)
"""Operations that take only shape and type from their tensor."""
READS = "a step reads the number of a tensor, which may differ from step to step"
QUICK: dict[OpOverload, Callable[..., Any]] = {
    **dict.fromkeys((aten.view.default, aten._unsafe_view.default), torch.reshape),
    aten.expand.default: Tensor.expand,
}
"""What does the same as an operation at half the cost, as do torch's functions of the same name."""
Flat = Callable[..., Sequence[Tensor]]


def traced(function: Flat, tensors: Sequence[Tensor], is_compiled: bool = False) -> Flat:
    """Record the operations of one call, as a function of tensors with the same shapes.

    Args:
        function: pure; its tensors have an axis of runs in front.
        tensors: of the call.
        is_compiled: have torch's compiler make the function, which differs by rounding.

    Raises:
        CannotFuse: random numbers are drawn, which would be the same for all runs; the call reads a tensor's number,
            which may be another one in every call; or it changes a tensor in place that it has not made, which every
            call would change further.
    """
    recorder = Recorder(tensors)
    with recorder:
        results = function(*tensors)
    recorder.end(results)
    return recorder.compiled(tensors) if is_compiled else recorder.merged(tensors).function()


def _fold(recorder: "Recorder") -> None:
    """Keep what every call computes anew from nothing but constants, such as the weights of a mean.

    Random numbers are not kept. Nor is a tensor that is changed in place, or any that it derives from, whose memory it
    may share. A result is a copy, since the caller may change it.
    """
    nodes = list(recorder.graph.nodes)
    changed: set[Node] = set()
    for node in reversed(nodes):
        if is_in_place(node) or node in changed:
            changed.update(node.all_input_nodes, [node])
    constants: set[Node] = set()
    for node in nodes:
        inputs = () if node.target in SHAPED else node.all_input_nodes
        is_pure = node.op == "call_function" and not is_random(node) and node not in changed
        made = is_pure and constants.issuperset(inputs)
        if node.op == "get_attr" or made:
            constants.add(node)
        if made and node in recorder.values and node.users:
            with recorder.graph.inserting_before(node):
                constant = recorder.constant(recorder.values[node])
                recorder.values[constant] = recorder.values[node]
                copy = recorder.graph.call_function(aten.clone.default, (constant,))
            node.replace_all_uses_with(copy, lambda user: user.op == "output")
            node.replace_all_uses_with(constant)
            constants.add(constant)


def _quick(operation: OpOverload) -> Callable[..., Any]:
    """Return the same operation with less overhead in a call."""
    name = operation._schema.name.partition("::")[2]
    return getattr(torch, name) if name in FUNCTIONS else QUICK.get(operation, operation)


def _order(graph: Graph, product: Node) -> None:
    """Multiply by a contiguous copy of a transposed matrix: on a CPU up to twice as fast where rows are short."""
    left, right = product.args
    if right.target is not aten.transpose.int:  # type: ignore[union-attr]
        return
    with graph.inserting_before(product):
        copy = graph.call_function(aten.clone.default, (right,), {"memory_format": torch.contiguous_format})
    product.args = (left, copy)


class _Readers(TorchFunctionMode):
    """Mode that refuses what reads a tensor's numbers without an operation that a recorder sees."""

    def __init__(self, recorder: "Recorder") -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and not self.recorder.is_stopped():
            self.recorder.refuse(READS)
        return func(*args, **(kwargs or {}))


class Recorder(TorchDispatchMode):
    """Mode that records every operation below autograd and torch.func's transforms, where tensors are plain ones.

    Args:
        inputs: tensors that differ from call to call.
        is_alone: the call is a step of a single run, which may draw random numbers, and goes on where it cannot be
            recorded; `obstacle` then says why.
        most_bytes: of the tensors of such a step.
    """

    def __init__(self, inputs: Sequence[Tensor], is_alone: bool = False, most_bytes: float = math.inf) -> None:
        super().__init__()
        self.graph, self.root, self.is_alone = Graph(), nn.Module(), is_alone
        self.most_bytes = most_bytes
        self.obstacle = ""
        self.nodes: dict[int, Node] = {}
        self.values: dict[Node, Tensor] = {}
        self.memory: dict[object, Node] = {}
        self.addresses: set[int] = set()
        self.bytes = 0  # of the tensors at all of them
        self.kept: list[Tensor] = []  # so that no two of them have the same id, nor the same memory
        for number, tensor in enumerate(inputs):
            self._bind(tensor, self.graph.placeholder(f"input_{number}"))

    def __enter__(self) -> Self:
        self.readers = _Readers(self)
        self.readers.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.readers.__exit__(*error)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Keep torch from importing its compiler, which takes two seconds, only to exclude this class."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.is_stopped():
            return func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and not self.is_alone:
            self.refuse("a step draws random numbers")
        if _depends_on_values(func, args):
            self.refuse(READS)
        if func is aten.lift_fresh.default:  # of torch.tensor: every call begins with the numbers of the first
            func = aten.clone.default
        changes = func._schema.is_mutable
        if changes:
            self._check_changed(func, args, kwargs or {})
        result = func(*args, **(kwargs or {}))
        if self.is_stopped():
            return result
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
        if self.bytes > self.most_bytes:
            self.refuse("a step is too large")
        return result

    def is_stopped(self) -> bool:
        """Whether recording was given up."""
        return bool(self.obstacle)

    def end(self, results: Sequence[Tensor]) -> None:
        """Say what the results are: tensors that were made, or inputs."""
        self.graph.output([self.node(result) for result in results])
        _fold(self)
        for node in list(self.graph.nodes):
            if node.target is aten.detach.default:  # there is no graph of derivatives to detach from
                node.replace_all_uses_with(node.args[0])
        if self.is_alone:
            share(self.graph)
        self.graph.eliminate_dead_code()

    def merged(self, inputs: Sequence[Tensor]) -> "Recorder":
        """Return what was recorded without changes in place, and merged where that leaves fewer operations.

        The operations are recorded again; the call itself is not: a cache in it would keep tensors of the transform.
        """
        module = GraphModule(self.root, self.graph)
        constants = dict(module.named_buffers(remove_duplicate=False))

        def operations(*tensors: Tensor) -> list[Tensor]:
            named = dict(zip(constants, tensors[len(inputs) :], strict=True))
            results: list[Tensor] = functional_call(module, named, tensors[: len(inputs)])
            return results

        again = Recorder(inputs)
        with again:
            results = functionalize(operations, remove="mutations")(*inputs, *constants.values())
        again.end(results)
        merge(again.graph, again.values)
        for node in list(again.graph.nodes):
            if node.target is aten.bmm.default and again.values[node].device.type == "cpu":
                _order(again.graph, node)
        again.graph.eliminate_dead_code()
        return again

    def function(self) -> Flat:
        """Return what was recorded as a function of the inputs."""
        for node in self.graph.nodes:
            if isinstance(node.target, OpOverload):
                node.target = _quick(node.target)
        module = GraphModule(self.root, self.graph)
        vars(module).update(module.named_buffers(remove_duplicate=False))  # plain attributes are faster to read
        forward: Flat = module.forward
        return forward

    def compiled(self, inputs: Sequence[Tensor]) -> Flat:
        """Return what was recorded as a function of the inputs that torch's compiler makes, with these as an example.

        Raises:
            UserError: there is no compiler, or it fails.
        """
        import torch._inductor as inductor  # takes two seconds

        module, strides = GraphModule(self.root, self.graph), [tensor.stride() for tensor in inputs]
        permutes = any(getattr(node.target, "overloadpacket", None) is aten.randperm for node in self.graph.nodes)
        # `randperm` as an index is a pattern that torch 2.13 fails to match
        settings = {"fallback_random": True, "pattern_matcher": not permutes}
        try:
            with inductor.config.patch(settings), warnings.catch_warnings(action="ignore"):
                operations = inductor.compile(module, list(inputs))
        except Exception as error:  # of many kinds, from compilers that are missing to faults in them
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"torch's compiler fails, so leave trainer.compile out: {reason}") from error

        def call(*tensors: Tensor) -> Sequence[Tensor]:
            pairs = zip(tensors, strides, strict=True)
            alike = [x if x.stride() == stride else _with_strides(x, stride) for x, stride in pairs]
            results: Sequence[Tensor] = operations(*alike)
            return results

        return call

    def refuse(self, why: str) -> None:
        """Give recording up: raise CannotFuse for runs that are mapped, go on without it in a single one."""
        if not self.is_alone:
            raise CannotFuse(why)
        self.obstacle = why
        for held in (self.kept, self.nodes, self.memory, self.values):
            held.clear()

    def node(self, tensor: Tensor) -> Node:
        """Return the node that makes a tensor; one that no recorded operation made is a constant.

        A tensor that autograd has kept for a backward pass is another one with the memory of the first.
        """
        if id(tensor) not in self.nodes:
            same = self.memory.get(_place(tensor)) if self.is_alone else None
            self._bind(tensor, self.constant(tensor) if same is None else same)
        return self.nodes[id(tensor)]

    def constant(self, tensor: Tensor) -> Node:
        """Add a node that stands for a tensor, the same in every call."""
        name = f"constant_{len(self.root._buffers)}"  # all of them: `buffers` leaves out a tensor's second name
        self.root.register_buffer(name, tensor)
        return self.graph.get_attr(name)

    def _check_changed(self, func: OpOverload, args: Any, kwargs: Any) -> None:
        """Refuse an operation that changes memory in place which no recorded operation made."""
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        written = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        for tensor in tree_leaves([given.get(name) for name in written]):
            if isinstance(tensor, Tensor) and memory(self.node(tensor)).op == "get_attr":
                self.refuse("a step changes in place a tensor that it has not made")

    def _known(self, argument: Any) -> Any:
        return self.node(argument) if isinstance(argument, Tensor) else argument

    def _bind(self, tensor: Tensor, node: Node) -> None:
        self.kept.append(tensor)
        self.nodes[id(tensor)] = node
        if self.is_alone and tensor.numel():
            self.memory[_place(tensor)] = node
            if tensor.data_ptr() not in self.addresses:
                self.addresses.add(tensor.data_ptr())
                self.bytes += tensor.nbytes
        self.values.setdefault(node, tensor)


def _depends_on_values(func: OpOverload, args: Any) -> bool:
    """Tell whether an operation results in a number of Python, or in a shape that depends on the tensors' values."""
    if func is aten.index.Tensor:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags


def _with_strides(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Return a copy of a tensor that lies differently in memory."""
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def _place(tensor: Tensor) -> object:
    """Return what tells tensors apart that are alive together: memory, shape and strides, type."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.is_conj(), tensor.is_neg()


def _is_same(result: Tensor, argument: Any) -> bool:
    """Tell whether the result of an operation is its argument under another name, such as a view of the same shape."""
    if not isinstance(argument, Tensor) or result.layout != torch.strided or result.dtype != argument.dtype:
        return False
    return result is not argument and _place(result) == _place(argument) and bool(result.numel())
