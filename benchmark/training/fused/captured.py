"""Several steps of a group of runs as one CUDA graph: one launch, where each operation of each step was one.

A graph repeats the same operations on the same memory. So what differs from step to step (the order of the examples,
the learning rate, counts of critics) lies in tensors with a row for each step, which are filled ahead of every launch.
"""

from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from invbench.pytree import Tree
from invbench.training.fused.batches import StackedBatchLoader
from invbench.training.fused.program import StepResult

if TYPE_CHECKING:
    from invbench.training.fused.loop import Call, FusedTraining

STEPS = 16
"""Number of steps of a graph."""
CLOSE = 1e-4
"""Largest difference from the same steps without a graph, of the largest number of a tensor: libraries may sum in
another order in a graph."""
FACTOR, COUNT = "factor", "count"
"""Numbers of a call: the learning rate's multiple; and that of its batch, which is also the optimiser's."""


class CannotCapture(Exception):
    """The steps do something else on this device in a graph, or cannot be one."""


class StepBlock:
    """The next steps of a group, as a function of tensors whose memory stays the same.

    Args:
        fused: the group, whose programs for these steps have been made.
    """

    def __init__(self, fused: "FusedTraining") -> None:
        self.fused, self.calls = fused, fused.calls(fused.done)
        self.keys = [call.key for call in self.calls]
        trainer, steps_per_epoch = fused.first.config.trainer, fused.first.sampler.steps_per_epoch
        factors = [trainer.rate_factor(step, steps_per_epoch) for step in range(fused.first.total)]
        self.all_factors = torch.tensor(factors, dtype=torch.float64, device=fused.first.device)
        self.rows = Counter(dict.fromkeys(_first_numbers(self.calls), 0))  # of each count, in a block
        for call in self.calls:
            self.rows.update({call.counter: STEPS} | dict.fromkeys(_simultaneous(call), STEPS))
        self.offsets = {
            name: torch.arange(rows, device=fused.first.device).double() for name, rows in self.rows.items()
        }
        self.numbers = {name: torch.zeros_like(offsets) for name, offsets in self.offsets.items()}
        self.factors = self.all_factors[:STEPS].clone()
        self.orders: dict[str, list[Tensor]] = {}  # of the examples and environments of the batches, by their counter

    def fits(self, until: int) -> bool:
        """Whether the next steps are like those of this block, and end at `until` at the latest."""
        first, last = self.fused.done, self.fused.done + STEPS - 1
        if last >= until or any(first <= step <= last for step in self.fused.restarts):
            return False
        begin, end = ([call.key for call in self.fused.calls(step)] for step in (first, last))
        return self.keys == begin == end

    def begin(self) -> None:
        """Fill the rows with what belongs to the group's next steps."""
        done = self.fused.done
        calls = self.fused.calls(done)
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
                shared = {
                    name: self.factors[step] if name == FACTOR else self._count(name, call, number, step)
                    for name in call.shared
                }
                order = self.orders.get(call.counter)
                batch = (
                    call.loader.batch(0) if order is None else call.loader.gathered(*[part[number] for part in order])
                )
                leaves, aux = self.fused.programs[call.key](leaves, batch, shared)
                row[call.counter] += 1
        return leaves, aux

    def _count(self, name: str, call: "Call", number: int, step: int) -> Tensor:
        return self.numbers[call.counter][number] if name == COUNT else self.numbers[name][step]


def _simultaneous(call: "Call") -> list[str]:
    """Return the critics that are updated in a call, beside the model."""
    return [name for name in call.shared if name not in (FACTOR, COUNT)]


def _first_numbers(calls: list["Call"]) -> dict[str, int]:
    """Return the number of the first batch by the counter, and of the update of critics that have no batch apart."""
    numbers: dict[str, int] = {}
    for call in calls:
        numbers.setdefault(call.counter, call.number)
        numbers |= {name: int(call.shared[name]) for name in _simultaneous(call)}
    return numbers


class CapturedSteps:
    """A block of steps that is one CUDA graph.

    Args:
        fused: the group, on a GPU. It is not changed.

    Raises:
        CannotCapture: the graph cannot be made, or does not compute what the steps do.
    """

    def __init__(self, fused: "FusedTraining") -> None:
        self.block = StepBlock(fused)
        self.leaves = [leaf.clone() for leaf in fused.leaves]
        self.graph = torch.cuda.CUDAGraph()
        try:
            self._capture()
        except RuntimeError as error:
            raise CannotCapture(str(error).partition("\n")[0]) from error
        self.block.begin()
        expected, _ = self.block.steps([leaf.clone() for leaf in fused.leaves])
        ours, _ = self(fused.leaves)
        if not all(_are_close(*pair) for pair in zip(ours, expected, strict=True)):
            raise CannotCapture("a CUDA graph of them computes other numbers")

    def _capture(self) -> None:
        self.block.begin()
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

    def __call__(self, leaves: list[Tensor]) -> StepResult:
        """Compute the runs after the group's next steps. What is returned lives until the next call."""
        for kept, leaf in zip(self.leaves, leaves, strict=True):
            if kept is not leaf:
                kept.copy_(leaf)
        self.block.begin()
        self.graph.replay()
        return list(self.leaves), self._parts

    def _parts(self) -> Tree:
        return self.aux()


def _are_close(ours: Tensor, expected: Tensor) -> bool:
    first, second = ours.double().nan_to_num(), expected.double().nan_to_num()
    return bool((first - second).abs().max() <= CLOSE * second.abs().max().clamp(min=1e-30)) if first.numel() else True
