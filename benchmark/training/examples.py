"""Examples that a run's batches are made of."""

import torch
from torch import Tensor

from invbench.core.data import Problem, Split, group_of
from invbench.core.task import BinaryClassification, Classification


def counts_of(examples: Split, problem: Problem) -> dict[str, Tensor]:
    """Count examples: `environments` (E,), and of classification `groups` (labels, attributes), in the inputs' type."""
    x = examples.x
    env = torch.zeros(len(examples), dtype=torch.int64) if examples.env is None else examples.env
    counts = {"environments": torch.bincount(env)}
    if isinstance(problem.task, BinaryClassification | Classification):
        attributes = 1 if examples.attribute is None else problem.attributes
        labels = max(2, problem.task.outputs)
        groups = group_of(examples.y, examples.attribute, attributes)
        counts["groups"] = torch.bincount(groups, minlength=labels * attributes).reshape(labels, attributes)
    return {name: value.to(x.device, x.dtype) for name, value in counts.items()}
