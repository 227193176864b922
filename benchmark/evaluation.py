"""Metrics of whole splits, with one transfer to the host a split, and of the law that a linear model has found."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from invbench.augmentation import test_copies
from invbench.method import as_outputs
from invbench.problem import LinearLaw, Problem, Split
from invbench.seeds import stream, torch_stream
from invbench.tasks import Task

ROWS = {"cpu": 128, "cuda": 4096}
"""Examples, or copies of them, evaluated together: on a CPU as many as stay in its caches."""


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
        if problem.law is not None:
            metrics |= coefficient_errors(model, problem.task, problem.splits["test"].x, problem.law)
    model.train(training)
    return metrics


def split_metrics(model: nn.Module, task: Task, split: Split) -> Mapping[str, float]:
    """Means over the split of the task's scores."""
    totals: dict[str, torch.Tensor] = {}
    start = 0
    for prediction in predictions(model, split.x):
        y = split.y[start : start + len(prediction)]
        start += len(prediction)
        for metric, values in task.scores(prediction, y).items():
            total = values.double().sum()
            totals[metric] = totals[metric] + total if metric in totals else total
    means = torch.stack(list(totals.values())) / len(split)
    return dict(zip(totals, means.tolist(), strict=True))


def predictions(model: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """The model's predictions on inputs (N, ...), as many at a time as is fast."""
    for part in x.split(max(1, ROWS[x.device.type] // test_copies(model))):
        yield as_outputs(model(part)).prediction


def coefficient_errors(model: nn.Module, task: Task, x: torch.Tensor, law: LinearLaw) -> dict[str, float]:
    """Mean squared error of the model's coefficients, on the causes of the target and on the other inputs.

    A coefficient is the mean derivative of the prediction by an input over the examples x (N, D): the weight of a
    linear model, and what is nearest to it in another. Scrambled inputs are unscrambled first.
    """
    with torch.enable_grad():
        inputs = x.detach().clone().requires_grad_()
        prediction = as_outputs(model(inputs)).prediction.sum()
        found = torch.autograd.grad(prediction, inputs)[0].mean(0) * getattr(task, "std", 1.0)
    if law.mixing is not None:
        found = law.mixing.to(found) @ found
    squared = (found - law.coefficients.to(found)).square()
    causal = law.causal.to(found.device)
    return {
        "coefficient_error_causal": squared[causal].mean().item(),
        "coefficient_error_noncausal": squared[~causal].mean().item(),
    }
