"""CIFAR-10, with randomised labels and every example as its own environment where that is asked for.

Krizhevsky (2009). 50,000 training and 10,000 test images of 3x32x32 from the official batches, binary or python; fewer
training batches are accepted and recorded as partial.

`random_labels_fraction` is the memorisation experiment of the AND-mask paper (arXiv 2009.00329): with one numpy
RandomState, round(f N) training indices are chosen without replacement and get a uniform label each, so that a tenth
of them keep the right one by chance. Those whose label did change make the split `train_mislabelled`, with the wrong
labels: its accuracy is the rate of memorisation.

`transform`: `none` leaves pixels in [0, 1] (Augerino's baseline); `normalised` standardises the channels with
ImageNet's mean and deviation (the AND-mask runs); `fixed` adds random crops of the image padded by 4, and flips, drawn
anew for each batch on the device (Augerino's baseline with fixed augmentation, arXiv 2010.11882).

Deviations: crops are padded with black before standardisation, as torchvision does it, but a batch is cropped at once;
the random labels come from the run's seed.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.images import random_crop, random_flip
from invbench.core.data import AS_THEY_ARE, Dataset, Pixels, Problem, Split, subset
from invbench.core.pixels import IMAGENET
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.task import Classification
from invbench.datasets._cifar import load_batches

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PADDING = 4
OFFICIAL = (50_000, 10_000)


@register_dataset("cifar10")
class CIFAR10(Dataset):
    """32x32 colour photographs of ten classes."""

    display_name: ClassVar[str] = "CIFAR-10"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments")
    optional: ClassVar[Mapping[str, Mapping[str, Any]]] = {"environments": {"environments": "per_example"}}
    backbone: ClassVar[str] = "conv13"
    release: ClassVar[str] = "cifar10"
    small: ClassVar[Mapping[str, Any]] = {
        "dataset.transform": "fixed",
        "backbone.name": "conv13",
        "backbone.width": 2,
        "trainer.batch_size": 10,
    }
    small_when: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "environments": {
            "trainer.batch_size": 1,
            "trainer.environments_per_step": 4,
            "backbone.name": "mlp",
            "backbone.width": 8,
        }
    }

    random_labels_fraction: float = setting(0.0, "part f of the training labels that is drawn at random", ge=0, le=1)
    transform: Literal["none", "normalised", "fixed"] = setting("normalised", "what is done to the pixels")
    environments: Literal["none", "per_example"] = setting("none", "whether each training image is an environment")
    train_size: int | None = setting(None, "use only the first so many training images; null takes all", ge=1)
    validation_size: int = setting(0, "training images held out as validation split, from the end", ge=0)

    def load(self, seed: np.random.SeedSequence) -> Problem:
        (train_x, train_y), (test_x, test_y) = load_batches()
        available = len(train_y) - self.validation_size
        used = subset(self.train_size, available, "dataset.train_size plus dataset.validation_size")
        labels, changed, facts = self._randomised(train_y[:used], seed)
        env = torch.arange(used) if self.environments == "per_example" else None
        splits = {"train": Split(self._standardised(train_x[:used]), _labels(labels), env)}
        if len(changed):
            splits["train_mislabelled"] = replace(splits["train"], env=None).rows(torch.from_numpy(changed))
        if self.validation_size:
            splits["validation"] = Split(self._standardised(train_x[available:]), _labels(train_y[available:]))
        splits["test"] = Split(self._standardised(test_x), _labels(test_y))
        full = (len(train_y), len(test_y)) == OFFICIAL and self.train_size is None
        return Problem(
            splits,
            Classification(len(CLASSES)),
            "image",
            "full" if full else "partial",
            facts,
            CLASSES,
            self.pixels,
            augment=self._augment if self.transform == "fixed" else None,
        )

    def _randomised(
        self, labels: NDArray[np.uint8], seed: np.random.SeedSequence
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], dict[str, float]]:
        """Draw a share of the labels at random. Returns them, the changed rows, and how many changed or might have."""
        count = round(self.random_labels_fraction * len(labels))
        if not count:
            return labels, np.zeros(0, np.int64), {}
        rng = np.random.RandomState(seed.generate_state(1))
        chosen = rng.choice(len(labels), count, replace=False)
        noisy = labels.copy()
        noisy[chosen] = rng.randint(0, len(CLASSES), count)
        changed = np.flatnonzero(noisy != labels)
        return (
            noisy,
            changed,
            {"labels_changed": len(changed) / len(labels), "kept_by_chance": 1 - len(changed) / count},
        )

    @property
    def pixels(self) -> Pixels:
        """Standardisation of the pixels."""
        return AS_THEY_ARE if self.transform == "none" else IMAGENET

    def _standardised(self, images: NDArray[np.uint8]) -> Tensor:
        return self.pixels.standardised(torch.from_numpy(images) / 255)

    def _augment(self, x: Tensor) -> Tensor:
        """Crop and flip each image (N, 3, 32, 32) at random."""
        return random_flip(random_crop(x, PADDING, self.pixels.black(x)))


def _labels(labels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(labels).long()
