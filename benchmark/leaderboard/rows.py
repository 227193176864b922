"""Files of rows and of learning curves: writing, and reading with a bound and without trust."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from invbench.errors import UserError
from invbench.files import replacing

CURVES = ".curves.parquet"
"""End of the names of files of learning curves."""
CURVE_COLUMNS = ("method", "seed", "step", "validation", "test")
MOST_ROWS, MOST_COLUMNS, MOST_BYTES = 100_000, 2000, 2**28
"""Largest table of rows or curves that is read: its rows, its columns, and its bytes, in the file and decoded."""
BATCH = 1024
"""Largest number of rows that are decoded at a time."""
NAMED = 3
"""Largest number of examples that a complaint names."""
TEXTS = ("edition", "problem", "stage", "method", "knows", "status", "code", "run_id")
"""Columns that rows must have, with a text in each row."""
REQUIRED = (
    *TEXTS, "seed", "data.metric", "data.primary", "data.higher_is_better", "data.fingerprint",
    "best_validation.step", "cost.wall_seconds",
)  # fmt: skip
"""All columns that rows must have."""
NUMBERS = re.compile(
    r"seed|fused|(best_validation\.)?(test|validation|held_out)_.*|best_validation\.step|(cost|invariance)\..*"
)
"""Pattern of the names of columns of rows that hold nothing but numbers."""
COMPUTED = ("added", "trial")
"""Columns that are not read: they are computed of rows."""
STATUSES = {"done", "failed"}


def read_rows(folder: Path, names: Iterable[str], version: str) -> dict[str, pd.DataFrame]:
    """Read the rows of the problems that are built, by name.

    Raises:
        UserError: rows are of another edition, a file cannot be read, or it holds no rows of a leaderboard.
    """
    tables: dict[str, pd.DataFrame] = {}
    for name in names:
        path = folder / f"{name}.parquet"
        if not path.is_file():
            continue
        table = _read(path)
        if complaint := next(wrong_columns(table), ""):
            raise UserError(f"{path}: {complaint}")
        if set(table["edition"]) != {version}:
            other = ", ".join(sorted(set(table["edition"])))
            raise UserError(f"{path} is of edition {other}, not {version}; editions are not mixed")
        tables[name] = table.drop(columns=[column for column in COMPUTED if column in table])
    return tables


def wrong_columns(table: pd.DataFrame) -> Iterator[str]:
    """Yield what is wrong with the columns of rows; what they hold must be such as all else can work with."""
    if lacking := [name for name in REQUIRED if name not in table]:
        yield f"there is no column {', '.join(lacking)}"
        return
    names = [str(name) for name in table if NUMBERS.fullmatch(str(name))]
    if wrong := [name for name in names if not pd.api.types.is_numeric_dtype(table[name])]:
        yield f"{', '.join(wrong[:NAMED])} {'holds' if len(wrong) == 1 else 'hold'} other than numbers"
    if wrong := [name for name in TEXTS if not table[name].map(lambda value: isinstance(value, str)).all()]:
        yield f"{', '.join(wrong[:NAMED])} {'holds' if len(wrong) == 1 else 'hold'} other than texts"
        return
    if not pd.api.types.is_integer_dtype(table["seed"]):
        yield "seeds are no integers"
    if others := sorted(set(table["status"]) - STATUSES):
        yield f"status is {', '.join(map(repr, others[:NAMED]))}, not done or failed"
    done = table[table["status"] == "done"]  # there are none of a method that diverges whatever its settings
    if any(done[name].isna().any() for name in ("data.metric", "data.primary", "data.higher_is_better")):
        yield "runs that are done do not all say by which metric they are judged"
    elif not all(isinstance(value, str) for name in ("data.metric", "data.primary") for value in done[name]):
        yield "data.metric or data.primary holds other than texts"
    if done["best_validation.step"].isna().any():
        yield "runs that are done do not all say which step was best in validation"
    if twice := table["run_id"][table.duplicated(["stage", "run_id"])].unique().tolist():
        yield f"{len(twice)} runs are there more than once: {', '.join(twice[:NAMED])}"


def read_curves(folder: Path, names: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Read the learning curves of problems, by name; of some there may be none.

    Raises:
        UserError: a file cannot be read, or holds no curves.
    """
    tables: dict[str, pd.DataFrame] = {}
    for name in names:
        path = folder / f"{name}{CURVES}"
        if path.is_file():
            tables[name] = _read(path)
            if lacking := [column for column in CURVE_COLUMNS if column not in tables[name]]:
                raise UserError(f"{path} holds no learning curves: there is no column {', '.join(lacking)}")
            if twice := int(tables[name].duplicated(["method", "seed", "step"]).sum()):
                raise UserError(f"{path} has {twice} points more than once for the same method, seed and step")
    return tables


def write_rows(table: pd.DataFrame, path: Path) -> None:
    """Write the rows of a problem, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        table.to_parquet(temporary, compression="zstd", index=False)


def _read(path: Path) -> pd.DataFrame:
    """Read a table, some rows at a time, until it is larger than rows can be. Raises UserError."""
    try:
        with pq.ParquetFile(path) as file:
            facts = file.metadata
            encoded = sum(facts.row_group(group).total_byte_size for group in range(facts.num_row_groups))
            size = (facts.num_rows, facts.num_columns, encoded)
            if facts.num_rows > MOST_ROWS or facts.num_columns > MOST_COLUMNS or encoded > MOST_BYTES:
                raise _too_large(path, *size)
            # A text that stands in the file once can be that of every row: of so few rows it cannot be too much.
            batches, decoded = [], 0
            for batch in file.iter_batches(max(1, min(BATCH, MOST_BYTES // max(encoded, 1)))):
                batches.append(batch)
                decoded += batch.nbytes
                if decoded > MOST_BYTES:
                    raise _too_large(path, *size[:2], decoded)
            table: pd.DataFrame = pa.Table.from_batches(batches, file.schema_arrow).to_pandas()
            return table
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _too_large(path: Path, rows: int, columns: int, size: int) -> UserError:
    return UserError(
        f"{path} has {rows} rows, {columns} columns and {size} bytes or more; rows of a problem have at most "
        f"{MOST_ROWS}, {MOST_COLUMNS} and {MOST_BYTES}"
    )
