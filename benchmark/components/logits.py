"""Changes of logits by class: of K classes one logit each, of two one logit of class 1 against class 0."""

from torch import Tensor

from invbench.core.task import one_hot


def add_to_logits(prediction: Tensor, values: Tensor) -> Tensor:
    """Add a value (K,) to the logit of each class, in predictions (..., outputs)."""
    return prediction + (values[1] - values[0] if prediction.shape[-1] == 1 else values)


def take_from_true_logit(prediction: Tensor, y: Tensor, values: Tensor) -> Tensor:
    """Subtract from the logit of the label (...) its class's value (K,), in predictions (..., outputs)."""
    taken = one_hot(y.long(), len(values), prediction.dtype) * values
    return prediction - (taken[..., 1:] - taken[..., :1] if prediction.shape[-1] == 1 else taken)
