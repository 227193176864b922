"""Tables that users bring: csv and parquet files, opened and read within bounds, with errors that name the column."""

import io
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from invbench.core.arrays import LARGEST
from invbench.datafiles.checksums import opened
from invbench.errors import UserError, brief

MAX_VALUES = 1 << 30
"""Most values that are read of a table, 8 bytes each; a parquet file can hold them in no space at all."""
NUMERIC = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
"""Types of columns that are read as numbers."""
Chooser = Callable[[list[str]], list[str]]
"""Names of all columns -> of those that are read."""
Advice = Callable[[str], str]
"""Name of a column that is not numeric -> what to do."""
MAX_NAMES = 200
"""Most characters that are shown of the columns' names."""


@contextmanager
def opened_table(path: Path, setting: str) -> Iterator[io.BufferedIOBase]:
    """Open a table that a setting names.

    Raises:
        UserError: here or while it is read: no such file, another kind of file, too long, or damaged.
    """
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{setting} is {path}; it must end in .parquet or .csv")
    try:
        with opened(path) as file:  # here, since pandas would take some names for addresses
            if file.seek(0, io.SEEK_END) > 8 * MAX_VALUES:
                raise ValueError(f"it has more than {8 * MAX_VALUES} bytes")
            file.seek(0)
            yield file
    except (ValueError, pd.errors.ParserWarning, pa.ArrowException) as error:
        why = " ".join(str(error).split())  # a row that is repeated may have several lines
        raise UserError(f"the table {path} cannot be read: {brief(why)}") from None


def check_names(names: list[str], path: str | Path) -> None:
    """Raise UserError unless every column has a name of its own."""
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice or "" in names:
        what = f"several columns named {listing(twice)}" if twice else "a column without a name"
        raise UserError(f"the table {path} has {what}; give each a name of its own")


def separator_hint(names: list[str]) -> str:
    """Return a hint for a table that seems to be separated by something else than commas; empty for any other."""
    odd = len(names) == 1 and ";" in names[0]
    return "; is it separated by ';'? A csv table's columns are by ','" if odd else ""


def listing(names: Iterable[str]) -> str:
    """Join names for a message, cut off where they are many."""
    text = ", ".join(names)
    return text if len(text) <= MAX_NAMES else f"{text[:MAX_NAMES]}…"


def too_large(name: str) -> UserError:
    """Make the error of a column with values that 32-bit numbers cannot work with."""
    return UserError(f"column {name} has values beyond {LARGEST:g}; divide it by some number")


def index_columns(schema: Any) -> list[object]:
    """List the columns of a parquet file in which pandas keeps the rows' names."""
    try:
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
    except (ValueError, RecursionError):
        return []
    index = described.get("index_columns") if isinstance(described, dict) else None
    return index if isinstance(index, list) else []


# --- tables of numbers, read whole -----------------------------------------------------------------------------------


def read_numbers(path: Path, setting: str, chosen: Chooser, advice: Advice) -> pd.DataFrame:
    """Read the chosen columns of a table whole; those of a csv file may still hold texts, which `numbers` refuses."""
    with opened_table(path, setting) as file:
        return _parquet(file, chosen, advice) if path.suffix == ".parquet" else _csv(file, chosen)


def _csv(file: io.BufferedIOBase, chosen: Chooser) -> pd.DataFrame:
    first = pd.read_csv(file, header=None, nrows=1, dtype=str, keep_default_na=False)
    names = chosen(first.iloc[0].tolist())
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows are longer than the header
        return pd.read_csv(file, index_col=False, low_memory=False)[names]


def _parquet(file: io.BufferedIOBase, chosen: Chooser, advice: Advice) -> pd.DataFrame:
    """Read the columns as numbers, whatever pandas has noted about them."""
    table = parquet.ParquetFile(file)
    index = index_columns(table.schema_arrow)
    names = chosen([name for name in table.schema_arrow.names if name not in index])
    for name in names:
        if not any(is_kind(table.schema_arrow.field(name).type) for is_kind in NUMERIC):
            raise _not_numeric(name, f", but {table.schema_arrow.field(name).type}", advice)
    if table.metadata.num_rows * len(names) > MAX_VALUES:
        raise ValueError(f"its {table.metadata.num_rows} rows have more than {MAX_VALUES} values")
    columns = table.read(columns=names, use_pandas_metadata=False)
    return pd.DataFrame({name: columns[name].cast(pa.float64(), safe=False).to_numpy() for name in names})


def numbers(frame: pd.DataFrame, columns: list[str], advice: Advice) -> NDArray[np.float64]:
    """Return columns as numbers (N, columns), NaN where one is missing. Raises UserError for a text."""
    try:
        return frame[columns].to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError):
        odd = next(name for name in columns if not pd.api.types.is_numeric_dtype(frame[name]))
        raise _not_numeric(odd, _first_text(frame[odd]), advice) from None


def _not_numeric(name: str, why: str, advice: Advice) -> UserError:
    return UserError(f"column {name} of the table is not numeric{why}; {advice(name)}")


def _first_text(column: "pd.Series[Any]") -> str:
    """Return where a column has its first text, and which; empty where it has none."""
    for row, value in enumerate(column, start=1):
        try:
            float(value)
        except (TypeError, ValueError, OverflowError):
            return f": row {row} has {brief(str(value))!r}"
    return ""
