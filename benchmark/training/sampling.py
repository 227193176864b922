"""Batches: environment-major index tensors of each step, a pure function of the order stream."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.core.composition import Composition
from invbench.core.data import Batch, Split
from invbench.core.image_file import ImageFile
from invbench.core.trainer import TrainerConfig
from invbench.errors import UserError
from invbench.seeding import stream
from invbench.tensors import copy_from_host

READERS, AHEAD = 2, 4
"""Threads that read images in a file, and the steps of which they read the images at a time."""


@dataclass(frozen=True)
class Sampler:
    """Batches of one training split.

    An epoch permutes every environment's examples and cuts them into batches of equal size until the smallest
    environment is used up. Where a step takes fewer environments than there are, each pass over the environments
    groups them afresh. Where every step takes every example, all batches are the same one, in the order of the split.

    Where the split has weights, an epoch's examples of an environment are drawn with replacement instead, each with a
    probability proportional to its weight. They are as many as without weights, in a step of all examples too.
    """

    split: Split
    members: Tensor  # example indices sorted by environment
    starts: Tensor  # where each environment begins in `members`
    batch_size: int
    per_step: int
    batches: int  # of each environment in an epoch
    seed: int
    order: tuple[str, ...] = ()  # name of the order stream; empty for the model's
    chances: tuple[NDArray[np.float64], ...] = ()  # of each environment's examples; empty where they have no weights

    @classmethod
    def of(cls, split: Split, trainer: TrainerConfig, seed: int, *order: str) -> "Sampler":
        """Make a sampler.

        Raises:
            UserError: a batch is larger than an environment, a step than their number, or an environment has no weight.
        """
        env = torch.zeros(len(split), dtype=torch.int64) if split.env is None else split.env.cpu()
        counts = torch.bincount(env)
        smallest, environments = int(counts.min()), len(counts)
        if not smallest:
            raise UserError(f"{environments} environments are more than these examples reach; ask for fewer")
        batch_size = smallest if trainer.batch_size is None else trainer.batch_size
        per_step = trainer.environments_per_step or environments
        if batch_size > smallest:
            where = "an environment" if environments > 1 else "the training split"
            raise UserError(
                f"trainer.batch_size is {batch_size}, but {where} has only {smallest} examples; set it to {smallest} "
                "or less, or to null for all"
            )
        if per_step > environments:
            raise UserError(
                f"trainer.environments_per_step is {per_step}, but there are only {environments} environments"
            )
        starts = torch.cumsum(counts, 0) - counts
        members = torch.argsort(env, stable=True)
        chances = () if split.weights is None else _chances(split.weights.cpu()[members], counts)
        return cls(split, members, starts, batch_size, per_step, smallest // batch_size, seed, order, chances)

    @property
    def environments(self) -> int:
        """Number of environments."""
        return len(self.starts)

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps of an epoch: groups of environments times batches of each."""
        return self.batches * (self.environments // self.per_step)

    @property
    def whole(self) -> bool:
        """Whether every step takes every example, so that all steps have the same batch."""
        return not self.chances and self.per_step * self.batch_size == len(self.members)

    def epoch(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw the indices of an epoch: examples (steps, E, B), environments (steps, E), on the CPU."""
        if self.whole:
            return self._everything
        rng = np.random.default_rng(stream(self.seed, "order", *self.order, number))
        count = self.batches * self.batch_size
        rows = self._drawn(rng, count) if self.chances else self._permuted(rng, count)
        rows = rows.reshape(-1, self.batches, self.batch_size)
        groups = self.environments // self.per_step
        passes = rng.permuted(np.tile(np.arange(self.environments), (self.batches, 1)), axis=1)
        env = torch.from_numpy(passes)[:, : groups * self.per_step]
        examples = rows[env, torch.arange(self.batches)[:, None]]
        shape = (self.steps_per_epoch, self.per_step)
        return examples.reshape(*shape, self.batch_size), env.reshape(shape)

    def batch(self, examples: Tensor, env: Tensor, x: Tensor | None = None) -> Batch:
        """Gather the tensors of one step from its indices (E, B) and (E,), on the split's device.

        Args:
            x: the inputs (E, B, ...), where they have been read.
        """
        split = self.split
        inputs = rows_of(split.x, examples) if x is None else x
        nuisance, attribute = (
            None if part is None else rows_of(part, examples) for part in (split.nuisance, split.attribute)
        )
        return Batch(inputs, rows_of(split.y, examples), env, nuisance, attribute)

    @cached_property
    def all(self) -> Batch:
        """The batch of every step, where every step takes every example."""
        examples, env = (indices.to(self.split.x.device) for indices in self._everything)
        return self.batch(examples[0], env[0])

    @cached_property
    def _everything(self) -> tuple[Tensor, Tensor]:
        """Indices of an epoch of one step with all examples in the order of the split."""
        return self.members.reshape(1, self.per_step, self.batch_size), torch.arange(self.per_step)[None]

    @cached_property
    def _sizes(self) -> NDArray[np.int64]:
        """Number of examples of every environment."""
        sizes: NDArray[np.int64] = torch.diff(self.starts, append=torch.tensor([len(self.members)])).numpy()
        return sizes

    def _permuted(self, rng: np.random.Generator, count: int) -> Tensor:
        """Return so many examples (E, count) of each environment, each at most once."""
        return self._shuffled(rng)[self.starts[:, None] + torch.arange(count)]

    def _drawn(self, rng: np.random.Generator, count: int) -> Tensor:
        """Draw so many examples (E, count) of each environment, with replacement, by their weights."""
        places = np.stack([rng.choice(len(chances), count, p=chances) for chances in self.chances])
        return self.members[self.starts[:, None] + torch.from_numpy(places)]

    def _shuffled(self, rng: np.random.Generator) -> Tensor:
        """Return `members` with each environment's examples in a new random order."""
        keys = rng.random(len(self.members))
        sizes = self._sizes
        if (sizes == sizes[0]).all():  # sorting each apart is sooner done
            order = np.argsort(keys.reshape(self.environments, -1), axis=1) + self.starts.numpy()[:, None]
            return self.members[torch.from_numpy(order.ravel())]
        env = np.repeat(np.arange(self.environments), sizes)
        return self.members[torch.from_numpy(np.lexsort((keys, env)))]


def _chances(weights: Tensor, counts: Tensor) -> tuple[NDArray[np.float64], ...]:
    """Scale weights (N,), sorted by environment, so that each environment's sum to 1. Raises UserError as `of`."""
    numbers = weights.double().numpy()
    if numbers.ndim != 1 or not np.isfinite(numbers).all() or (numbers < 0).any():
        raise UserError("the weights of the training examples must be finite numbers from 0, one of each")
    parts = np.split(numbers, counts.cumsum(0)[:-1].numpy())
    for number, part in enumerate(parts):
        if not part.any():
            where = f"environment {number} has" if len(parts) > 1 else "there is"
            raise UserError(
                f"{where} no example with a weight above 0 left to train on; give one to more of them, or lower "
                "dataset.validation_share"
            )
    return tuple(part / part.sum() for part in parts)


def rows_of(values: Tensor | ImageFile, index: Tensor) -> Tensor:
    """Compute `values[index]` for integers (...), about twice as fast."""
    rows: Tensor = values.index_select(0, index.flatten()).unflatten(0, index.shape)
    return rows


class EpochOrder:
    """Order of examples over the steps of a training: drawn once an epoch, and moved to the device once.

    Args:
        draw: returns the indices (steps, ...) of the examples and environments of the epoch with a number, on the CPU.
        steps: of an epoch.
    """

    def __init__(self, draw: Callable[[int], tuple[Tensor, Tensor]], steps: int, device: torch.device) -> None:
        self.draw, self.steps, self.device = draw, steps, device
        self.number = -1
        self.epoch: list[Tensor]  # indices of the epoch with this number

    def indices(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the indices of a step's examples and environments, on the device."""
        number, i = divmod(step, self.steps)
        if number != self.number:
            self.epoch = [copy_from_host(indices, self.device) for indices in self.draw(number)]
            self.number = number
        examples, env = self.epoch
        return examples[i], env[i]


class BatchLoader:
    """Batches of a run by the index of their step."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.order = EpochOrder(sampler.epoch, sampler.steps_per_epoch, sampler.split.x.device)

    def batch(self, step: int) -> Batch:
        """Return the batch of a step."""
        return self.sampler.all if self.sampler.whole else self.sampler.batch(*self.order.indices(step))


class PrefetchingLoader(BatchLoader):
    """Batches of images in a file, which a thread reads while earlier steps are made.

    The order is the same as that of images in memory. Only what follows in the order is read ahead, so another step
    than the next one costs time and nothing else.
    """

    def __init__(self, sampler: Sampler, images: ImageFile) -> None:
        super().__init__(sampler)
        self.images = images
        self.order = EpochOrder(sampler.epoch, sampler.steps_per_epoch, torch.device("cpu"))
        self.executor = ThreadPoolExecutor(READERS, "images")
        self.coming: dict[int, tuple[Tensor, Tensor, Future[Tensor]]] = {}

    def batch(self, step: int) -> Batch:
        if self.sampler.whole:
            return self.sampler.all
        self.coming = {number: read for number, read in self.coming.items() if step <= number < step + AHEAD}
        for number in range(step, step + AHEAD):
            if number not in self.coming:
                self.coming[number] = self._read(number)
        examples, env, pixels = self.coming.pop(step)
        images = self.images.standardised(pixels.result()).unflatten(0, examples.shape)
        examples, env = (copy_from_host(index, self.images.device) for index in (examples, env))
        return self.sampler.batch(examples, env, images)

    def _read(self, step: int) -> tuple[Tensor, Tensor, "Future[Tensor]"]:
        """Begin to read the pixels of a step. Returns its indices (E, B) and (E,) with them."""
        examples, env = self.order.indices(step)
        buffer = self.images.buffer(examples.numel())
        return examples, env, self.executor.submit(self.images.read, self.images.index[examples.flatten()], buffer)


def loader_of(sampler: Sampler) -> BatchLoader:
    """Make the loader that fits where the inputs are."""
    x = sampler.split.x
    return PrefetchingLoader(sampler, x) if isinstance(x, ImageFile) else BatchLoader(sampler)


def check_sizes(method: Composition, sampler: Sampler) -> None:
    """Raise UserError where a step has too few environments, or too few examples of each, for the method."""
    if sampler.per_step < method.min_environments:
        raise UserError(
            f"method {method.name} compares environments, but a step has only {sampler.per_step} of the data's "
            f"{sampler.environments}; give it at least {method.min_environments}, or use erm"
        )
    if sampler.batch_size < method.min_examples:
        raise UserError(
            f"method {method.name} needs at least {method.min_examples} examples of an environment in a step, "
            f"not {sampler.batch_size}; raise trainer.batch_size, or use data with more examples per environment"
        )
