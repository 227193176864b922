"""Metrics of whole splits, without gradients, with one transfer to the host a split."""

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from invbench.method import as_outputs
from invbench.problem import Problem, Split, Task
from invbench.seeds import stream, torch_stream

ROWS = {"cpu": 128, "cuda": 4096}
"""Examples evaluated together: on a CPU as many as stay in its caches."""


def evaluate(model: nn.Module, problem: Problem, splits: Iterable[str], seed: int, step: int) -> dict[str, float]:
    """Every metric of the named splits, e.g. `test_accuracy`; the model is in evaluation mode meanwhile.

    A model that is random in evaluation draws from a stream of its own, fixed by seed and step, so that how often one
    looks does not change what is trained.
    """
    device = problem.splits["train"].x.device
    training = model.training
    model.eval()
    with torch.no_grad(), torch_stream(stream(seed, "evaluation", step), device):
        metrics = {
            f"{name}_{metric}": value
            for name in splits
            for metric, value in split_metrics(model, problem.task, problem.splits[name]).items()
        }
    model.train(training)
    return metrics


def split_metrics(model: nn.Module, task: Task, split: Split) -> Mapping[str, float]:
    """Means over the split of the task's scores."""
    totals: dict[str, torch.Tensor] = {}
    rows = ROWS[split.x.device.type]
    for start in range(0, len(split), rows):
        prediction = as_outputs(model(split.x[start : start + rows])).prediction
        for metric, values in task.scores(prediction, split.y[start : start + rows]).items():
            total = values.double().sum()
            totals[metric] = totals[metric] + total if metric in totals else total
    means = torch.stack(list(totals.values())) / len(split)
    return dict(zip(totals, means.tolist(), strict=True))
