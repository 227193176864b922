"""Checks of whether runs can be trained together."""

from collections.abc import Sequence
from typing import Any

import torch

from invbench.core.backbone import couples_rows
from invbench.core.image_file import ImageFile
from invbench.errors import CannotFuse
from invbench.pytree import flatten
from invbench.runs.resolve import fuse_obstacle, fusion_key
from invbench.training.loop import TrainingLoop


def check_can_fuse(trainings: Sequence[TrainingLoop]) -> None:
    """Raise CannotFuse where the runs cannot be trained together."""
    first = trainings[0]
    reason = fuse_obstacle(first.config)
    if reason:
        raise CannotFuse(reason)
    if len({fusion_key(training.config) for training in trainings}) > 1:
        raise CannotFuse("they differ in more than the seed and fusable settings")
    if not first.total:
        raise CannotFuse("there is nothing to train")
    if first.problem.augment is not None:
        raise CannotFuse("training inputs are changed at random")
    if isinstance(first.examples.x, ImageFile):
        raise CannotFuse("the images stay in a file")
    if first.learned:
        raise CannotFuse("the model learns numbers besides its weights")
    method = first.config.method
    if method.couples_examples and (method.needs_each_gradient or method.has_gradient_penalty):
        what = "representations" if method.transforms_features else "losses"
        raise CannotFuse(f"{what} are changed by the examples of all environments")
    if couples_rows(first.model) and first.config.method.needs_each_gradient:
        raise CannotFuse("batch normalisation couples environments, whose gradients are needed one by one")
    if any(_sizes(training) != _sizes(first) for training in trainings):
        raise CannotFuse("their data or networks have different sizes")
    if not all(_same_untrained(training, first) for training in trainings):
        raise CannotFuse("the parts of their networks that are not trained differ")


def _same_untrained(training: TrainingLoop, other: TrainingLoop) -> bool:
    """Tell whether the parameters that are not trained are equal: those of one run are used for all."""
    pairs = zip(training.model.parameters(), other.model.parameters(), strict=True)
    return all(torch.equal(one, two) for one, two in pairs if not (one.requires_grad and two.requires_grad))


def _sizes(training: TrainingLoop) -> Any:
    """Return the sizes that must be equal: of the data, of the network, of a step and of the run."""
    sampler = training.sampler
    data = {name: (value.shape, value.dtype) for name, value in sampler.split.tensors().items()}
    tensors = {**training.model.state_dict(), **flatten(training.method_state)}
    sizes = {name: (value.shape, value.dtype) for name, value in tensors.items()}
    steps = (sampler.batch_size, sampler.per_step, sampler.steps_per_epoch, training.total, training.done)
    return data, sizes, steps, type(training.problem.task)
