"""Batches of runs that are trained together."""

from collections.abc import Sequence

import torch

from invbench.training.fused.program import Tensors
from invbench.training.sampling import BatchLoader, rows_of


class StackedBatchLoader:
    """Batches (runs, E, B, ...) by the number of their step, of the feeds of runs with equal shapes."""

    def __init__(self, feeds: Sequence[BatchLoader]) -> None:
        self.feeds, self.whole = feeds, feeds[0].sampler.whole
        self.all: Tensors = {}  # the batch, where all steps have the same
        splits = [feed.sampler.split for feed in feeds]
        each = [split.tensors() for split in splits]
        self.same = all(all(torch.equal(value, each[0][name]) for name, value in one.items()) for one in each)
        self.tensors: Tensors = (
            each[0] if self.same else {name: torch.cat([one[name] for one in each]) for name in each[0]}
        )
        first = torch.arange(len(splits), device=splits[0].x.device) * len(splits[0])
        self.first = 0 if self.same else first[:, None, None]  # row of each run

    def batch(self, step: int) -> Tensors:
        """The fields of a `Batch`."""
        if self.all:
            return self.all
        indices = [feed.indices(step) for feed in self.feeds]
        examples, env = (torch.stack(parts) for parts in zip(*indices, strict=True))
        names = [name for name in ("x", "y", "nuisance") if name in self.tensors]
        batch = {name: rows_of(self.tensors[name], examples + self.first) for name in names} | {"env": env}
        if self.whole:
            self.all = batch
        return batch
