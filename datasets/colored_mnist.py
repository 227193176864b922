"""Coloured MNIST: a colour that predicts the label better than the digit does, until the test reverses it.

Arjovsky et al. (2019), arXiv 1907.02893, section 5.2. The label is 1[digit < 5] with a quarter flipped; the colour is
the label, flipped with probability e. The best invariant accuracy is 75 %; colour alone gives 85 % in training and
10 % in the test.

    irm        the first 50,000 training digits, shuffled and dealt to two environments, e = 0.2 and 0.1; the last
               10,000 are the test environment, e = 0.9. Every second pixel (14x14), logistic loss.
    domainbed  all 70,000 digits, shuffled and dealt to three environments, e = 0.1, 0.2, 0.9, of which one is the test
               environment; 28x28, cross-entropy of two classes. 80 % of each environment train or test, 20 % are held
               out as `validation` and, in the test environment, as `test_out` (for selection by an oracle). `size`
               takes a part of the digits, each with the colour that it has among all.

`grayscale` leaves the colour away: ERM on it is the oracle.

Deviation: the shuffle and the flips come from the run's seed; in the IRM code all restarts share numpy's global state,
in DomainBed the data do not change between seeds.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from invbench.core.data import Dataset, Problem, subset
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification, Classification
from invbench.datasets._coloring import alternating, coloured, irm_splits
from invbench.datasets._domainbed import domainbed_splits
from invbench.datasets._mnist import Digits, load_mnist
from invbench.errors import UserError

TRAIN_IRM = 50_000 / 60_000
DOMAINBED_FLIPS = (0.1, 0.2, 0.9)


@register_dataset("colored_mnist")
class ColoredMNIST(Dataset):
    """Digits below five or not, with a misleading colour."""

    display_name: ClassVar[str] = "Colored MNIST"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "oracle")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"oracle": {"grayscale": True}}
    release: ClassVar[str] = "mnist"
    citation: ClassVar[str] = "Arjovsky et al., Invariant risk minimization, arXiv 1907.02893"
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 8, "trainer.batch_size": 8}

    variant: Literal["irm", "domainbed"] = setting("irm", "the paper's construction, or DomainBed's")
    grayscale: bool = setting(False, "leave the colour away: the oracle")
    test_environment: int = setting(2, "domainbed: which of the three environments is the test", ge=0, le=2)
    size: int | None = setting(None, "domainbed: use so many digits, at random; null takes all", ge=30)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        digits, rng = load_mnist(), np.random.default_rng(seed)
        return self._irm(digits, rng) if self.variant == "irm" else self._domainbed(digits, rng)

    def _irm(self, digits: Digits, rng: np.random.Generator) -> Problem:
        if self.test_environment != 2:
            raise UserError("dataset.test_environment is for variant domainbed; that of irm is fixed")
        if self.size is not None:
            raise UserError("dataset.size is for variant domainbed; irm takes all digits")
        train = round(TRAIN_IRM * digits.train)
        order = np.concatenate([rng.permutation(train), np.arange(train, digits.train)])
        images = torch.from_numpy(digits.images[order][:, None, ::2, ::2].copy()) / 255
        colored = irm_splits(images, digits.labels[order], train, rng, grayscale=self.grayscale)
        splits = {name: replace(split, y=split.y.float()) for name, split in colored.items()}
        return Problem(splits, BinaryClassification(), "image", "full" if digits.official else "partial")

    def _domainbed(self, digits: Digits, rng: np.random.Generator) -> Problem:
        order = rng.permutation(len(digits.labels))
        used = subset(self.size, len(order), "dataset.size")
        env = alternating(len(order), 3)
        images = torch.from_numpy(digits.images[order])[:, None] / 255
        whole = coloured(images, digits.labels[order], env, DOMAINBED_FLIPS, rng, grayscale=self.grayscale)
        env, whole = env[:used], whole.rows(torch.arange(used))
        splits = domainbed_splits(whole, env, self.test_environment)
        full = digits.official and self.size is None
        return Problem(splits, Classification(2), "image", "full" if full else "partial")
