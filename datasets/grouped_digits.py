"""8x8 digits with groups: the colour goes with the label more closely than the shape does, in every split alike.

SubpopBench's coloured MNIST (Yang, Zhang, Katabi, Ghassemi 2023, arXiv 2302.12254) with the 1,797 digits that
scikit-learn ships, so that it is always at hand: the label is 1[digit ≥ 5] with a quarter flipped, the colour is the
label with a fifth flipped. Colour alone has 80 % of all examples right and none of the groups
where it contradicts the label; the shape of the digit has 75 % of every group.

Half of the digits train, a sixth validates, a third tests. Deviations: images have two channels, not three, with pixels
from 0 to 1; the digits are divided at random by the run's seed; shares of labels and colours are those of training.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch

from invbench.core.data import Problem
from invbench.core.registry import register_dataset
from invbench.datasets._coloring import ColouredGroups
from invbench.datasets._small_digits import CITATION, LICENCE, load_small_digits

SIZES = {"train": 900, "validation": 300, "test": 597}


@register_dataset("grouped_digits")
class GroupedDigits(ColouredGroups):
    """8x8 digits below five or not, whose colour goes with the label in most groups; offline."""

    display_name: ClassVar[str] = "Digits with groups"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    citation: ClassVar[str] = f"{CITATION}; coloured as in Yang et al., arXiv 2302.12254"
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 8}

    def load(self, seed: np.random.SeedSequence) -> Problem:
        images, labels = load_small_digits()
        rng = np.random.default_rng(seed)
        rows = np.split(rng.permutation(len(labels)), np.cumsum(list(SIZES.values()))[:-1])
        splits = {
            name: self.coloured(images[torch.from_numpy(index)], labels[index], rng, whole=name != "train")
            for name, index in zip(SIZES, rows, strict=True)
        }
        return self.problem(splits, "full")
