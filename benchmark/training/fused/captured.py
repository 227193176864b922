"""Several steps of a group of runs as one CUDA graph: one launch, where each operation of each step was one.

A graph repeats the same operations on the same memory. So what differs from step to step (the order of the examples,
the learning rate, counts of critics) lies in tensors with a row for each step, which are filled ahead of every launch.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from invbench.training.fused.batches import StackedBatchLoader
from invbench.training.fused.program import Call, Program, StepResult

STEPS = 16
"""Number of training steps that one CUDA graph makes."""
CLOSE = 1e-4
"""Largest difference from the same steps without a graph, of the largest number of a tensor: libraries may sum in
another order in a graph."""
FACTOR, COUNT = "factor", "count"
"""Numbers of a call: the learning rate's multiple; and that of its batch, which is also the optimiser's."""


class CannotCapture(Exception):
    """The steps do something else on this device in a graph, or cannot be one."""


class StepBlock:
    """Some steps in a row of a group of runs, as a function of tensors whose memory stays the same.

    Args:
        calls_of: returns the calls of the step with an index.
        programs: by the keys of the calls.
        first: index of a step like all of them.
        factors: multiple of the learning rate in every step of the training.
        restarts: steps that are not like others.
        device: of the runs.
    """

    def __init__(
        self,
        calls_of: Callable[[int], list[Call]],
        programs: Mapping[str, Program],
        first: int,
        factors: Sequence[float],
        restarts: set[int],
        device: torch.device,
    ) -> None:
        self.calls_of, self.programs, self.restarts, self.calls = calls_of, programs, restarts, calls_of(first)
        self.all_factors = torch.tensor(factors, dtype=torch.float64, device=device)
        self.factors = self.all_factors[:STEPS].clone()
        self.rows = Counter(dict.fromkeys(_first_numbers(self.calls), 0))  # of each count, in a block
        for call in self.calls:
            self.rows.update({call.counter: STEPS} | dict.fromkeys(_simultaneous(call), STEPS))
        self.offsets = {name: torch.arange(rows, device=device).double() for name, rows in self.rows.items()}
        self.numbers = {name: torch.zeros_like(offsets) for name, offsets in self.offsets.items()}
        self.orders: dict[str, list[Tensor]] = {}  # of the examples and environments of the batches, by their counter

    def fits(self, done: int, until: int) -> bool:
        """Whether the steps from this one on are like those of the block, and end at `until` at the latest."""
        last = done + STEPS - 1
        if last >= until or any(done <= step <= last for step in self.restarts):
            return False
        is_like = self.begins_like(done) and self.begins_like(last)
        return is_like and all(call.key in self.programs for call in self.calls)

    def begins_like(self, step: int) -> bool:
        """Whether the step with this index makes the calls of those of the block."""
        return [call.key for call in self.calls_of(step)] == [call.key for call in self.calls]

    def begin(self, done: int) -> None:
        """Fill the rows with what belongs to the steps from this one on."""
        calls = self.calls_of(done)
        self.factors.copy_(self.all_factors[done : done + STEPS])
        first = _first_numbers(calls)
        for name, number in first.items():
            torch.add(self.offsets[name], number, out=self.numbers[name])
        for name, loader in {call.counter: call.loader for call in calls}.items():
            if not loader.whole:
                self._fill_order(name, loader, first[name])

    def _fill_order(self, name: str, loader: StackedBatchLoader, first: int) -> None:
        """Copy the indices of the examples and environments of the next batches, which may be of several epochs."""
        count, filled = self.rows[name], 0
        while filled < count:
            example = loader.order.indices(first + filled)  # draws the epoch
            if name not in self.orders:
                self.orders[name] = [indices.new_zeros((count, *indices.shape)) for indices in example]
            start = (first + filled) % loader.order.steps
            some = min(count - filled, loader.order.steps - start)
            for kept, indices in zip(self.orders[name], loader.order.epoch, strict=True):
                kept[filled : filled + some].copy_(indices[start : start + some])
            filled += some

    def steps(self, leaves: list[Tensor]) -> StepResult:
        """Compute the runs after these steps, and the last one's parts."""
        row: Counter[str] = Counter()
        for step in range(STEPS):
            for call in self.calls:
                number = row[call.counter]
                values = {FACTOR: self.factors[step], COUNT: self.numbers[call.counter][number]}
                shared = {name: values[name] if name in values else self.numbers[name][step] for name in call.shared}
                order = self.orders.get(call.counter)
                batch = (
                    call.loader.batch(0) if order is None else call.loader.gathered(*[part[number] for part in order])
                )
                leaves, aux = self.programs[call.key](leaves, batch, shared)
                row[call.counter] += 1
        return leaves, aux


def _simultaneous(call: Call) -> list[str]:
    """Return the critics that are updated in a call, beside the model."""
    return [name for name in call.shared if name not in (FACTOR, COUNT)]


def _first_numbers(calls: list[Call]) -> dict[str, int]:
    """Return the number of the first batch by the counter, and of the update of critics that have no batch apart."""
    numbers: dict[str, int] = {}
    for call in calls:
        numbers.setdefault(call.counter, call.number)
        numbers |= {name: int(call.shared[name]) for name in _simultaneous(call)}
    return numbers


class CapturedSteps:
    """A block of steps that is one CUDA graph.

    Args:
        block: of steps on a GPU.
        leaves: tensors of the runs ahead of the step with index `done`, where the block fits; they are not changed.
        done: index of that step.

    Raises:
        CannotCapture: the graph cannot be made, or does not compute what the steps do.
    """

    def __init__(self, block: StepBlock, leaves: list[Tensor], done: int) -> None:
        self.block, self.leaves, self.graph = block, [leaf.clone() for leaf in leaves], torch.cuda.CUDAGraph()
        block.begin(done)
        try:
            self._capture()
        except RuntimeError as error:
            raise CannotCapture(str(error).partition("\n")[0]) from error
        expected, _ = block.steps([leaf.clone() for leaf in leaves])
        ours, _ = self(leaves, done)
        if not all(_are_close(*pair) for pair in zip(ours, expected, strict=True)):
            raise CannotCapture("a CUDA graph of them computes other numbers")

    def _capture(self) -> None:
        stream = torch.cuda.Stream()  # libraries set themselves up in their first calls on a stream
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.block.steps([leaf.clone() for leaf in self.leaves])
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(self.graph):
            after, self.aux = self.block.steps(self.leaves)
            memory = {leaf.untyped_storage().data_ptr() for leaf in self.leaves}
            moved = [new.clone() if new.untyped_storage().data_ptr() in memory else new for new in after]
            for leaf, new in zip(self.leaves, moved, strict=True):
                leaf.copy_(new)

    def __call__(self, leaves: list[Tensor], done: int) -> StepResult:
        """Compute the runs after the steps from this one on. What is returned lives until the next call."""
        for kept, leaf in zip(self.leaves, leaves, strict=True):
            if kept is not leaf:
                kept.copy_(leaf)
        self.block.begin(done)
        self.graph.replay()
        return list(self.leaves), self.aux


def _are_close(ours: Tensor, expected: Tensor) -> bool:
    first, second = ours.double().nan_to_num(), expected.double().nan_to_num()
    return bool((first - second).abs().max() <= CLOSE * second.abs().max().clamp(min=1e-30)) if first.numel() else True
