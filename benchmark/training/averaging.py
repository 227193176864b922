"""Means of a run's weights, which the finished run has in place of the last ones."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from invbench.core.backbone import couples_rows
from invbench.core.hooks import Averaging
from invbench.pytree import Tree

MOST_BATCHES = 100
"""Training batches from which batch normalisation learns the statistics of averaged weights."""


class AveragedWeights(ABC):
    """A mean of the weights after some of the steps so far.

    Args:
        model: whose weights change.
        parameters: those of its parameters that are trained.
        passes: make forward passes, in training mode, of at most so many training batches.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor], passes: Callable[[int], None]) -> None:
        self.model, self.parameters, self.passes = model, parameters, passes
        self.means = {name: value.detach().clone() for name, value in parameters.items()}
        self.buffers = self._buffers()

    @property
    def tensors(self) -> Tree:
        """The means, and the buffers that belong to them: a part of the model's state. Then what else is needed."""
        return {"parameters": self.means, "buffers": self.buffers}

    def load(self, tensors: Tree) -> None:
        """Load the means, their buffers and what else a checkpoint has of them, in the form of `tensors`."""
        self.means, self.buffers = dict(tensors["parameters"]), dict(tensors["buffers"])

    @property
    @abstractmethod
    def running(self) -> dict[str, Tensor]:
        """Mean that changes in every step, by name of the parameter."""

    @abstractmethod
    def count(self, step: int) -> float:
        """Count the step with this number, from 1. Returns the share of the weights after it in the running mean."""

    @torch.no_grad()
    def add(self, step: int) -> None:
        """Add the weights after the step with this number, from 1."""
        mix(self.running, self.parameters, self.count(step))

    @abstractmethod
    def steps(self, done: int) -> tuple[int, int]:
        """Return the first and the last of the steps whose weights are in the mean of a run of `done` steps."""

    def summary(self, done: int) -> str:
        """Tell of which steps the final weights are the mean."""
        first, last = self.steps(done)
        if first == last:
            return f"the final weights are those after step {last}"
        return f"the final weights are the mean of those after steps {first} to {last}"

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the means into the model for a block."""
        kept = {name: value.detach().clone() for name, value in self._own().items()}
        self.put()
        try:
            yield
        finally:
            self._set(kept)

    def put(self) -> None:
        """Put the means into the model, with the statistics of batch normalisation that belong to them."""
        self._set({**self.means, **dict(self.model.named_buffers())})
        measure_statistics(self.model, self.passes)
        self.buffers = self._buffers()

    def _buffers(self) -> dict[str, Tensor]:
        """Copy the buffers that belong to the model's state."""
        state = self.model.state_dict()
        return {name: value.clone() for name, value in self.model.named_buffers() if name in state}

    def _own(self) -> dict[str, Tensor]:
        return {**self.parameters, **dict(self.model.named_buffers())}

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self._own().items():
            if tensor is not values[name]:
                tensor.copy_(values[name])


class RunningMean(AveragedWeights):
    """Mean of the weights after the steps so far.

    Args:
        rule: which mean.
        model, parameters, passes: as of `AveragedWeights`.
    """

    def __init__(
        self, rule: Averaging, model: nn.Module, parameters: Mapping[str, Tensor], passes: Callable[[int], None]
    ) -> None:
        super().__init__(model, parameters, passes)
        self.rule = rule

    @property
    def running(self) -> dict[str, Tensor]:
        return self.means

    def count(self, step: int) -> float:
        return self.rule.weight(step)

    def steps(self, done: int) -> tuple[int, int]:
        return min(self.rule.first_step, done), done


def mix(means: Mapping[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Move means, in place, by a share of the way to values of the same names."""
    torch._foreach_lerp_(list(means.values()), [values[name] for name in means], share)


@torch.no_grad()
def measure_statistics(model: nn.Module, passes: Callable[[int], None]) -> None:
    """Let batch normalisation take its means and variances over training batches, each of them counting alike.

    Args:
        model: its mode stays as it is; without batch normalisation nothing happens.
        passes: make forward passes, in training mode, of at most so many training batches.
    """
    was_training = model.training
    if couples_rows(model.train()):
        layers = [part for part in model.modules() if isinstance(part, _BatchNorm) and part.training]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None
        devices = [value.device for value in model.parameters() if value.device.type == "cuda"][:1]
        with torch.random.fork_rng(devices):  # training goes on with the numbers that it had drawn
            passes(MOST_BATCHES)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    model.train(was_training)
