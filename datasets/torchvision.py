"""Image classification sets of torchvision by the name of their class, such as `EuroSAT` or `Flowers102`.

    bench run -m erm -d torchvision --set dataset.name=SVHN --set dataset.root=data --set dataset.download=true

Of a class with an argument `train` or `split`, the splits `train` and `test` are those that it calls so; of others a
share is tested. `dataset.splits` says it otherwise, as in `{train: {split: train}, test: {split: val}}`. There are no
environments, unless an attribute of the dataset, as of a class of your own, has them.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
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
from invbench.datasets._packages import class_of, code_of, files_of, made_splits, stamps
from invbench.datasets._pictures import LabelledPictures, PictureDataset
from invbench.errors import UserError
from invbench.system import workarounds

LABELS = ("targets", "labels", "_labels")
"""Attributes in which torchvision's classes keep the class of every picture, where they do."""
COMPARED = 32
"""Items of which the label is compared with that of such an attribute."""


@register_dataset("torchvision")
class Torchvision(PictureDataset):
    """An image classification set of torchvision, or your own `VisionDataset`."""

    display_name: ClassVar[str] = "TorchVision"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "second_stage")
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
        return self.told({"environments": self.environment is not None})

    def files(self) -> tuple[Path, ...]:
        try:
            return files_of(self._class(), at_home(self.root), [self.arguments, self.splits])
        except UserError:  # `load` says why
            return ()

    def labelled(self) -> LabelledPictures:
        cls = self._class()
        parts = made_splits(cls, str(at_home(self.root)), self.download, self.arguments, self.splits)
        whole: ConcatDataset[Any] = ConcatDataset(list(parts.values()))
        identity = (code_of(cls), repr(self.arguments), repr(self.splits), *stamps(self.files()))
        sizes = [len(part) for part in parts.values()]
        labels, named = _labels(whole, identity)
        classes = [_classes(part) if named else () for part in whole.datasets]
        if len(set(classes)) > 1:  # each split has numbers of its own
            each = zip(np.split(labels, np.cumsum(sizes)[:-1]), classes, strict=True)
            labels = np.concatenate([_named(numbers, names) for numbers, names in each])
        return LabelledPictures(
            PictureItems(len(whole), lambda number: _picture(whole[number][0]), identity, self.name),
            labels,
            None if self.environment is None else np.concatenate([self._environments(one) for one in whole.datasets]),
            split=None if self.test_environments or len(parts) == 1 else np.repeat(list(parts), sizes),
            classes=classes[0] if len(set(classes)) == 1 else (),
        )

    def _class(self) -> type[Any]:
        contract = workarounds.torchvision().datasets.VisionDataset
        cls: type[Any] = class_of(self.name, "torchvision.datasets", contract)
        return cls

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


def _labels(whole: "ConcatDataset[Any]", identity: Sequence[str]) -> tuple[NDArray[np.int64], bool]:
    """Return the classes (N,), and whether names of classes fit them.

    They are those of an attribute of the datasets where items agree with it, which a transformation of targets or a
    derived class may not; else those of the items, which are read once.
    """
    parts: list[Any] = whole.datasets
    known = [next((getattr(part, name) for name in LABELS if hasattr(part, name)), None) for part in parts]
    there = all(labels is not None and len(labels) == len(part) for labels, part in zip(known, parts, strict=True))
    if there:
        labels = np.concatenate([_whole_numbers(values) for values in known])
        some = np.unique(np.linspace(0, len(whole) - 1, COMPARED).astype(int)).tolist()
        if all(_agrees(whole, number, int(labels[number])) for number in some):
            return labels, True

    def read() -> Arrays:
        labels: list[Any] = []
        with progress_bar("reading labels", len(whole)) as advance:
            for number in range(len(whole)):
                try:
                    labels.append(whole[number][1])
                except Exception as error:  # of the other package
                    raise UserError(f"the label of picture {number} cannot be read: {one_line(error)}") from None
                advance(len(labels))
        return {"labels": _whole_numbers(labels)}

    return cached_arrays("labels", identity, read)["labels"], not there


def _agrees(whole: "ConcatDataset[Any]", number: int, label: int) -> bool:
    """Tell whether an item has a label, or cannot be read, which decoding will tell of."""
    try:
        return bool(whole[number][1] == label)
    except Exception:  # of the other package
        return True


def _named(numbers: NDArray[np.int64], names: tuple[str, ...]) -> NDArray[np.str_]:
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(names)):
        raise UserError(f"labels go from {numbers.min()} to {numbers.max()}, but a split has {len(names)} classes")
    return np.array(names)[numbers]


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
