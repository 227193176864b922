"""Coloured 8x8 digits: coloured MNIST from data that are always at hand, since scikit-learn ships them.

The construction of `colored_mnist` (Arjovsky et al. 2019, arXiv 1907.02893) on the 1,797 digits of the UCI optical
recognition test set: 1,400 training digits in two environments whose colour contradicts the label in 20 % and 10 % of
the cases, 397 test digits where it does in 90 %. With so few digits a network can learn all of them by heart; small
weights or a small network help.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from invbench.core.data import Dataset, Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._coloring import irm_splits
from invbench.datasets._small_digits import CITATION, LICENCE, load_small_digits

TRAIN = 1400


@register_dataset("colored_digits")
class ColoredDigits(Dataset):
    """8x8 digits below five or not, with a misleading colour; offline."""

    display_name: ClassVar[str] = "Colored digits"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oracle": {"grayscale": True}}
    citation: ClassVar[str] = f"{CITATION}; coloured as in Arjovsky et al., arXiv 1907.02893"
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 20}

    grayscale: bool = setting(False, "leave the colour away: the oracle")
    label_noise: float = setting(0.25, "fraction of labels that are flipped", ge=0, le=0.5)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        images, labels = load_small_digits()
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        splits = irm_splits(
            images[order], labels[order], TRAIN, rng, label_noise=self.label_noise, grayscale=self.grayscale
        )
        return Problem(splits, Classification(2), "image", "full")
