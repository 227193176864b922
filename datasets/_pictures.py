"""Datasets of pictures, whatever keeps them: divided into splits, decoded once, and standardised.

Classes and environments are those of all pictures together, in sorted order, so a class that an environment lacks
shifts no label (DomainBed numbers the classes of each environment by itself, arXiv 2007.01434, released code).

Pictures are decoded and resized once, into a file in the cache that all runs share. Few of them become tensors in
memory; of many only the batches do, and the numbers are the same.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from invbench.components.images import colour_jitter, random_flip, random_grey, random_resized_crop
from invbench.console import announce
from invbench.core.arrays import are_tested, attributes_of, class_targets, nuisance_of, numbered, rows_by_name
from invbench.core.data import AS_THEY_ARE, Pixels, Problem, Split
from invbench.core.groups import GroupedDataset
from invbench.core.image_file import ImageFile
from invbench.core.pixels import IMAGENET
from invbench.core.settings import setting
from invbench.core.task import BinaryClassification, Classification, Task
from invbench.datafiles.picture_cache import Pictures, decoded_pictures
from invbench.datafiles.picture_sources import PictureSource
from invbench.errors import UserError

MOST_IN_MEMORY = 1 << 26
"""Most numbers that become tensors in memory, 4 bytes each; of more images only the batches do."""
Standardise = Literal["imagenet", "none"]


class LabelledPictures(NamedTuple):
    """Pictures, and what is known about each: arrays (N,), None where nothing is.

    Where `classes` has names, labels are their numbers; else the classes are the sorted labels.
    """

    pictures: PictureSource
    label: NDArray[Any]
    environment: NDArray[Any] | None = None
    attribute: NDArray[Any] | None = None
    nuisance: NDArray[Any] | None = None
    split: NDArray[Any] | None = None
    classes: tuple[str, ...] = ()


class PictureDataset(GroupedDataset):
    """Dataset of pictures; a subclass says what they are."""

    licence: ClassVar[str] = "yours"

    test_environments: tuple[str | int, ...] = setting((), "environments that are tested on and not trained on")
    test_share: float = setting(0.2, "of each environment, drawn for the test where no environment is", gt=0, lt=1)
    test_out_share: float = setting(
        0.0, "of each test environment, set apart as split test_out, for choosing settings there", ge=0, lt=1
    )
    image_size: int = setting(64, "side in pixels to which pictures are squeezed", ge=4, le=4096)
    colour: Literal["rgb", "grey"] = setting("rgb", "channels")
    standardise: Standardise = setting("imagenet", "pixels by mean and deviation of ImageNet, or from 0 to 1")
    augment: Literal["none", "domainbed"] = setting(
        "none", "of training images: crops, mirror images, changes of colour, as DomainBed has them"
    )
    on_damaged: Literal["error", "skip"] = setting("error", "what becomes of pictures that cannot be decoded")

    def defaults(self) -> dict[str, dict[str, Any]]:
        """Return settings of a narrow network that trains on a CPU; environments have equal shares, as in DomainBed."""
        return {
            "backbone": {"name": "cnn_small", "width": 32},
            "trainer": {"steps": 1000, "batch_size": 32, "optimizer": "adam", "learning_rate": 1e-3},
        }

    @abstractmethod
    def labelled(self) -> LabelledPictures:
        """List the pictures with their labels. Raises UserError where they are not there or not as they should be."""

    def environment_choices(self) -> tuple[str, ...]:
        environment = self.labelled().environment
        return () if environment is None else tuple(np.unique(environment).astype(str).tolist())

    def load(self, seed: np.random.SeedSequence) -> Problem:
        listed = self.labelled()
        channels = 3 if self.colour == "rgb" else 1
        pictures = decoded_pictures(listed.pictures, self.image_size, channels)
        kept = self._undamaged(listed, pictures)
        rows = self._rows(listed, kept, np.random.default_rng(seed))
        task, y, classes = _task(listed, rows["train"])
        env, names = (None, ()) if listed.environment is None else numbered(listed.environment, rows["train"])
        protected = listed.attribute if listed.nuisance is None else listed.nuisance
        nuisance = None if protected is None else nuisance_of(protected)
        attribute, attributes = (None, ()) if listed.attribute is None else attributes_of(listed.attribute)
        splits = {}
        for name, index in rows.items():
            chosen = torch.from_numpy(index)
            splits[name] = Split(
                self._inputs(pictures, chosen),
                y[chosen],
                None if env is None else env[chosen],
                None if nuisance is None else nuisance[chosen],
                torch.from_numpy(pictures.digests[index]),
                attribute=None if attribute is None else attribute[chosen],
            )
        augment = self._augmented if self.augment == "domainbed" else None
        facts = {"damaged_pictures": float(len(pictures.damaged))} if pictures.damaged else {}
        problem = Problem(splits, task, "image", "full", facts, classes, self.pixels, names, augment=augment)
        return replace(problem, attribute_names=attributes)

    @property
    def pixels(self) -> Pixels:
        """Standardisation of the pixels."""
        if self.standardise == "none":
            return AS_THEY_ARE
        return IMAGENET if self.colour == "rgb" else Pixels((IMAGENET.mean[1],), (IMAGENET.deviation[1],))

    def _undamaged(self, listed: LabelledPictures, pictures: Pictures) -> NDArray[np.bool_]:
        """Tell which pictures were decoded (N,). Raises UserError for the others unless they are skipped."""
        kept = np.ones(len(listed.pictures), np.bool_)
        kept[list(pictures.damaged)] = False
        if not pictures.damaged:
            return kept
        first = min(pictures.damaged)
        what = (
            f"{len(pictures.damaged)} of {len(kept)} pictures cannot be decoded, the first is "
            f"{listed.pictures.name(first)}: {pictures.damaged[first]}"
        )
        if self.on_damaged == "error":
            raise UserError(f"{what}; remove them, or set dataset.on_damaged=skip")
        if not kept.any():
            raise UserError(f"{what}; none is left")
        announce(f"left out: {what}")
        return kept

    def _rows(
        self, listed: LabelledPictures, kept: NDArray[np.bool_], rng: np.random.Generator
    ) -> dict[str, NDArray[np.int64]]:
        """Return the rows of each split."""
        if listed.split is not None:
            if self.test_environments:
                raise UserError("the table has a column split, so leave dataset.test_environments out")
            return rows_by_name(listed.split.astype(str), kept)
        environment = np.zeros(len(kept), "U1") if listed.environment is None else listed.environment.astype(str)
        tested = np.zeros(len(kept), np.bool_)
        tested[kept] = are_tested(environment[kept], self.test_environments)
        test_environments = list(map(str, self.test_environments))
        name_of_share = "test_out" if test_environments else "test"
        share = self.test_out_share if test_environments else self.test_share
        apart = np.zeros(len(kept), np.bool_)
        for name in test_environments or np.unique(environment[kept]):
            rows = rng.permutation(np.flatnonzero(kept & (environment == name)))
            apart[rows[: round(share * len(rows))]] = True
        groups = {"train": ~tested & ~apart, "test": tested & ~apart, name_of_share: apart}
        splits = {name: np.flatnonzero(kept & mask) for name, mask in groups.items()}
        return {name: index for name, index in splits.items() if len(index)}

    def _inputs(self, pictures: Pictures, index: Tensor) -> Tensor | ImageFile:
        """Return images (N, C, H, W), as a tensor where all of the data fit into memory."""
        images = ImageFile(pictures.pixels, index, self.pixels)
        return images if pictures.pixels.size > MOST_IN_MEMORY else images[:]

    def _augmented(self, x: Tensor) -> Tensor:
        """Change each image at random: DomainBed's training transforms (arXiv 2007.01434, released code)."""
        pixels = random_resized_crop(self.pixels.restored(x), (0.7, 1.0))
        pixels = random_grey(colour_jitter(random_flip(pixels), 0.3, 0.3), 0.1)
        return self.pixels.standardised(pixels)


def _task(listed: LabelledPictures, train: NDArray[np.int64]) -> tuple[Task, Tensor, tuple[str, ...]]:
    """Return the task, the targets (N,) and the names of the classes; a class may be missing in training."""
    count = len(listed.classes)
    if count and not (listed.label.min() >= 0 and listed.label.max() < count):
        raise UserError(
            f"labels go from {listed.label.min()} to {listed.label.max()}, but there are {count} classes, from 0 to "
            f"{count - 1}; leave out the split or rows without a label"
        )
    if listed.label.dtype.kind == "f":
        raise UserError("the labels of pictures are classes: whole numbers or texts, not real numbers")
    names, codes = np.unique(listed.label, return_inverse=True)
    if len(np.unique(codes[train])) < 2:
        raise UserError(f"all training pictures are of the class {names[codes[train][0]]}; a task needs two or more")
    classes = listed.classes or tuple(map(str, names.tolist()))
    task = BinaryClassification() if len(classes) == 2 else Classification(len(classes))
    return task, class_targets(classes, listed.label if listed.classes else codes), classes
