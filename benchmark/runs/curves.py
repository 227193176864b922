"""The curves of a run as a file: a row for each measurement."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    import pandas as pd  # takes a second, and a run does without it

Row = dict[str, float]


MOST_NUMBERS = 2**26
"""Maximum number of values in a file of curves; a larger file is not read."""


OTHERS = {"run_id", "method", "dataset", "seed"}
"""Columns that `load_curves` puts before those of the file."""


def write_rows(rows: list[Row], path: Path) -> None:
    """Write the rows of the curves to a Parquet file."""
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.table({name: _column([row.get(name, math.nan) for row in rows]) for name in names}), path)


def _column(numbers: Sequence[float]) -> pa.Array:
    """Make a column of whole numbers where all are; NaN is null in the file. `pyarrow.array` would import pandas."""
    values = np.array(numbers, np.int64 if all(isinstance(number, int) for number in numbers) else np.float64)
    valid = np.packbits(~np.isnan(values), bitorder="little")
    buffers = [pa.py_buffer(valid), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), buffers)


def digest(rows: Sequence[Row]) -> str:
    """Return the sha256 of all numbers in rows; rows in memory and those read back from a file have the same."""
    plain = [{name: float(value) for name, value in row.items() if not math.isnan(value)} for row in rows]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_curves(path: Path) -> "pd.DataFrame | None":
    """Read the curves in a file; None where it cannot be read, or is no table of numbers by step."""
    if not path.is_file():  # of a folder, all files in it would be read
        return None
    try:
        with pq.ParquetFile(path) as file:
            if not _of_curves(file.schema_arrow, file.metadata.num_rows):
                return None
            table = file.read().to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return None if "step" in table and not np.isfinite(table["step"].to_numpy(float)).all() else table


def _of_curves(schema: pa.Schema, rows: int) -> bool:
    """Tell whether a file with this schema can be a run's curves; those of a run without rows have no columns."""
    names = set(schema.names)
    numeric = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in schema.types)
    named = "step" in names and len(names) == len(schema.names) and not names & OTHERS
    return not names or (named and numeric and rows * len(names) <= MOST_NUMBERS)


def read_rows(path: Path, step: int) -> list[Row] | None:
    """Read the rows up to a step; None where the file cannot be read."""
    table = read_curves(path)
    if table is None:
        return None
    rows = table.to_dict("records")
    # What a row does not have is NaN in the file.
    return [{str(k): v for k, v in row.items() if not math.isnan(v)} for row in rows if row["step"] <= step]
