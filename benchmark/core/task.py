"""Tasks: the loss that defines the risk, the scores that are reported, the average of predictions."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.errors import UserError

Average = Literal["log_probabilities", "probabilities", "logits"]
"""Quantity that is averaged over copies of an input."""


def one_hot(index: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Encode integers (...) below `count` as one-hot rows (..., count); torch's function cannot be mapped over runs."""
    return (index[..., None] == torch.arange(count, device=index.device)).to(dtype)


class Task(ABC):
    """Task: the loss that defines the risk, and the scores that are reported.

    `losses` and the values of `scores` keep the leading shape of their arguments, one number per example, so that an
    environment's risk or a split's metric is their mean.
    """

    outputs: int
    """Width of the prediction."""
    primary: str
    """Metric that tables show when none is asked for."""
    higher_is_better: bool
    """Whether that metric grows with quality."""

    @abstractmethod
    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Compute the loss (...) of each prediction (..., outputs) of y (...)."""

    @abstractmethod
    def loss_gradients(self, prediction: Tensor, y: Tensor) -> Tensor:
        """Compute the derivative (..., outputs) of each loss by its prediction (..., outputs) of y (...)."""

    @abstractmethod
    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Compute each metric's value per example (...) of predictions (..., outputs) of y (...)."""

    def constant(self, y: Tensor) -> Tensor | None:
        """Return the prediction (outputs,) that fits targets (N,) best if all inputs get it; None if not known."""
        return None

    @abstractmethod
    def average(self, predictions: Tensor, of: Average) -> Tensor:
        """Average the predictions (K, ..., outputs) of K copies to one (..., outputs)."""

    @abstractmethod
    def change(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure how far two predictions (..., outputs) are apart (...).

        Classification: total variation distance of the class probabilities, 0 to 1. Regression: absolute difference in
        the reported units.
        """


@dataclass(frozen=True)
class BinaryClassification(Task):
    """Labels 0.0 and 1.0, one logit, binary cross-entropy in nats."""

    outputs: int = 1
    primary: str = "accuracy"
    higher_is_better: bool = True

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction.squeeze(-1), y, reduction="none")

    def loss_gradients(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction.sigmoid() - y[..., None]

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        correct = (prediction.squeeze(-1) > 0) == (y > 0.5)
        return {"accuracy": correct.double(), "loss": self.losses(prediction, y)}

    def constant(self, y: Tensor) -> Tensor:
        return y.mean().logit(eps=1e-6)[None]

    def average(self, predictions: Tensor, of: Average) -> Tensor:
        """Average predictions; averaged log-probabilities, normalised again, are averaged logits."""
        if of != "probabilities":
            return predictions.mean(0)
        return torch.logsumexp(F.logsigmoid(predictions), 0) - torch.logsumexp(F.logsigmoid(-predictions), 0)

    def change(self, first: Tensor, second: Tensor) -> Tensor:
        return (first.sigmoid() - second.sigmoid()).abs().squeeze(-1)


@dataclass(frozen=True)
class Classification(Task):
    """Integer labels below `outputs`, one logit a class, cross-entropy in nats."""

    outputs: int
    primary: str = "accuracy"
    higher_is_better: bool = True

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        flat = F.cross_entropy(prediction.reshape(-1, self.outputs), y.reshape(-1), reduction="none")
        return flat.reshape(y.shape)

    def loss_gradients(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction.softmax(-1) - one_hot(y, self.outputs, prediction.dtype)

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (prediction.argmax(-1) == y).double(), "loss": self.losses(prediction, y)}

    def constant(self, y: Tensor) -> Tensor:
        return torch.bincount(y, minlength=self.outputs).clamp(min=0.5).double().log()

    def average(self, predictions: Tensor, of: Average) -> Tensor:
        """Return logits whose softmax is, or is proportional to, the average.

        Averages of logits and of log-probabilities differ by a constant per example, so their softmax is the same.
        """
        if of == "logits":
            return predictions.mean(0)
        log_probabilities = predictions.log_softmax(-1)
        if of == "log_probabilities":
            return log_probabilities.mean(0)
        return log_probabilities.logsumexp(0) - math.log(len(predictions))

    def change(self, first: Tensor, second: Tensor) -> Tensor:
        return (first.softmax(-1) - second.softmax(-1)).abs().sum(-1) / 2


@dataclass(frozen=True)
class Regression(Task):
    """One real target. The model predicts (y - mean) / std.

    Args:
        units: of the reported errors.
        mean, std: of the training targets, where they are standardised.
        loss: squared or absolute error of the standardised target.
        factor: units in one unit of y, e.g. 1000 where y is in eV and errors are reported in meV.
    """

    units: str
    mean: float = 0.0
    std: float = 1.0
    loss: Literal["squared", "absolute"] = "squared"
    factor: float = 1.0
    outputs: int = 1
    primary: str = "mean_absolute_error"
    higher_is_better: bool = False

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        error = self._errors(prediction, y)
        return error.square() if self.loss == "squared" else error.abs()

    def loss_gradients(self, prediction: Tensor, y: Tensor) -> Tensor:
        error = self._errors(prediction, y)[..., None]
        return 2 * error if self.loss == "squared" else error.sign()

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        error = self.factor * (prediction.squeeze(-1) * self.std + self.mean - y)
        return {
            "mean_absolute_error": error.abs(),
            "mean_squared_error": error.square(),
            "loss": self.losses(prediction, y),
        }

    def constant(self, y: Tensor) -> Tensor:
        """Return the mean for squared errors, the median for absolute ones, standardised."""
        middle = y.mean() if self.loss == "squared" else y.median()
        return (middle[None] - self.mean) / self.std

    def average(self, predictions: Tensor, of: Average) -> Tensor:
        """Average the outputs, whatever `of` says: they are no logits."""
        return predictions.mean(0)

    def change(self, first: Tensor, second: Tensor) -> Tensor:
        return self.factor * self.std * (first - second).abs().squeeze(-1)

    def _errors(self, prediction: Tensor, y: Tensor) -> Tensor:
        return prediction.squeeze(-1) - (y - self.mean) / self.std


TASKS = {task.__name__: task for task in (BinaryClassification, Classification, Regression)}


def described_task(task: Task) -> list[Any]:
    """Return the class and the settings of a task, for a file. Raises UserError for one that is not of invbench."""
    known = TASKS.get(type(task).__name__)
    if known is None or known is not type(task):
        raise UserError(f"a task of class {type(task).__name__} cannot be kept in a file; register a dataset instead")
    return [known.__name__, {field.name: getattr(task, field.name) for field in fields(known)}]


def task_of(described: Sequence[Any]) -> Task:
    """Return the task that `described_task` has described. Raises KeyError or TypeError where there is no such one."""
    name, settings = described
    task: Task = TASKS[name](**settings)
    return task
