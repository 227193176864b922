"""Evaluation mode of a model within a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Set a model to evaluation mode within the block, and afterwards to the mode that it had before, errors or not."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
