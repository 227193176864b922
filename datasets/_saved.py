"""Datasets whose problem is in a file that `Problem.save` has written."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from invbench.core import problem_file
from invbench.core.data import Problem
from invbench.core.groups import GroupedDataset

NETWORKS = {"vector": "mlp", "image": "cnn_small", "point_cloud": "deep_sets"}
"""Network that is trained when nothing else is asked for, by kind of input."""
LARGEST_BATCH = 64


class Saved(GroupedDataset):
    """Problem in a file; what it provides is read of the file."""

    licence: ClassVar[str] = "yours"
    networks: ClassVar[Mapping[str, str]] = NETWORKS

    @abstractmethod
    def path_of_file(self) -> Path:
        """Return the path of the file. Raises UserError where a setting is missing."""

    def capabilities(self) -> tuple[str, ...]:
        provided = problem_file.header(self.path_of_file())["provides"]
        return self.told({what: what in provided for what in self.provides})

    def files(self) -> tuple[Path, ...]:
        return (self.path_of_file(),)

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Return the network that fits the inputs, and batches that fit the smallest environment."""
        described = problem_file.header(self.path_of_file())
        for_training = round((1 - self.validation_share) * described["smallest_environment"])
        return {
            "backbone": {"name": self.networks[described["kind"]]},
            "trainer": {"batch_size": max(1, min(LARGEST_BATCH, for_training))},
        }

    def load(self, seed: np.random.SeedSequence) -> Problem:
        problem = Problem.load(self.path_of_file())
        return replace(problem, source={**problem.source, "identity": problem.identity()})
