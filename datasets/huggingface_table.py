"""Columns of a dataset of Hugging Face's `datasets` as a problem of vectors: what `table` is for csv and parquet.

    bench run -m irmv1 -d huggingface_table --set dataset.path=wines --set dataset.target=quality \\
      --set dataset.environment=region

Class labels stand for their names. A column of lists of equal lengths, such as embeddings, is as many features, named
`column.0`, `column.1` and so on. The column `_split` has the dataset's splits (`val`, `valid` and `dev` are
`validation`), and is `dataset.split` where there are several and no `test_environments`.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from invbench.core.data import Problem
from invbench.core.registry import register_dataset
from invbench.core.settings import setting
from invbench.datasets._columns import BATCH, Columns
from invbench.datasets._huggingface import loaded, local_files
from invbench.datasets._tables import MAX_VALUES
from invbench.datasets.table import Table
from invbench.errors import UserError

SPLIT = "_split"
"""Name of the column of splits; that it begins with `_` keeps it from being a feature."""
MAX_LENGTH = 100_000
"""Most numbers that a list of a column may have."""


@register_dataset("huggingface_table")
class HuggingFaceTable(Table):
    """Columns of a Hugging Face dataset, saved on disk or by its name; needs the extra `huggingface`."""

    display_name: ClassVar[str] = "Hugging Face table"
    provides: ClassVar[tuple[str, ...]] = (
        "vector",
        "classification",
        "regression",
        "nuisance",
        "environments",
        "second_stage",
    )
    required_setting: ClassVar[str] = "dataset.path"
    licence: ClassVar[str] = "that of the dataset, see its card"
    citation: ClassVar[str] = "the dataset's own paper, see its card"

    path: str = setting(..., "folder of `save_to_disk`, or what `load_dataset` takes, such as csv; required")
    arguments: dict[str, Any] = setting({}, "further ones of `load_dataset`, such as {data_files: wines.csv}")
    splits: dict[str, str] = setting({}, "the dataset's name of each split; empty: all splits by their own names")

    def files(self) -> tuple[Path, ...]:
        return local_files(self.path, self.arguments)

    def opened(self) -> AbstractContextManager[Columns]:
        return nullcontext(DatasetColumns(loaded(self.path, self.arguments, self.splits)))

    def load(self, seed: np.random.SeedSequence) -> Problem:
        parts = loaded(self.path, self.arguments, self.splits)
        by_split = len(parts) > 1 and self.split is None and not self.test_environments
        settings = self.model_copy(update={"split": SPLIT}) if by_split else self
        return settings.loaded_from(nullcontext(DatasetColumns(parts)), seed)


class DatasetColumns(Columns):
    """Columns of the splits of a dataset, one after another."""

    def __init__(self, parts: Mapping[str, Any]) -> None:
        self.parts = parts
        features = next(iter(parts.values())).features
        self.lists = {name: self._length(name) for name, one in features.items() if type(one).__name__ == "List"}
        plain = [name for name in features if name not in self.lists]
        self.elements = {f"{name}.{i}": (name, i) for name, length in self.lists.items() for i in range(length)}
        if SPLIT in features and len(parts) > 1:
            raise UserError(f"the dataset has several splits and a column {SPLIT}, which is to name them; rename it")
        self.all = [*plain, *self.elements, *([] if SPLIT in features else [SPLIT])]

    def names(self) -> list[str]:
        return self.all

    def batches(self, names: list[str]) -> Iterator[Any]:
        rows = sum(map(len, self.parts.values()))
        if rows * len(names) > MAX_VALUES:
            raise UserError(f"the dataset's {rows} rows have more than {MAX_VALUES} values")
        needed = {self.elements.get(name, (name, 0))[0] for name in names}
        for split, part in self.parts.items():
            columns = [name for name in part.column_names if name in needed] or part.column_names[:1]
            for batch in part.select_columns(columns).with_format("arrow").iter(BATCH):
                lists = {name: self._matrix(batch, name) for name in needed & self.lists.keys()}
                yield pa.record_batch({name: self._column(batch, lists, name, split) for name in names})

    def _column(self, batch: Any, lists: Mapping[str, NDArray[Any]], name: str, split: str) -> Any:
        """Return a column of a batch, as one array."""
        if name == SPLIT and name not in batch.column_names:
            return pa.array([split] * len(batch))
        if name in self.elements:
            list_, i = self.elements[name]
            return pa.array(lists[list_][:, i])
        array = batch.column(name).combine_chunks()
        # Those of the split, which may have them in another order than the first.
        class_names = getattr(self.parts[split].features[name], "names", None)
        if class_names is None:
            return array
        codes = pc.if_else(pc.less(array, 0), pa.scalar(None, array.type), array)  # -1 is a label that is missing
        return pa.DictionaryArray.from_arrays(codes.cast(pa.int32()), pa.array(class_names))

    def _matrix(self, batch: Any, name: str) -> NDArray[Any]:
        """Return a column of lists as numbers (rows, length). Raises UserError where one has another length."""
        array, length = batch.column(name).combine_chunks(), self.lists[name]
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        if not pc.all(pc.equal(lengths, length)).as_py():
            raise UserError(f"column {name} has lists of other lengths than the first, which has {length} values")
        values: NDArray[Any] = array.flatten().to_numpy(zero_copy_only=False)
        if values.dtype.kind not in "iufb":
            raise UserError(f"column {name} has lists of something else than numbers")
        return values.reshape(-1, length)

    def _length(self, name: str) -> int:
        """Return the length of a column's first list."""
        part = next(part for part in self.parts.values() if len(part))
        length = len(part.select_columns([name]).with_format("arrow")[:1].column(name)[0] or ())
        if not 0 < length <= MAX_LENGTH:
            raise UserError(f"the first list of column {name} has {length} values; it may have 1 to {MAX_LENGTH}")
        return length
