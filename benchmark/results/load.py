"""Load records and curves as pandas tables."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic_core import from_json, to_json

from invbench.errors import UserError, brief, did_you_mean
from invbench.files import replacing
from invbench.results.columns import as_text
from invbench.runs.curves import read_curves
from invbench.runs.folder import RunFolder, run_folders
from invbench.runs.record import Record, Unreadable, load_record
from invbench.runs.spec import RunSpec
from invbench.system.provenance import sources_hash
from invbench.terminal import visible

DATA = ("metric", "primary", "higher_is_better", "variant", "fingerprint", "environments")
"""Entries of a record's data that are columns."""
IDENTITY = ("method", "dataset", "backbone", "seed", "protocol")
INDEX = "index.parquet"
"""File in a folder of many runs with the rows of the finished ones, for fast loading; it may be deleted any time."""
INDEXED = 100
"""Rows that an index must lack before it is written anew."""
MOST_INDEXED = 2**29
"""Largest uncompressed size in bytes of an index that is read."""
COLUMNS = pa.schema({"path": pa.string(), "mark": pa.string(), "row": pa.binary()})
"""Columns of an index."""
UNREADABLE = "unreadable"
"""Status of a run whose files cannot be understood; only tables have it."""
INTERRUPTED = "interrupted"
"""Status of a run that was stopped, by Ctrl-C or a full disk, and can go on; only tables have it."""
NAMED = 5
"""Largest number of unreadable runs that warnings name."""
LISTED = 20
"""Largest number of values of a column that a message lists."""


def load_results(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Load every run at or below the given folders, finished or not, as a row each.

    A run whose record or specification cannot be understood has the status `unreadable`, and the reason as its message;
    where other runs are finished, a warning says so too. A run that was stopped and can go on is `interrupted`, one
    whose process died is `lost`.

    Columns, text unless something else is said: run_id, status, kind (of a failure), message, method, dataset,
    backbone, seed (Int64), protocol; each setting by its dotted name, e.g. `method.threshold` (of its own type); each
    metric, e.g. `test_accuracy` (float64, NaN unless the run is done); `best_validation.test_accuracy` and so on, at
    the step that was best on the validation set, and `best_validation.step`; `data.metric`, the one that tables show,
    `data.primary` and `data.higher_is_better`, what the task is judged by on any split, and which way;
    `data.environments`; `data.variant`, `data.fingerprint`; `data.constant.test_accuracy` and so on (float64), what a
    constant prediction scores; `inactive`, why the method never acted as set; `fused` (Int64), how many
    runs were trained together, 1 for a run alone; `cost.wall_seconds` and its parts
    `cost.training_seconds`, `cost.evaluation_seconds`, `cost.checkpoint_seconds`, `cost.invariance_seconds`;
    `cost.seconds_per_step`, of training alone, the first steps with all that is set up in them included; of runs
    trained together each has an equal share;
    `cost.peak_memory_bytes` (float64); `invariance.rotation` and so on (float64), the mean change of the prediction
    over the range of a generator, and `invariance.quarter_turns` and its like; `started`, `finished`; `path`.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings, out="loaded")
    >>> runs = invbench.load_results("loaded")
    >>> runs[["method", "dataset", "seed", "status", "trainer.steps"]].values.tolist()
    [['erm', 'spirals', 0, 'done', 2]]

    Raises:
        UserError: a folder does not exist.
    """
    rows = [row for path in _existing(paths) for row in _rows(path)]
    if any(row["status"] == "done" for row in rows):
        warn_left_out([str(row["message"]) for row in rows if row["status"] == UNREADABLE])
    return _frame(rows)


def meeting(runs: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Return the runs that meet all conditions.

    Args:
        runs: as `load_results` returns it.
        conditions: `COLUMN=VALUE` each, such as `dataset=spirals`; numbers are compared as such, and no value at all
            takes runs that have none.

    Raises:
        UserError: no such column, or no run is left.
    """
    columns = [str(name) for name in runs]
    for condition in conditions:
        name, equals, value = (part.strip() for part in condition.partition("="))
        if not equals:
            raise UserError(f"--where {brief(condition)}: write COLUMN=VALUE, such as dataset=spirals")
        if name not in columns:
            raise UserError(f"--where {brief(condition)}: no column '{brief(name)}'{did_you_mean(name, columns)}")
        texts = as_text(runs, [name])[name]
        met = texts.map(lambda text, value=value: _alike(text, value))
        if not met.any():
            known = sorted({brief(text) for text in texts if text})
            listed = did_you_mean(value, known) if len(known) <= LISTED else f"; there are {len(known)} values"
            raise UserError(
                f"--where {brief(condition)}: no run {'left ' * (condition != conditions[0])}has it{listed}"
            )
        runs = runs[met]
    return runs.reset_index(drop=True)


def _alike(text: str, value: str) -> bool:
    """Tell whether a value, as text, equals the one of a condition, as text, list of texts, number or boolean."""
    if text == value:
        return True
    if value.startswith("[") and value.endswith("]"):
        return text == ", ".join(part.strip(" '\"") for part in value[1:-1].split(","))
    try:
        return float(text) == float(value)
    except ValueError:
        return text in ("True", "False") and text.lower() == value


def load_made_by(paths: str | Path | Iterable[str | Path], code: str) -> pd.DataFrame:
    """Load the runs that a version of the code made, as `load_results` does.

    Of a run that was repeated with other code, the previous record counts too.

    Args:
        paths: folders with runs.
        code: first digits of a git commit, or of the hash of the sources that is in every record.
    """
    rows: list[dict[str, Any]] = []
    unreadable: list[str] = []
    for folder in folders(paths):
        for path in (folder.record, *folder.previous.values()):
            record = _record(path, unreadable)
            made_by = [] if record is None else [str(record.code.get(name)) for name in ("git_commit", "sources")]
            if record is not None and any(version.startswith(code) for version in made_by):
                rows.append(row_of_record(record) | _named(folder))
                break
    warn_left_out(unreadable)
    return _frame(rows)


def load_curves(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Load every measurement of every run as a row each, with the run's run_id, method, dataset and seed in front.

    Columns: step, epoch; the metrics; objective, its mean since the last row; of the last step `risk.<environment>`,
    penalty (with its weight) and gradient_norm; training_seconds, that the steps have taken so far;
    `coefficient.<input>` of a linear problem; `state.<name>`, the method's numbers, such as an adaptive rule's weights;
    `width.<generator>` and its like, what is learned besides the weights.

    >>> import invbench
    >>> settings = {"trainer.epochs": None, "trainer.steps": 4, "trainer.evaluate_every": 2}
    >>> record = invbench.run("erm", "spirals", settings=settings, out="measured")
    >>> invbench.load_curves("measured")["step"].tolist()
    [2, 4]

    Raises:
        UserError: a folder does not exist.
    """
    tables = []
    unreadable: list[str] = []
    for folder in folders(paths):
        before = len(unreadable)
        record = _record(folder.record, unreadable)
        spec = folder.read_spec() if record is None else record.spec
        if len(unreadable) > before or spec is None or not folder.curves.exists():
            continue
        curves = read_curves(folder.curves)
        if curves is None:
            unreadable.append(unclear(folder))
            continue
        for position, name in enumerate(("method", "dataset", "seed")):
            curves.insert(position, name, getattr(spec, name))
        curves.insert(0, "run_id", visible(folder.path.name))
        tables.append(curves)
    warn_left_out(unreadable)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def finished(paths: Iterable[str | Path]) -> list[tuple[RunFolder, Record]]:
    """Return every finished run at or below the paths; warnings name records that cannot be understood.

    Raises:
        UserError: no run is finished, or a folder does not exist.
    """
    unreadable: list[str] = []
    records = [(folder, record) for folder in folders(paths) if (record := _record(folder.record, unreadable))]
    done = [(folder, record) for folder, record in records if record.status == "done"]
    if not done:
        why = f" ({visible(unreadable[0])})" if unreadable else ""
        raise UserError(f"no finished run in {', '.join(map(str, paths))}{why}; `bench run` makes one")
    warn_left_out(unreadable)
    return done


def curves_of(runs: Sequence[RunFolder]) -> list[pd.DataFrame | None]:
    """Read the curves of each run, None where there are none; warnings name files that cannot be understood."""
    tables = [read_curves(folder.curves) for folder in runs]
    pairs = zip(runs, tables, strict=True)
    warn_left_out([unclear(folder) for folder, curves in pairs if curves is None and folder.curves.exists()])
    return tables


def unclear(folder: RunFolder) -> str:
    """Say in words that a run's curves cannot be read."""
    return f"{folder.curves} cannot be understood"


def warn_left_out(reasons: Sequence[str]) -> None:
    """Warn of runs that are left out: give the first reasons, and the number of further ones."""
    for reason in reasons[:NAMED]:
        warnings.warn(f"left out: {visible(reason)}", stacklevel=2)
    if len(reasons) > NAMED:
        warnings.warn(f"left out: {len(reasons) - NAMED} more runs, which cannot be understood either", stacklevel=2)


def folders(paths: str | Path | Iterable[str | Path]) -> list[RunFolder]:
    """Return every run at or below the paths. Raises UserError for a folder that does not exist."""
    return [folder for path in _existing(paths) for folder in run_folders(path)]


def _existing(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return one or several paths as a list. Raises UserError for a folder that does not exist."""
    listed = [paths] if isinstance(paths, str | Path) else list(paths)
    for path in listed:
        if not Path(path).is_dir():
            raise UserError(f"no results folder {path}; runs write to 'results' unless --out says otherwise")
    return [Path(path) for path in listed]


def _record(path: Path, unreadable: list[str]) -> Record | None:
    """Read the record in a file; where it cannot be understood, append the reason to the list."""
    try:
        return load_record(path)
    except Unreadable as error:
        unreadable.append(str(error))
        return None


def _rows(root: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for each run below a folder, from its index where that knows the run's present record."""
    known = _read_index(root)
    new: dict[str, tuple[str, bytes]] = {}
    kept: dict[str, tuple[str, bytes]] = {}
    for folder in run_folders(root):
        name, mark = folder.path.relative_to(root).as_posix(), _mark(folder)
        if mark and known.get(name, ("",))[0] == mark:
            kept[name] = known[name]
            row = from_json(known[name][1])
        else:
            row = _row(folder)
            if row["status"] in ("done", "failed"):
                new[name] = mark, to_json(row)
        yield row | _named(folder)
    if len(new) >= INDEXED:
        _write_index(root, kept | new)


def _row(folder: RunFolder) -> dict[str, Any]:
    """Read the row of a run from its own files."""
    try:
        if visible(folder.path.name) != folder.path.name:
            raise Unreadable(f"{folder.path} is no name that a run has")
        record = folder.load_record()
        return _row_of_spec(folder.load_spec(), _open_status(folder)) if record is None else row_of_record(record)
    except Unreadable as error:
        return _row_of_spec(folder.read_spec(), UNREADABLE) | {"message": visible(error)}


def _open_status(folder: RunFolder) -> str:
    """Return the status of a run without a record; one that was stopped, unlike one that died, gave its lease up."""
    status = folder.status()
    return INTERRUPTED if status == "lost" and not folder.lease_file.exists() else status


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Make a table of rows."""
    paths = [row["path"] for row in rows]  # objects, since they need not be UTF-8, as texts of pandas must be
    table = pd.DataFrame([row | {"path": ""} for row in rows])
    if rows:
        integers = [name for name in ("seed", "fused") if name in table]
        table[integers] = table[integers].astype("Int64")
        table["path"] = pd.Series(paths, dtype=object)
    return table


def _named(folder: RunFolder) -> dict[str, str]:
    """Return the columns that depend on where a run lies."""
    return {"run_id": visible(folder.path.name), "path": str(folder.path)}


def _mark(folder: RunFolder) -> str:
    """Return a text that changes whenever the record does; empty where there is no record."""
    try:
        status = folder.record.stat()
    except OSError:
        return ""
    return f"{status.st_mtime_ns} {status.st_size} {status.st_ino}"


def _read_index(root: Path) -> dict[str, tuple[str, bytes]]:
    """Read the mark and the row, as JSON, of each run in an index, by its path below the folder.

    Empty where there is no index, or where it is damaged, too large, or was written by other code.
    """
    path = root / INDEX
    if not path.is_file():  # of a folder of this name, pyarrow would read all files
        return {}
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
            if file.schema_arrow != COLUMNS or sum(group.total_byte_size for group in groups) > MOST_INDEXED:
                return {}
            table = file.read()
        columns = [table.column(name).to_pylist() for name in COLUMNS.names]
        if (table.schema.metadata or {}).get(b"checksum") != _checksum(columns):
            return {}
    except (OSError, ValueError, pa.ArrowException):
        return {}
    return {path: (mark, row) for path, mark, row in zip(*columns, strict=True)}


def _checksum(columns: Sequence[Sequence[Any]]) -> bytes:
    """Hash the columns of an index and the sources of the code that made them."""
    return hashlib.sha256(to_json([sources_hash(), *columns])).hexdigest().encode()


def _write_index(root: Path, rows: dict[str, tuple[str, bytes]]) -> None:
    """Write marks and rows as the index of a folder, where that can be written."""
    columns = [list(rows), *map(list, zip(*rows.values(), strict=True))]
    table = pa.table(columns, schema=COLUMNS.with_metadata({"checksum": _checksum(columns)}))
    try:
        with replacing(root / INDEX) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError:
        return  # a folder without write permission is read without an index


def _row_of_spec(spec: RunSpec | None, status: str) -> dict[str, Any]:
    """Make the row of a run without a record."""
    row = {"run_id": None, "status": status, "kind": None, "message": None}
    row |= {name: getattr(spec, name, None) for name in IDENTITY}
    return row if spec is None else row | spec.flat()


def row_of_record(record: Record) -> dict[str, Any]:
    """Make the row of a run with a record."""
    row = _row_of_spec(record.spec, record.status) | {"kind": record.kind, "message": record.message}
    row |= record.metrics
    validation = {} if record.best_validation is None else {"validation": record.best_validation}
    for rule, best in (validation | record.best_by).items():
        row |= {f"best_{rule}.step": float(best.step)}
        row |= {f"best_{rule}.{name}": value for name, value in best.metrics.items()}
    row |= _invariance(record.invariance)
    row |= {f"data.{name}": record.data[name] for name in DATA if name in record.data}
    row |= {f"data.constant.{name}": value for name, value in record.data.get("constant", {}).items()}
    row |= {f"cost.{name}": value for name, value in record.cost.items()}
    row |= {"fused": record.engine.get("fused", 1)} if record.status == "done" else {}
    row |= {"inactive": record.engine["inactive"]} if record.engine.get("inactive") else {}
    return row | {"started": record.started, "finished": record.finished}


def _invariance(measured: dict[str, Any]) -> dict[str, float]:
    """Return the columns of an invariance profile: mean changes by generator, and exact ones."""
    profiles = measured.get("generators", {})
    means = {name: float(np.mean(profile["changes"])) for name, profile in profiles.items()}
    exact = {name: value for name, value in measured.items() if isinstance(value, float)}
    return {f"invariance.{name}": value for name, value in (means | exact).items()}
