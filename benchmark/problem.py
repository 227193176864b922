"""The data side of the contract: tasks, splits, batches, problems, datasets (all plain tensors)."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invbench.errors import UserError
from invbench.settings import Settings
from invbench.sources import SourceFile

Kind = Literal["vector", "image", "point_cloud"]
Variant = Literal["full", "partial", "synthetic"]


class Task(ABC):
    """What is predicted: the loss that defines the risk, and the scores that are reported.

    `losses` and the values of `scores` keep the leading shape of their arguments, one number per example, so that an
    environment's risk or a split's metric is their mean.
    """

    outputs: int
    """Width of the prediction."""
    primary: str
    """The metric that tables show when none is asked for."""

    @abstractmethod
    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        """prediction (..., outputs), y (...) -> loss (...)."""

    @abstractmethod
    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        """prediction (..., outputs), y (...) -> each metric's value per example (...)."""


@dataclass(frozen=True)
class BinaryClassification(Task):
    """Labels 0.0 and 1.0, one logit, binary cross-entropy in nats."""

    outputs: int = 1
    primary: str = "accuracy"

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(prediction.squeeze(-1), y, reduction="none")

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        correct = (prediction.squeeze(-1) > 0) == (y > 0.5)
        return {"accuracy": correct.double(), "loss": self.losses(prediction, y)}


@dataclass(frozen=True)
class Classification(Task):
    """Integer labels below `outputs`, one logit a class, cross-entropy in nats."""

    outputs: int
    primary: str = "accuracy"

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        flat = F.cross_entropy(prediction.reshape(-1, self.outputs), y.reshape(-1), reduction="none")
        return flat.reshape(y.shape)

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (prediction.argmax(-1) == y).double(), "loss": self.losses(prediction, y)}


@dataclass(frozen=True)
class Regression(Task):
    """One real target. The model predicts (y - mean) / std; errors are reported in `units`.

    Args:
        loss: squared or absolute error of the standardised target.
    """

    units: str
    mean: float = 0.0
    std: float = 1.0
    loss: Literal["squared", "absolute"] = "squared"
    outputs: int = 1
    primary: str = "mean_absolute_error"

    def losses(self, prediction: Tensor, y: Tensor) -> Tensor:
        error = prediction.squeeze(-1) - (y - self.mean) / self.std
        return error.square() if self.loss == "squared" else error.abs()

    def scores(self, prediction: Tensor, y: Tensor) -> dict[str, Tensor]:
        error = prediction.squeeze(-1) * self.std + self.mean - y
        return {
            "mean_absolute_error": error.abs(),
            "mean_squared_error": error.square(),
            "loss": self.losses(prediction, y),
        }


@dataclass(frozen=True)
class Split:
    """Examples of one role, on one device.

    Args:
        x: inputs (N, ...).
        y: targets (N,).
        env: index of the environment of each example (N,), integers from 0.
        nuisance: what the prediction should not depend on (N, ...).
    """

    x: Tensor
    y: Tensor
    env: Tensor | None = None
    nuisance: Tensor | None = None

    def __post_init__(self) -> None:
        for name, value in self.tensors().items():
            if len(value) != len(self.x):
                raise ValueError(f"split has {len(self.x)} inputs but {len(value)} values of {name}")

    def __len__(self) -> int:
        return len(self.x)

    def tensors(self) -> dict[str, Tensor]:
        """The parts that exist, by name."""
        parts = {"x": self.x, "y": self.y, "env": self.env, "nuisance": self.nuisance}
        return {name: value for name, value in parts.items() if value is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> "Split":
        """The same split with `change` applied to every tensor."""
        return replace(self, **{name: change(value) for name, value in self.tensors().items()})

    def to(self, device: torch.device, dtype: torch.dtype) -> "Split":
        """The split on `device`, its real-valued tensors as `dtype`."""
        return self.map(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype))


def concatenate(splits: Sequence[Split]) -> Split:
    """One split after another; they must have the same parts."""
    return Split(**{name: torch.cat([split.tensors()[name] for split in splits]) for name in splits[0].tensors()})


class Batch(NamedTuple):
    """One optimisation step's examples, environment-major. Without environments E = 1.

    Shapes: x (E, B, ...), y (E, B), env (E,), nuisance (E, B, ...) or None.
    """

    x: Tensor
    y: Tensor
    env: Tensor
    nuisance: Tensor | None = None


@dataclass(frozen=True)
class Problem:
    """A dataset made concrete: everything a method may learn from or be judged on.

    Args:
        splits: by name; `train` and `test` always, `validation` and others where they exist.
        kind: what one input is.
        variant: full (the published data), partial (some of it) or synthetic (drawn from a formula).
        facts: numbers about the construction worth recording, such as a label-noise rate.
    """

    splits: Mapping[str, Split]
    task: Task
    kind: Kind
    variant: Variant
    facts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not {"train", "test"} <= set(self.splits):
            raise ValueError(f"a problem needs the splits train and test, not {sorted(self.splits)}")

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.splits["train"].x.shape[1:])

    @property
    def environments(self) -> int:
        """Number of training environments; 1 where the data have none."""
        env = self.splits["train"].env
        return 1 if env is None else int(env.max()) + 1

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over every tensor's name, type, shape and bytes; the device does not matter."""
        digest = hashlib.sha256()
        for split, part in sorted(self.splits.items()):
            for name, value in part.tensors().items():
                array = np.ascontiguousarray(value.cpu().numpy())
                digest.update(f"{split}.{name} {array.dtype.str} {array.shape}".encode())
                digest.update(array.data)
        return digest.hexdigest()

    @property
    def provenance(self) -> dict[str, Any]:
        """What a record keeps of the data."""
        return {
            "metric": f"test_{self.task.primary}",
            "variant": self.variant,
            "fingerprint": self.fingerprint,
            "examples": {name: len(split) for name, split in self.splits.items()},
            "environments": self.environments,
            "facts": dict(self.facts),
        }

    def to(self, device: torch.device, dtype: torch.dtype) -> "Problem":
        """The problem on a device; fingerprint it before, since the type of the numbers is part of it."""
        return replace(self, splits={name: split.to(device, dtype) for name, split in self.splits.items()})


class Dataset(Settings):
    """A recipe for problems: typed settings and one function. One file in `datasets/` each.

    `provides` says what the data offer to methods and is written as a plain tuple, so that it can be read without
    importing the file: the kind of input, `environments`, `nuisance`, `classification` or `regression`.
    """

    provides: ClassVar[tuple[str, ...]] = ()
    backbone: ClassVar[str] = "mlp"
    """The network that is trained when nothing else is asked for."""
    sources: ClassVar[tuple[SourceFile, ...]] = ()
    """Files of the official release; none for data that are generated or bundled."""
    licence: ClassVar[str] = ""
    citation: ClassVar[str] = ""

    def capabilities(self) -> tuple[str, ...]:
        """What these very settings provide; a dataset whose settings matter overrides this."""
        return self.provides

    @abstractmethod
    def load(self, seed: np.random.SeedSequence) -> Problem:
        """Make the problem on the CPU. All randomness comes from `seed`: equal seeds give equal tensors."""


def subset(count: int | None, available: int, what: str) -> int:
    """`count`, or all where it is None. Raises UserError when more are asked for than there are."""
    if count is not None and count > available:
        raise UserError(f"{what} is {count}, but there are only {available}; ask for at most that many")
    return available if count is None else count
