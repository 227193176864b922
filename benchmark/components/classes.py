"""Cross-entropy for methods with heads of their own: of one logit for two classes, or of a logit for each class."""

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
