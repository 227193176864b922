"""Batches of runs that are trained together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from invbench.core.data import Split
from invbench.training.sampling import EpochOrder, Sampler, rows_of

Tensors = dict[str, Tensor]


class StackedBatchLoader:
    """Batches (runs, E, B, ...) by the index of their step, from the samplers of runs with equal shapes.

    Runs with the same examples in the same order share batches (E, B, ...); then `axis`, the axis of runs, is None.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        first = samplers[0]
        self.order = EpochOrder(self._epoch, first.steps_per_epoch, first.split.x.device)
        self.all: Tensors = {}  # the batch, where all steps have the same
        splits = [sampler.split for sampler in samplers]
        each = [split.tensors() for split in splits]
        same = all(_equal(split, splits[0]) for split in splits)
        one_order = first.whole or len({(sampler.seed, sampler.order) for sampler in samplers}) == 1
        self.axis = None if same and one_order else 0
        self.samplers, self.whole = samplers[:1] if self.axis is None else samplers, first.whole
        self.tensors: Tensors = (
            each[0] if same else {name: torch.cat([tensors[name] for tensors in each]) for name in each[0]}
        )
        first_rows = torch.arange(len(splits)) * (0 if same else len(splits[0]))
        self.first_rows = first_rows[:, None, None]  # of each run

    def batch(self, step: int) -> Tensors:
        """Return the fields of the step's `Batch`, with an axis of runs in front where they do not share it."""
        if self.all:
            return self.all
        return self.gathered(*self.order.indices(step))

    def gathered(self, rows: Tensor, env: Tensor) -> Tensors:
        """Return the fields of a `Batch` by the indices of its examples and environments."""
        names = [name for name in ("x", "y", "nuisance", "attribute") if name in self.tensors]
        batch = {name: rows_of(self.tensors[name], rows) for name in names} | {"env": env}
        if self.whole:
            self.all = batch
        return batch

    def _epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw the indices of all runs' epochs: rows (steps, runs, E, B), environments (steps, runs, E)."""
        epochs = [sampler.epoch(number) for sampler in self.samplers]
        if self.axis is None:
            return epochs[0]
        examples, env = (torch.stack(parts, 1) for parts in zip(*epochs, strict=True))
        return examples + self.first_rows, env


def _equal(split: Split, other: Split) -> bool:
    """Tell whether two splits have the same examples."""
    if split is other:
        return True
    tensors = other.tensors()
    return all(torch.equal(value, tensors[name]) for name, value in split.tensors().items())
