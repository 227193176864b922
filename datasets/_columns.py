"""Columns of a csv or parquet file of any length, read batch by batch: first what they hold, then their values.

A csv file says nothing of types. Its column holds integers where all its values are integers; else real numbers,
booleans (true, false), dates, or texts, the first of these that all its values are. A parquet file says them itself.
Missing are the nulls and NaN, and in a csv file what is empty or NA, NaN, null and the like.
"""

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyarrow import csv, parquet

from invbench.datasets._tables import MAX_VALUES, index_columns, opened_table

Holds = Literal["integer", "real", "boolean", "category", "date", "other"]
Value = str | int | float | bool
CSV_TYPES: Mapping[Holds, Any] = {
    "integer": pa.int64(),
    "real": pa.float64(),
    "boolean": pa.bool_(),
    "category": pa.string(),
}
DATES = (pa.timestamp("us"), pa.timestamp("us", "UTC"))
KINDS: tuple[Holds, ...] = ("integer", "real", "boolean", "date", "category")
"""Kinds of a csv file's columns; the first that fits counts."""
PARSED = csv.ParseOptions(newlines_in_values=True)
BLOCK = 1 << 22
"""Number of bytes of a csv file that are parsed at once; a row must fit."""
BATCH = 1 << 14
"""Number of rows of a parquet file that are read at once."""


@dataclass
class Column:
    """What a column holds.

    Args:
        most: how many different values are collected.
        kind: of the values.
        type: the same in the file's own words.
        values: the different values, in sorted order; None where they are more.
        missing: how many are missing, the first in row `first_missing`, counted from 1.
    """

    name: str
    most: int
    kind: Holds = "category"
    type: str = "texts"
    values: tuple[Value, ...] | None = None
    missing: int = 0
    first_missing: int = 0
    collected: set[Any] | None = field(default_factory=set)

    def count(self, array: Any, first_row: int) -> None:
        """Take in a batch of the column."""
        if array.null_count:
            self.first_missing = self.first_missing or first_row + int(np.argmax(array.is_null().to_numpy(False))) + 1
            self.missing += array.null_count
        if self.collected is not None:
            different = array.unique()
            self.collected = self.collected | set(different.to_pylist()) if len(different) <= self.most + 1 else None
            if self.collected is not None and len(self.collected - {None}) > self.most:
                self.collected = None


class Columns(ABC):
    """A table as a stream of columns; it is read several times."""

    typed: ClassVar[bool] = True
    """Whether columns have types of their own; else all values are texts, and what they stand for is found out."""

    @abstractmethod
    def names(self) -> list[str]:
        """List the names of the columns."""

    @abstractmethod
    def batches(self, names: list[str]) -> Iterator[Any]:
        """Yield the columns of these names as batches of Arrow."""

    def described(self, most: Mapping[str, int]) -> tuple[int, dict[str, Column]]:
        """Return the number of rows, and what columns hold.

        Args:
            most: names of the columns, each with how many different values are collected.
        """
        columns = {name: Column(name, number) for name, number in most.items()}
        possible = dict.fromkeys(most, KINDS)
        rows = 0
        for batch in self.batches(list(most)):
            for name, column in columns.items():
                array = batch.column(name)
                if self.typed:
                    column.kind, column.type = _kind(array.type), str(array.type)
                    array = _without_nan(array)
                else:
                    possible[name] = _narrowed(possible[name], array)
                    column.kind = possible[name][0]
                if column.kind != "other":
                    column.count(array, rows)
            rows += len(batch)
        for column in columns.values():
            if column.collected is not None:
                column.values = self._sorted(column.collected - {None}, column.kind)
        return rows, columns

    def _sorted(self, values: set[Any], kind: Holds) -> tuple[Value, ...]:
        if not self.typed and kind in CSV_TYPES:
            values = set(_typed(pa.array(sorted(values), pa.string()), kind).to_pylist())
        return tuple(sorted(values))

    def arrays(self, columns: Sequence[Column]) -> Iterator[dict[str, Any]]:
        """Yield batches of columns, each with the type of its kind."""
        for batch in self.batches([column.name for column in columns]):
            arrays = {column.name: batch.column(column.name) for column in columns}
            if self.typed:
                yield {name: _without_nan(array) for name, array in arrays.items()}
            else:
                yield {column.name: _typed(arrays[column.name], column.kind) for column in columns}


class CsvColumns(Columns):
    """Columns of an opened csv file."""

    typed = False

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file = file

    def names(self) -> list[str]:
        self.file.seek(0)
        with csv.open_csv(self.file, csv.ReadOptions(block_size=BLOCK), PARSED) as reader:
            names: list[str] = reader.schema.names
            return names

    def batches(self, names: list[str]) -> Iterator[Any]:
        self.file.seek(0)
        types = csv.ConvertOptions(
            include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True
        )
        with csv.open_csv(self.file, csv.ReadOptions(block_size=BLOCK), PARSED, types) as reader:
            yield from reader


class ParquetColumns(Columns):
    """Columns of an opened parquet file, without those in which pandas keeps the rows' names."""

    def __init__(self, file: io.BufferedIOBase) -> None:
        self.file = file

    def names(self) -> list[str]:
        self.file.seek(0)
        schema = parquet.ParquetFile(self.file).schema_arrow
        index = index_columns(schema)
        return [name for name in schema.names if name not in index]

    def batches(self, names: list[str]) -> Iterator[Any]:
        self.file.seek(0)
        schema = parquet.ParquetFile(self.file).schema_arrow
        texts = [name for name in names if _is_text(schema.field(name).type)]
        self.file.seek(0)
        # Dictionaries stay as they are in the file; a few bytes of it may stand for any number of long texts.
        table = parquet.ParquetFile(self.file, read_dictionary=texts)
        if table.metadata.num_rows * len(names) > MAX_VALUES:
            raise ValueError(f"its {table.metadata.num_rows} rows have more than {MAX_VALUES} values")
        yield from table.iter_batches(BATCH, columns=names, use_pandas_metadata=False)


@contextmanager
def opened_columns(path: Path, setting: str) -> Iterator[Columns]:
    """Open the table that a setting names, as `opened_table` does."""
    with opened_table(path, setting) as file:
        yield ParquetColumns(file) if path.suffix == ".parquet" else CsvColumns(file)


def _narrowed(kinds: tuple[Holds, ...], array: Any) -> tuple[Holds, ...]:
    """Leave out kinds that values of a batch of texts do not have."""
    there = pc.utf8_trim_whitespace(array.drop_null())
    return tuple(kind for kind in kinds if _fits(there, kind))


def _fits(array: Any, kind: Holds) -> bool:
    if kind == "category":
        return True
    for type_ in DATES if kind == "date" else (CSV_TYPES[kind],):
        with suppress(pa.ArrowInvalid):
            array.cast(type_)
            return True
    return False


def _typed(array: Any, kind: Holds) -> Any:
    """Convert texts of a csv file to what they stand for."""
    return array if kind == "category" else pc.utf8_trim_whitespace(array).cast(CSV_TYPES[kind])


def _is_text(type_: Any) -> bool:
    return any(is_kind(type_) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _kind(type_: Any) -> Holds:
    """Return the kind of a parquet file's type."""
    types = pa.types
    if types.is_dictionary(type_):
        return "category" if _is_text(type_.value_type) or types.is_integer(type_.value_type) else "other"
    kinds: dict[Holds, tuple[Any, ...]] = {
        "integer": (types.is_integer,),
        "real": (types.is_floating, types.is_decimal, types.is_null),
        "boolean": (types.is_boolean,),
        "category": (_is_text,),
        "date": (types.is_timestamp, types.is_date),
    }
    return next((kind for kind, tests in kinds.items() if any(test(type_) for test in tests)), "other")


def _without_nan(array: Any) -> Any:
    """Convert real numbers of any type to 64 bits, NaN to null."""
    if _kind(array.type) != "real":
        return array
    wide = array.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(wide), pa.scalar(None, pa.float64()), wide)


def numbers(array: Any) -> NDArray[np.float64]:
    """Convert a batch of numbers or booleans to 64 bits, NaN where one is missing."""
    wide = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
    values: NDArray[np.float64] = wide.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values


def codes(array: Any, values: Sequence[Value]) -> NDArray[np.int64]:
    """Number a batch by its place among sorted values, -1 where one is missing."""
    if pa.types.is_dictionary(array.type):
        positions = pc.index_in(array.dictionary, pa.array(values, array.type.value_type)).take(array.indices)
    else:
        positions = pc.index_in(array, pa.array(values, array.type))
    numbers_: NDArray[np.int64] = positions.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return numbers_
