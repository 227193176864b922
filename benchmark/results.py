"""Records as pandas tables."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json, to_json

from invbench.curves import read_curves
from invbench.errors import UserError
from invbench.files import replacing
from invbench.machine import sources_hash
from invbench.records import Record, RunFolder, read_record, run_folders
from invbench.spec import RunSpec

DATA = ("metric", "primary", "higher_is_better", "variant", "fingerprint", "environments")
"""What a row tells of the data."""
IDENTITY = ("method", "dataset", "backbone", "seed", "protocol")
INDEX = "index.parquet"
"""In a folder of many runs: the rows of its finished ones, for a fast reading. It can be deleted at any time."""
INDEXED = 100
"""Rows that must be missing from an index before it is written anew."""


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row per run found at or below the given folders, finished or not.

    Columns, text unless something else is said: run_id, status, kind (of a failure), message, method, dataset,
    backbone, seed (Int64), protocol; each setting by its dotted name, e.g. `method.threshold` (of its own type); each
    metric, e.g. `test_accuracy` (float64, NaN unless the run is done); `best_validation.test_accuracy` and so on, at
    the step that was best on the validation set, and `best_validation.step`; `data.metric`, the one that tables show,
    `data.primary` and `data.higher_is_better`, what the task is judged by on any split, and which way;
    `data.environments`; `data.variant`, `data.fingerprint`; `cost.wall_seconds`, `cost.seconds_per_step`,
    `cost.peak_memory_bytes` (float64); `invariance.rotation` and so on (float64), the mean change of the prediction
    over the range of a generator, and `invariance.quarter_turns` and its like; `started`, `finished`; `path`.

    Raises:
        UserError: a folder does not exist.
    """
    found = pd.DataFrame([row for path in _existing(paths) for row in _rows(path)])
    if "seed" in found:
        found["seed"] = found["seed"].astype("Int64")
    return found


def load_made_by(paths: str | Path | Iterable[str | Path], code: str) -> pd.DataFrame:
    """The runs that some code made, as `load_results` has them; also by the records before the present ones.

    Args:
        code: first digits of a git commit, or of the hash of the sources that is in every record.
    """
    rows = []
    for folder in folders(paths):
        for record in (read_record(folder.record), read_record(folder.previous)):
            made_by = [] if record is None else [str(record.code.get(name)) for name in ("git_commit", "sources")]
            if record is not None and any(one.startswith(code) for one in made_by):
                rows.append(_row_of_record(record) | {"run_id": folder.path.name, "path": str(folder.path)})
                break
    found = pd.DataFrame(rows)
    return found.astype({"seed": "Int64"}) if len(found) else found


def load_curves(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Every measurement of every run, one row each, with the run's run_id, method, dataset and seed in front.

    Columns: step, epoch; the metrics; objective, its mean since the last row; of the last step `risk.<environment>`,
    penalty (with its weight) and gradient_norm; `coefficient.<input>` of a linear problem; `state.<name>`, the method's
    numbers, such as an adaptive rule's weights; `width.<generator>` and its like, what is learned besides the weights.
    """
    tables = []
    for folder in folders(paths):
        spec = folder.read_spec()
        if spec is not None and folder.curves.exists():
            curves = read_curves(folder.curves)
            if curves is None:
                warnings.warn(f"{folder.curves} cannot be read and is left out", stacklevel=2)
                continue
            for place, name in enumerate(("method", "dataset", "seed")):
                curves.insert(place, name, getattr(spec, name))
            curves.insert(0, "run_id", folder.path.name)
            tables.append(curves)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def folders(paths: str | Path | Iterable[str | Path]) -> list[RunFolder]:
    """Every run at or below the paths. Raises UserError for a folder that does not exist."""
    return [folder for path in _existing(paths) for folder in run_folders(path)]


def _existing(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in listed:
        if not Path(path).is_dir():
            raise UserError(f"no results folder {path}; runs write to 'results' unless --out says otherwise")
    return [Path(path) for path in listed]


def _rows(root: Path) -> Iterator[dict[str, Any]]:
    """Of all runs below a folder; those whose record is the one that the index knows are taken from there."""
    known = _read_index(root)
    new: dict[str, tuple[str, bytes]] = {}
    kept: dict[str, tuple[str, bytes]] = {}
    for folder in run_folders(root):
        name, mark = folder.path.relative_to(root).as_posix(), _mark(folder)
        if mark and known.get(name, ("",))[0] == mark:
            kept[name] = known[name]
            row = from_json(known[name][1])
        else:
            record = folder.read_record()
            row = _row_of_record(record) if record else _row_of_spec(folder.read_spec(), folder.status())
            row["run_id"] = folder.path.name
            if record:
                new[name] = mark, to_json(row)
        yield row | {"path": str(folder.path)}
    if len(new) >= INDEXED:
        _write_index(root, kept | new)


def _mark(folder: RunFolder) -> str:
    """What changes when the record does; empty where there is none."""
    try:
        found = folder.record.stat()
    except OSError:
        return ""
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"


def _read_index(root: Path) -> dict[str, tuple[str, bytes]]:
    """Mark and row, as JSON, of each run by its path below the folder; nothing where another code wrote it."""
    try:
        table = pq.read_table(root / INDEX)
        if (table.schema.metadata or {}).get(b"sources", b"").decode() != sources_hash():
            return {}
        columns = [table.column(name).to_pylist() for name in ("path", "mark", "row")]
    except (OSError, KeyError, pa.ArrowException):
        return {}
    return {path: (mark, row) for path, mark, row in zip(*columns, strict=True)}


def _write_index(root: Path, rows: dict[str, tuple[str, bytes]]) -> None:
    columns = {
        "path": list(rows),
        "mark": [mark for mark, _ in rows.values()],
        "row": [row for _, row in rows.values()],
    }
    table = pa.table(columns).replace_schema_metadata({"sources": sources_hash()})
    try:
        with replacing(root / INDEX) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError:
        return  # somebody else's folder: it is read without an index


def _row_of_spec(spec: RunSpec | None, status: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run_id": None, "status": status, "kind": None, "message": None}
    if spec is not None:
        row |= {name: getattr(spec, name) for name in IDENTITY} | spec.flat()
    return row


def _row_of_record(record: Record) -> dict[str, Any]:
    row = _row_of_spec(record.spec, record.status) | {"kind": record.kind, "message": record.message}
    row |= record.metrics
    if (best := record.best_validation) is not None:
        row |= {"best_validation.step": float(best.step)} | {
            f"best_validation.{name}": value for name, value in best.metrics.items()
        }
    row |= _invariance(record.invariance)
    row |= {f"data.{name}": record.data[name] for name in DATA if name in record.data}
    row |= {f"cost.{name}": value for name, value in record.cost.items()}
    return row | {"started": record.started, "finished": record.finished}


def _invariance(measured: dict[str, Any]) -> dict[str, float]:
    profiles = measured.get("generators", {})
    means = {name: float(np.mean(profile["changes"])) for name, profile in profiles.items()}
    exact = {name: value for name, value in measured.items() if isinstance(value, float)}
    return {f"invariance.{name}": value for name, value in (means | exact).items()}
