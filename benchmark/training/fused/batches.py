"""Batches of runs that are trained together."""

from collections.abc import Sequence

import torch

from invbench.training.fused.program import Tensors
from invbench.training.sampling import BatchLoader, rows_of


class StackedBatchLoader:
    """Batches (runs, E, B, ...) by the index of their step, from the loaders of runs with equal shapes."""

    def __init__(self, loaders: Sequence[BatchLoader]) -> None:
        self.loaders, self.whole = loaders, loaders[0].sampler.whole
        self.all: Tensors = {}  # the batch, where all steps have the same
        splits = [loader.sampler.split for loader in loaders]
        each = [split.tensors() for split in splits]
        self.same = all(all(torch.equal(value, each[0][name]) for name, value in tensors.items()) for tensors in each)
        self.tensors: Tensors = (
            each[0] if self.same else {name: torch.cat([tensors[name] for tensors in each]) for name in each[0]}
        )
        first = torch.arange(len(splits), device=splits[0].x.device) * len(splits[0])
        self.first = 0 if self.same else first[:, None, None]  # row of each run

    def batch(self, step: int) -> Tensors:
        """Return the fields of the step's `Batch`, with an axis of runs in front."""
        if self.all:
            return self.all
        indices = [loader.indices(step) for loader in self.loaders]
        examples, env = (torch.stack(parts) for parts in zip(*indices, strict=True))
        names = [name for name in ("x", "y", "nuisance") if name in self.tensors]
        batch = {name: rows_of(self.tensors[name], examples + self.first) for name in names} | {"env": env}
        if self.whole:
            self.all = batch
        return batch
