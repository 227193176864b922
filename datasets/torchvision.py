"""Image classification sets of torchvision by the name of their class, such as `EuroSAT` or `Flowers102`.

    bench run -m erm -d torchvision --set dataset.name=SVHN --set dataset.root=data --set dataset.download=true

Of a class with an argument `train` or `split`, the splits `train` and `test` are those that it calls so; of others a
share is tested. `dataset.splits` says it otherwise, as in `{train: {split: train}, test: {split: val}}`. There are no
environments, unless an attribute of the dataset, as of a class of your own, has them.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import ConcatDataset

from invbench.console import progress_bar
from invbench.core.arrays import array_of
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.core.third_party import one_line
from invbench.datafiles.cache import Arrays, cached_arrays
from invbench.datafiles.picture_sources import PictureItems
from invbench.datafiles.release import at_home
from invbench.datasets._packages import class_of, files_below, made_splits
from invbench.datasets._pictures import LabelledPictures, PictureDataset
from invbench.errors import UserError
from invbench.system import workarounds
from invbench.system.threads import available_cores

LABELS = ("targets", "labels", "_labels")
"""Attributes in which torchvision's classes keep the class of every picture, where they do."""


@register_dataset("torchvision")
class Torchvision(PictureDataset):
    """An image classification set of torchvision, or your own `VisionDataset`."""

    display_name: ClassVar[str] = "torchvision"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments")
    advice: ClassVar[Mapping[str, str]] = {"environments": "dataset.environment=ATTRIBUTE"}
    required_setting: ClassVar[str] = "dataset.name"
    licence: ClassVar[str] = "that of the dataset"
    citation: ClassVar[str] = "the dataset's own paper, see pytorch.org/vision/stable/datasets.html"

    name: str = setting(..., "of a class of torchvision.datasets, or module:Class of your own; required")
    root: str = setting("data", "argument root of the class")
    download: bool = setting(False, "fetch it where it is not there")
    arguments: dict[str, Any] = setting({}, "further ones of the class, such as {target_type: category}")
    splits: dict[str, dict[str, Any]] = setting({}, "arguments of each split; empty: as the class calls them")
    environment: str | None = setting(None, "attribute of the dataset that has the environment of each picture")

    def capabilities(self) -> tuple[str, ...]:
        return tuple(what for what in self.provides if what != "environments" or self.environment is not None)

    def labelled(self) -> LabelledPictures:
        contract = workarounds.torchvision().datasets.VisionDataset
        cls: type[Any] = class_of(self.name, "torchvision.datasets", contract)
        parts = made_splits(cls, str(at_home(self.root)), self.download, self.arguments, self.splits)
        whole: ConcatDataset[Any] = ConcatDataset([part for part in parts.values() if len(part)])
        identity = (self.name, repr(self.arguments), repr(self.splits), *files_below(at_home(self.root)))
        names = np.repeat(list(parts), [len(part) for part in parts.values()])
        return LabelledPictures(
            PictureItems(len(whole), lambda number: _picture(whole[number][0]), identity, self.name),
            _labels(whole, identity),
            None if self.environment is None else np.concatenate([self._environments(one) for one in whole.datasets]),
            split=None if self.test_environments or len(parts) == 1 else names,
            classes=_classes(whole.datasets[0]),
        )

    def _environments(self, dataset: Any) -> NDArray[Any]:
        values = getattr(dataset, self.environment or "", None)
        if values is None:
            raise UserError(f"dataset.environment: a dataset {self.name} has no attribute {self.environment}")
        environments = array_of("dataset.environment", values)
        if environments.shape != (len(dataset),):
            raise UserError(
                f"dataset.environment: {self.environment} must have one value of each of {len(dataset)} pictures"
            )
        return environments


def _picture(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        raise TypeError(f"its items begin with a {type(picture).__name__}, not with a picture")
    return picture


def _labels(whole: "ConcatDataset[Any]", identity: Sequence[str]) -> NDArray[np.int64]:
    """Return the classes (N,): of an attribute of the datasets, else of their items, read once."""
    parts: list[Any] = whole.datasets
    known = [next((getattr(part, name) for name in LABELS if hasattr(part, name)), None) for part in parts]
    if all(labels is not None and len(labels) == len(part) for labels, part in zip(known, parts, strict=True)):
        return np.concatenate([_whole_numbers(labels) for labels in known])

    def read() -> Arrays:
        with ThreadPoolExecutor(available_cores()) as executor, progress_bar("reading labels", len(whole)) as advance:
            labels: list[Any] = []
            try:
                for label in executor.map(lambda number: whole[number][1], range(len(whole))):
                    labels.append(label)
                    advance(len(labels))
            except Exception as error:  # of the other package
                raise UserError(f"the label of picture {len(labels)} cannot be read: {one_line(error)}") from None
        return {"labels": _whole_numbers(labels)}

    return cached_arrays("labels", identity, read)["labels"]


def _whole_numbers(labels: Any) -> NDArray[np.int64]:
    try:
        array = np.asarray(labels)
    except ValueError:  # of different lengths
        array = np.empty(0)
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise UserError("the targets are not one class number a picture, which is what this dataset takes")
    return array.astype(np.int64)


def _classes(dataset: Any) -> tuple[str, ...]:
    """Return the names of the classes, where the dataset has them."""
    names = getattr(dataset, "classes", ())
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        return ()
    return tuple(names) if len(set(names)) == len(names) else ()
