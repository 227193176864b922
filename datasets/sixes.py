"""Handwritten sixes, as they are or turned by 180 degrees: an invariance that goes too far loses the label.

MNIST6-180 of Romero & Lohit (2022), "Learning Partial Equivariances from Data", arXiv 2110.10211. Each six makes two
examples, both in the same split:

    label 0:  R(α) x             label 1:  R(β) R(180°) x             α, β ~ U(-max_rotation, max_rotation)

The turn by 180 degrees moves whole pixels and is exact; R(α) is bilinear, black outside, and is left out where
max_rotation is 0, as in the paper. Pixels are (pixel - 0.5) / 0.25. A network that is invariant to all rotations cannot
tell the classes, so that its accuracy is 0.5; one that is invariant to some may have all right. The symmetry that
problems know of is how far images are turned.

`source: digits` takes the 181 sixes that scikit-learn ships, 8x8, of which a fixed choice of 40 is the test;
`source: mnist` takes the sixes of MNIST, 28x28, and the test is that of MNIST. Of the training sixes a random part,
`validation_share`, is the validation.

Deviations: the default has smaller digits than the paper's, and fewer; R(α) is ours.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from invbench.components.images import rotate
from invbench.core.data import Dataset, Problem, Split, Symmetry, Variant, floats
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification
from invbench.datafiles.release import release
from invbench.datasets._mnist import load_mnist
from invbench.datasets._rotation import PIXELS
from invbench.datasets._small_digits import CITATION, LICENCE, shuffled_small_digits
from invbench.errors import UserError
from invbench.seeding import children

SIX = 6
SMALL_TEST = 40
CLASSES = ("as it is", "turned")


@register_dataset("sixes")
class Sixes(Dataset):
    """Sixes against the same sixes turned by 180 degrees."""

    display_name: ClassVar[str] = "MNIST6-180"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification")
    backbone: ClassVar[str] = "cnn_small"
    citation: ClassVar[str] = f"Romero & Lohit, Learning partial equivariances from data, arXiv 2110.10211; {CITATION}"
    licence: ClassVar[str] = LICENCE
    small: ClassVar[Mapping[str, Any]] = {"backbone.width": 2, "trainer.batch_size": 20}

    source: Literal["digits", "mnist"] = setting("digits", "8x8 sixes of scikit-learn, or 28x28 sixes of MNIST")
    max_rotation: float = setting(
        0.0, "each image is turned further, uniformly between minus and plus this, in radians", ge=0, lt=np.pi / 2
    )

    def files(self) -> tuple[Path, ...]:
        return tuple(release("mnist").locate().values()) if self.source == "mnist" else ()

    def load(self, seed: np.random.SeedSequence) -> Problem:
        train, test, variant = _small_sixes() if self.source == "digits" else _mnist_sixes()
        order, *angles = (np.random.default_rng(child) for child in children(seed, 4))
        held_out = min(math.ceil(self.validation_share * len(train)), len(train) - 1)
        chosen = torch.from_numpy(order.permutation(len(train)) < held_out)
        sixes = {"train": train[~chosen], "validation": train[chosen], "test": test}
        splits = {
            name: self._both(images, rng)
            for (name, images), rng in zip(sixes.items(), angles, strict=True)
            if len(images)
        }
        symmetry = Symmetry({"rotation": self.max_rotation})
        task = BinaryClassification()
        return Problem(splits, task, "image", variant, classes=CLASSES, pixels=PIXELS, symmetry=symmetry)

    def _both(self, sixes: Tensor, rng: np.random.Generator) -> Split:
        """Make the examples of sixes (N, 1, H, W): all as they are, then all turned."""
        images = torch.cat([sixes, sixes.rot90(2, dims=(2, 3))])
        if self.max_rotation:
            images = rotate(images, floats(rng.uniform(-self.max_rotation, self.max_rotation, len(images))))
        return Split(PIXELS.standardised(images), torch.arange(2.0).repeat_interleave(len(sixes)))


def _small_sixes() -> tuple[Tensor, Tensor, Variant]:
    """Load the training and the test sixes of scikit-learn (N, 1, 8, 8), which are always all of them."""
    images, labels = shuffled_small_digits()
    sixes = images[torch.from_numpy(labels == SIX)]
    return sixes[:-SMALL_TEST], sixes[-SMALL_TEST:], "full"


def _mnist_sixes() -> tuple[Tensor, Tensor, Variant]:
    """Load the training and the test sixes of MNIST (N, 1, 28, 28) in [0, 1], and whether these are all."""
    digits = load_mnist()
    is_six = digits.labels == SIX
    train, test = (
        torch.from_numpy(digits.images[part][is_six[part]])[:, None] / 255
        for part in (slice(digits.train), slice(digits.train, None))
    )
    if not (len(train) and len(test)):
        raise UserError(f"these MNIST files have {len(train)} training and {len(test)} test sixes; both need some")
    return train, test, "full" if digits.official else "partial"
