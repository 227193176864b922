"""Cross-entropy for methods with heads of their own: of one logit for two classes, or of a logit for each class."""

import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.core.task import BinaryClassification, Classification


def cross_entropy(prediction: Tensor, y: Tensor) -> Tensor:
    """Compute the loss (...) of logits (..., classes), or (..., 1) of class 1 against class 0, of labels (...)."""
    outputs = prediction.shape[-1]
    task = BinaryClassification() if outputs == 1 else Classification(outputs=outputs)
    return task.losses(prediction, y)


def uniform_cross_entropy(prediction: Tensor) -> Tensor:
    """Compute the mean loss (...) over all labels of logits (..., classes), or (..., 1) of class 1 against class 0."""
    if prediction.shape[-1] == 1:
        logit = prediction.squeeze(-1)
        return -(F.logsigmoid(logit) + F.logsigmoid(-logit)) / 2
    return -prediction.log_softmax(-1).mean(-1)


def predicted_class(prediction: Tensor) -> Tensor:
    """Return the label (...) with the highest logit, of logits as in `cross_entropy`."""
    return (prediction.squeeze(-1) > 0).long() if prediction.shape[-1] == 1 else prediction.argmax(-1)


def class_probabilities(prediction: Tensor) -> Tensor:
    """Return the probability of each class (..., classes), of logits as in `cross_entropy`."""
    if prediction.shape[-1] == 1:
        return torch.cat([(-prediction).sigmoid(), prediction.sigmoid()], -1)
    return prediction.softmax(-1)


def class_probability(prediction: Tensor, y: Tensor) -> Tensor:
    """Return the probability of the label (...), from logits as in `cross_entropy`."""
    return (-cross_entropy(prediction, y)).exp()
