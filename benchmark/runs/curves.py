"""The curves of a run as a file: a row for each measurement."""

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, float]


MOST_NUMBERS = 2**26
"""A larger file is not read."""


OTHERS = {"run_id", "method", "dataset", "seed"}
"""Columns that `load_curves` puts before those of the file."""


def write_rows(rows: list[Row], path: Path) -> None:
    """Write every measurement so far, one row each."""
    pd.DataFrame(rows).to_parquet(path, index=False)


def digest(rows: Sequence[Row]) -> str:
    """One hash of all numbers in rows, those in memory and those that a file has of them: sha256."""
    plain = [{name: float(value) for name, value in row.items() if not math.isnan(value)} for row in rows]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_curves(path: Path) -> pd.DataFrame | None:
    """The table in a file; None where it cannot be read, or is no table of numbers by step."""
    if not path.is_file():  # of a folder, all files in it would be read
        return None
    try:
        with pq.ParquetFile(path) as file:
            if not _of_curves(file.schema_arrow, file.metadata.num_rows):
                return None
            found = file.read().to_pandas(ignore_metadata=True)
    except (OSError, ValueError, pa.ArrowException):
        return None
    return None if "step" in found and not np.isfinite(found["step"].to_numpy(float)).all() else found


def _of_curves(schema: pa.Schema, rows: int) -> bool:
    """Whether a file of so many rows can be a run's curves; those of a run that had no row yet have no column."""
    names = set(schema.names)
    numeric = all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in schema.types)
    named = "step" in names and len(names) == len(schema.names) and not names & OTHERS
    return not names or (named and numeric and rows * len(names) <= MOST_NUMBERS)


def read_rows(path: Path, step: int) -> list[Row] | None:
    """The rows up to a step; None where the file cannot be read."""
    found = read_curves(path)
    if found is None:
        return None
    rows = found.to_dict("records")
    # What a row does not have is NaN in the file.
    return [{str(k): v for k, v in row.items() if not math.isnan(v)} for row in rows if row["step"] <= step]
