"""Image datasets of WILDS (Koh et al. 2021, arXiv 2012.07421) by name, with their splits and metadata.

    bench run -m group_dro -d wilds --set dataset.name=waterbirds --set dataset.root=data

Environments are the values of metadata fields, or all combinations of several, as `CombinatorialGrouper` forms them.
The split `val` is called `validation`. With `test_environments` the dataset's own splits are not used.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datafiles.picture_sources import PictureItems
from invbench.datafiles.release import at_home
from invbench.datasets._packages import class_of, code_of, files_below, files_of, made, package, stamps
from invbench.datasets._pictures import LabelledPictures, PictureDataset
from invbench.errors import UserError, brief, did_you_mean

ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "camelyon17": ("hospital",),
    "celebA": ("male",),
    "domainnet": ("domain",),
    "fmow": ("year",),
    "iwildcam": ("location",),
    "rxrx1": ("experiment",),
    "waterbirds": ("background",),
}
"""Fields that are the environments, as in the paper's experiments."""


@register_dataset("wilds")
class Wilds(PictureDataset):
    """An image dataset of the package `wilds`, or your own `WILDSDataset`; needs the extra `wilds`."""

    display_name: ClassVar[str] = "WILDS"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    advice: ClassVar[Mapping[str, str]] = {"nuisance": "dataset.attribute=FIELD"}
    required_setting: ClassVar[str] = "dataset.name"
    licence: ClassVar[str] = "that of the dataset, see wilds.stanford.edu/datasets"
    citation: ClassVar[str] = "Koh et al., WILDS, 2021, arXiv 2012.07421, and the dataset's own paper"

    name: str = setting(..., "of wilds, such as waterbirds, or module:Class of your own; required")
    root: str = setting("data", "folder of all datasets of wilds")
    download: bool = setting(False, "fetch it where it is not there")
    arguments: dict[str, Any] = setting(
        {}, "further ones of the dataset's class, such as {split_scheme: mixed-to-test}"
    )
    environment: tuple[str, ...] = setting((), "metadata fields whose values are the environments; empty: WILDS' own")
    attribute: str | None = setting(None, "metadata field that predictions should not depend on")

    def capabilities(self) -> tuple[str, ...]:
        return self.told({"nuisance": self.attribute is not None and self.tells_attribute})

    def files(self) -> tuple[Path, ...]:
        try:
            if ":" in self.name:
                return files_of(self._own_class(), at_home(self.root), self.arguments)
            return files_below(*at_home(self.root).glob(f"{self.name}_v*"))
        except UserError:  # `load` says why
            return ()

    def labelled(self) -> LabelledPictures:
        dataset = self._dataset()
        y = np.asarray(dataset.y_array)
        if dataset.n_classes is None or y.size != len(dataset):
            raise UserError(f"{self.name} is no classification by one label, which is what this dataset takes")
        splits = np.asarray(dataset.split_array)
        names = {number: name for name, number in dataset.split_dict.items()}
        if "validation" not in names.values():
            names = {number: "validation" if name == "val" else name for number, name in names.items()}
        used = np.flatnonzero(np.isin(splits, list(names)))
        fields = self.environment or ENVIRONMENTS.get(self.name, tuple(dataset.metadata_fields[:1]))
        values = [_field(dataset, field, "dataset.environment")[used] for field in fields]
        pairs = [
            [f"{field}={value}" for value in column.tolist()] for field, column in zip(fields, values, strict=True)
        ]
        return LabelledPictures(
            self._pictures(dataset, used),
            _whole_numbers(y.reshape(-1), "labels")[used],
            values[0] if len(fields) == 1 else np.array([", ".join(one) for one in zip(*pairs, strict=True)]),
            None if self.attribute is None else _field(dataset, self.attribute, "dataset.attribute")[used],
            split=None if self.test_environments else np.array([names[number] for number in splits[used].tolist()]),
            classes=_texts(dataset, "y", dataset.n_classes) or tuple(map(str, range(dataset.n_classes))),
        )

    def _own_class(self) -> Any:
        package("wilds", "wilds")
        from wilds.datasets.wilds_dataset import WILDSDataset

        return class_of(self.name, "", WILDSDataset)

    def _dataset(self) -> Any:
        where = {"root_dir": str(at_home(self.root)), "download": self.download} | self.arguments
        offline = f"put a copy into {self.root} (wilds.stanford.edu/downloads), or set dataset.download=true"
        if ":" in self.name:
            return made(self._own_class(), where, f"its folder is dataset.root, {self.root}")
        wilds = package("wilds", "wilds")
        if self.name not in wilds.supported_datasets:
            hint = did_you_mean(self.name, wilds.supported_datasets) + "; a class of your own is my_module:MyDataset"
            raise UserError(f"dataset.name: wilds has no '{brief(self.name)}'{hint}")
        return made(wilds.get_dataset, {"dataset": self.name} | where, offline)

    def _pictures(self, dataset: Any, used: NDArray[np.int64]) -> PictureItems:
        """Return the pictures with these numbers."""

        def read(number: int) -> Image.Image:
            picture = dataset.get_input(int(used[number]))
            if not isinstance(picture, Image.Image):
                raise TypeError(f"its inputs are of type {type(picture).__name__}, not pictures")
            return picture

        identity = (code_of(type(dataset)), repr(self.arguments), hashlib.sha256(used.tobytes()).hexdigest())
        files = {*self.files(), *files_below(dataset.data_dir)}
        return PictureItems(len(used), read, (*identity, *stamps(sorted(files))), self.name)


def _field(dataset: Any, field: str, setting_: str) -> NDArray[Any]:
    """Return the values of a metadata field (N,): texts where WILDS has names of them, else whole numbers."""
    if field not in dataset.metadata_fields:
        hint = did_you_mean(field, dataset.metadata_fields)
        raise UserError(f"{setting_}: {dataset.dataset_name} has no metadata field '{brief(field)}'{hint}")
    numbers = _whole_numbers(dataset.metadata_array[:, dataset.metadata_fields.index(field)].numpy(), field)
    names = _texts(dataset, field, int(numbers.max()) + 1)
    if not names:
        return numbers
    named: NDArray[np.str_] = np.array(names)[numbers]  # where a value is unknown it is -1, which would take the last
    return np.where(numbers < 0, numbers.astype(np.str_), named)


def _whole_numbers(values: NDArray[Any], what: str) -> NDArray[np.int64]:
    if not np.array_equal(values, np.floor(values)):
        raise UserError(f"{what} of this dataset are not whole numbers, or missing")
    return values.astype(np.int64)


def _texts(dataset: Any, field: str, count: int) -> tuple[str, ...]:
    """Return WILDS' names of so many values of a metadata field; empty where it has none, or one name twice."""
    names = [str(name).strip() for name in (dataset.metadata_map or {}).get(field, ())]
    return tuple(names) if len(set(names)) == len(names) >= count else ()
