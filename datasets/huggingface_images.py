"""Pictures of a dataset of Hugging Face's `datasets`: saved on disk, on the Hub, or built of files.

    bench run -m irmv1 -d huggingface_images --set dataset.path=camelyon --set 'dataset.columns={environment: hospital}'

The column of pictures and that of class labels are found by their types where there is one of each. The splits are
those of the dataset, where `val`, `valid` and `dev` are `validation`. A single one is divided, and with
`test_environments` all of them are put together and divided.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datafiles.checksums import read
from invbench.datafiles.decoding import MAX_BYTES
from invbench.datafiles.picture_sources import PictureItems
from invbench.datasets._huggingface import check_column, huggingface, loaded, local_files
from invbench.datasets._packages import made, stamps
from invbench.datasets._pictures import LabelledPictures, PictureDataset
from invbench.errors import UserError, brief

BATCH = 1 << 10
ROLES = ("image", "label", "environment", "attribute", "nuisance")


@register_dataset("huggingface_images")
class HuggingFaceImages(PictureDataset):
    """Pictures of a Hugging Face dataset, saved on disk or by its name; needs the extra `huggingface`."""

    display_name: ClassVar[str] = "Hugging Face images"
    provides: ClassVar[tuple[str, ...]] = ("image", "classification", "environments", "nuisance", "second_stage")
    advice: ClassVar[Mapping[str, str]] = {
        "environments": "'dataset.columns={environment: COLUMN}'",
        "nuisance": "'dataset.columns={attribute: COLUMN}'",
    }
    required_setting: ClassVar[str] = "dataset.path"
    licence: ClassVar[str] = "that of the dataset, see its card"
    citation: ClassVar[str] = "the dataset's own paper, see its card"

    path: str = setting(..., "folder of `save_to_disk`, or what `load_dataset` takes, such as imagefolder; required")
    arguments: dict[str, Any] = setting({}, "further ones of `load_dataset`, such as {data_dir: photos}")
    splits: dict[str, str] = setting({}, "the dataset's name of each split; empty: all splits by their own names")
    columns: dict[str, str] = setting({}, f"names of the columns with the roles {', '.join(ROLES)}")

    def capabilities(self) -> tuple[str, ...]:
        of_attribute = "attribute" in self.columns and self.tells_attribute
        nuisance = "nuisance" in self.columns or of_attribute
        return self.told({"environments": "environment" in self.columns, "nuisance": nuisance})

    def files(self) -> tuple[Path, ...]:
        return local_files(self.path, self.arguments)

    def labelled(self) -> LabelledPictures:
        if odd := set(self.columns) - set(ROLES):
            raise UserError(f"dataset.columns: no role '{brief(min(odd))}'; the roles are {', '.join(ROLES)}")
        parts = loaded(self.path, self.arguments, self.splits)
        whole = made(huggingface().concatenate_datasets, {"dsets": list(parts.values())}, "their columns must be alike")
        names = np.repeat(list(parts), [len(part) for part in parts.values()])
        label = self._column(whole, "label", "ClassLabel")
        others = {role: _values(whole, self.columns[role]) for role in ROLES[2:] if role in self.columns}
        return LabelledPictures(
            self._pictures(whole),
            _values(whole, label),
            others.get("environment"),
            others.get("attribute"),
            others.get("nuisance"),
            split=None if self.test_environments or len(parts) == 1 else names,
            classes=tuple(getattr(whole.features[label], "names", ())),
        )

    def _pictures(self, whole: Any) -> PictureItems:
        name = self._column(whole, "image", "Image")
        column = whole.select_columns([name]).cast_column(name, huggingface().Image(decode=False))

        def content(number: int) -> bytes:
            picture = column[number][name] or {}
            if picture.get("bytes") is not None:
                return bytes(picture["bytes"])
            if picture.get("path") is None:
                raise ValueError("there is no picture")
            return read(Path(picture["path"]), MAX_BYTES)

        paths = (path for batch in column.with_format("arrow").iter(BATCH) for path in _paths(batch.column(name)))
        identity = (self.path, repr(self.columns), whole._fingerprint, *stamps(sorted(set(paths))))
        return PictureItems(len(whole), content, identity, self.path)

    def _column(self, whole: Any, role: str, kind: str) -> str:
        """Return the name of the column with a role: the one that is named, else the only one of a type."""
        if role in self.columns:
            check_column(whole, self.columns[role], "dataset.columns")
            return self.columns[role]
        names: list[str] = [name for name, feature in whole.features.items() if type(feature).__name__ == kind]
        if len(names) != 1:
            what = f"{len(names)} columns are" if names else "no column is"
            raise UserError(f"{what} of the type {kind}; name one: 'dataset.columns={{{role}: COLUMN}}'")
        return names[0]


def _paths(column: Any) -> Iterator[Path]:
    """Yield the files of the pictures of a batch that are not in the dataset itself."""
    outside = pc.is_null(pc.struct_field(column, "bytes"))
    for path in pc.struct_field(column, "path").filter(outside).to_pylist():
        if path is not None:
            yield Path(path)


def _values(whole: Any, name: str) -> NDArray[Any]:
    """Return the values of a column (N,): numbers, or texts."""
    check_column(whole, name, "dataset.columns")
    column = whole.select_columns([name]).with_format("arrow")[:].column(name).to_pandas()
    if (missing := column.isna()).any():
        raise UserError(f"column {name} has no value in row {int(missing.to_numpy().argmax()) + 1}")
    values: NDArray[Any] = column.to_numpy() if column.dtype.kind in "iufb" else column.astype(str).to_numpy(np.str_)
    return values
