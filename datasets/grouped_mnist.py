"""Coloured MNIST with groups, as SubpopBench has it: the colour goes with the label in training and in the test.

Yang, Zhang, Katabi, Ghassemi (2023), "Change is Hard: A Closer Look at Subpopulation Shift", arXiv 2302.12254. Of the
training digits of MNIST the first 30,000 train, 10,000 validate and 20,000 test. The label is 1[digit ≥ 5] with a
quarter flipped, the colour is the label with a fifth flipped. `colour_share` and then `label_share` leave examples out
until colour or label 1 has that share, in every split.

Deviations: images are 28x28 with two channels and pixels from 0 to 1, SubpopBench enlarges them to 224x224 with three,
and standardises them; flips come from the run's seed, there they are the same in every run.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from invbench.core.data import Problem
from invbench.core.registry import register_dataset
from invbench.datasets._coloring import ColouredGroups
from invbench.datasets._mnist import load_mnist

ENDS = {"train": 30_000, "validation": 40_000, "test": 60_000}
"""Number of the training digits of MNIST at which each split ends."""


@register_dataset("grouped_mnist")
class GroupedMNIST(ColouredGroups):
    """Digits below five or not, whose colour goes with the label in most groups."""

    display_name: ClassVar[str] = "MNIST with groups"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    release: ClassVar[str] = "mnist"
    citation: ClassVar[str] = "Yang et al., Change is hard, arXiv 2302.12254"
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 8}
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "environments": {"dataset.environment_from": "attribute", "trainer.batch_size": 4}
    }

    def load(self, seed: np.random.SeedSequence) -> Problem:
        digits, rng = load_mnist(), np.random.default_rng(seed)
        bounds = [round(end / 60_000 * digits.train) for end in (0, *ENDS.values())]
        splits = {
            name: self.coloured(
                torch.from_numpy(digits.images[first:end])[:, None] / 255, digits.labels[first:end], rng, whole=False
            )
            for name, first, end in zip(ENDS, bounds, bounds[1:], strict=False)
        }
        return self.problem(splits, "full" if digits.official else "partial")
