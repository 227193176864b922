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

from invbench.core.data import Problem, Variant
from invbench.core.groups import GroupedDataset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._coloring import with_groups
from invbench.datasets._mnist import load_mnist

ENDS = {"train": 30_000, "validation": 40_000, "test": 60_000}
"""Number of the training digits of MNIST at which each split ends."""


@register_dataset("grouped_mnist")
class GroupedMNIST(GroupedDataset):
    """Digits below five or not, whose colour goes with the label in most groups."""

    display_name: ClassVar[str] = "MNIST with groups"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "environments": {"environment_from": "group"},
        "second_stage": {"second_stage_share": 0.2},
    }
    release: ClassVar[str] = "mnist"
    citation: ClassVar[str] = "Yang et al., Change is hard, arXiv 2302.12254"
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 8}
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "environments": {"dataset.environment_from": "attribute", "trainer.batch_size": 4}
    }

    label_noise: float = setting(0.25, "fraction of labels that are flipped", ge=0, le=0.5)
    colour_noise: float = setting(0.2, "fraction of examples whose colour contradicts the label", ge=0, le=1)
    label_share: float = setting(0.5, "of label 1; others are left out for it", gt=0, lt=1)
    colour_share: float = setting(0.5, "of colour 1; others are left out for it", gt=0, lt=1)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        digits, rng = load_mnist(), np.random.default_rng(seed)
        bounds = [round(end / 60_000 * digits.train) for end in (0, *ENDS.values())]
        splits = {
            name: with_groups(
                torch.from_numpy(digits.images[first:end])[:, None] / 255,
                digits.labels[first:end],
                rng,
                label_noise=self.label_noise,
                colour_noise=self.colour_noise,
                label_share=self.label_share,
                colour_share=self.colour_share,
            )
            for name, first, end in zip(ENDS, bounds, bounds[1:], strict=False)
        }
        names = ("below five", "five or more"), ("red", "green")
        variant: Variant = "full" if digits.official else "partial"
        return Problem(splits, Classification(2), "image", variant, classes=names[0], attribute_names=names[1])
