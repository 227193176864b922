"""Methods of two stages: a run that begins from a finished one of the same data, seed and network."""

from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import field_validator
from torch import Tensor, nn

from invbench.core.data import Problem, Split
from invbench.core.method import Method, Outputs
from invbench.core.settings import setting


@dataclass(frozen=True)
class FirstStage:
    """Finished run that another one begins from.

    Args:
        problem: its data, on the CPU.
        model: its network with the last weights, in evaluation mode.
        outputs: computes the network's outputs (N, ...) of examples, on the CPU in double precision.
    """

    problem: Problem
    model: nn.Module
    outputs: Callable[[Split], Outputs]


class SecondStage(Method):
    """Mixin: begin from a run of another method, which the engine carries out first, or from a given one.

    The first stage has this run's data, seed, network and trainer, unless settings say otherwise. It is a run of its
    own in the same folder of results, where others find it.
    """

    keeps: ClassVar[Literal["nothing", "body", "network"]] = "nothing"
    """What the network has of the first stage's. A body that it keeps is not trained; with "network" the head begins
    where the first stage has left it."""
    has_environments: ClassVar[bool] = True
    """Whether what `begin` returns has the environments of the data."""
    provides: ClassVar[tuple[str, ...]] = ()
    """What `begin` adds to the data, in the words of `Dataset.provides`. A plain literal."""

    first_method: str = setting("erm", "method of the first stage")
    first_share: float = setting(1.0, "length of the first stage, as a multiple of this run's", gt=0)
    first_settings: dict[str, Any] = setting({}, "further settings of the first stage: {trainer.learning_rate: 1e-3}")
    from_run: str | None = setting(None, "folder of the finished run to begin from, in place of one made for this")

    @field_validator("from_run")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        """Keep the run that is meant, wherever the settings are read again."""
        return None if path is None else str(Path(path).expanduser().absolute())

    @abstractmethod
    def begin(self, first: FirstStage, problem: Problem, generator: np.random.Generator) -> Problem:
        """Return the data of the second stage, from those of the run, on the CPU; `examples` are what it trains on."""


class Kept(nn.Module):
    """Module that is not trained, and stays in evaluation mode."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        value: Tensor = self.module(x)
        return value

    def train(self, mode: bool = True) -> "Kept":
        """Return the module, which stays in evaluation mode."""
        super().train(mode)
        self.module.eval()
        return self


def provided_by(methods: Iterable[type[Method] | Method]) -> set[str]:
    """Return what second stages among methods add to the data, in the words of `Dataset.provides`."""
    return {what for method in methods for what in getattr(method, "provides", ())}


def with_environments(problem: Problem, environment: Tensor) -> Problem:
    """Give the training examples other environments (N,), integers of any kind; other splits have none then."""
    numbers = torch.unique(environment, return_inverse=True)[1]
    splits = {name: replace(split, env=numbers if name == "train" else None) for name, split in problem.splits.items()}
    names = tuple(f"inferred {number}" for number in range(int(numbers.max()) + 1))
    return replace(problem, splits=splits, environment_names=names)
