"""Lists of pictures with their labels and environments: from a tree of folders, or from a table."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from invbench.datafiles.checksums import is_regular, read
from invbench.datafiles.picture_sources import PictureFiles
from invbench.datasets._pictures import LabelledPictures
from invbench.errors import UserError, brief, did_you_mean

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif")
)
"""Ends of the names of pictures' files, in lower case."""
MOST_PICTURES = 20_000_000
TABLES = (".csv", ".parquet", ".json")
COLUMNS = ("path", "label", "environment", "attribute", "nuisance", "split")
"""Roles of columns; a column has the name of its role unless a setting says otherwise."""


def from_folders(root: Path) -> LabelledPictures:
    """List the pictures of `root/environment/class/...`, in sorted order; files with other names are passed over.

    Raises:
        UserError: no such folder, or it has no pictures below two levels of folders.
    """
    paths: list[Path] = []
    names: list[tuple[str, str]] = []
    if not root.is_dir():
        raise UserError(f"dataset.root: there is no folder {root}{_near(root)}")
    for environment in _folders(root):
        for label in _folders(environment):
            pictures = _pictures(label)
            paths += pictures
            names += [(label.name, environment.name)] * len(pictures)
            if len(paths) > MOST_PICTURES:
                raise UserError(f"{root} has more than {MOST_PICTURES} pictures")
    if not paths:
        raise UserError(
            f"{root} has no pictures as environment/class/picture.jpg; of another layout give dataset.table, a list"
        )
    labels, environments = zip(*names, strict=True)
    for name in {*labels, *environments}:
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise UserError(f"the folder {name!r} has a name that is no UTF-8, which records need; rename it")
    return LabelledPictures(PictureFiles(paths), np.array(labels), np.array(environments))


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.is_dir() and not e.name.startswith("."))


def _pictures(folder: Path) -> list[Path]:
    """List the pictures in a folder and in those below it, sorted; links to folders are not followed."""
    pictures = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in files if not name.startswith(".")]
        pictures += [path for path in paths if path.suffix.lower() in SUFFIXES]
    return sorted(pictures)


def _near(path: Path) -> str:
    """Suggest a folder beside a path that is not there."""
    parent = path.parent
    if not parent.is_dir():
        return ""
    names = [folder.name for folder in _folders(parent)]
    return did_you_mean(path.name, names) if names else ""


def from_table(table: Path, root: Path, columns: Mapping[str, str]) -> LabelledPictures:
    """List the pictures of a table, in its order.

    Args:
        table: a csv or parquet file with a row a picture; or json, such rows or `{environment: {class: [paths]}}`.
        root: folder that paths are relative to.
        columns: names of the columns that have another name than their role.

    Raises:
        UserError: it cannot be read, has no such column, misses a value, or names a picture twice.
    """
    frame = _frame(table, columns)
    names = {role: columns.get(role, role) for role in COLUMNS}
    for role, name in names.items():
        if name not in frame.columns and (role in ("path", "label") or role in columns):
            raise UserError(f"the table {table} has no column {name}{did_you_mean(name, map(str, frame.columns))}")
    values: dict[str, Any] = {
        role: _column(table, frame, name) for role, name in names.items() if name in frame.columns
    }
    texts = pd.Series(values.pop("path").astype(str))
    texts = pd.Series([os.path.normpath(root / text) for text in texts])  # one picture under two names
    if (twice := texts.duplicated()).any():
        raise UserError(f"the table {table} names the picture {brief(texts[twice].iloc[0])} twice")
    return LabelledPictures(PictureFiles([Path(text) for text in texts]), **values)


def _column(table: Path, frame: pd.DataFrame, name: str) -> NDArray[Any]:
    """Return the values of a column, numbers or texts."""
    column = frame[name]
    if (missing := column.isna()).any():
        raise UserError(f"the table {table} has no {name} in row {int(missing.to_numpy().argmax()) + 1}")
    if pd.api.types.is_numeric_dtype(column):
        return column.to_numpy()
    return column.astype(str).to_numpy(dtype=np.str_)


def _frame(table: Path, columns: Mapping[str, str]) -> pd.DataFrame:
    if table.suffix not in TABLES:
        raise UserError(f"dataset.table is {table}; it must end in {', '.join(TABLES)}")
    if not is_regular(table):
        raise UserError(f"dataset.table: there is no file {table}")
    try:
        if table.suffix == ".parquet":
            frame = pd.read_parquet(table)
        elif table.suffix == ".csv":
            frame = pd.read_csv(table, low_memory=False, dtype={columns.get("path", "path"): str})
        else:
            frame = _from_json(json.loads(read(table)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise UserError(f"the table {table} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if frame.columns.has_duplicates:
        raise UserError(f"the table {table} has several columns named {frame.columns[frame.columns.duplicated()][0]}")
    if not 0 < len(frame) <= MOST_PICTURES:
        raise UserError(f"the table {table} has {len(frame)} rows; it may have 1 to {MOST_PICTURES}")
    return frame


def _from_json(content: Any) -> pd.DataFrame:
    """Make a table of rows, or of `{environment: {class: [paths]}}`."""
    if isinstance(content, list):
        return pd.DataFrame(content)
    rows = [
        (str(path), label, environment)
        for environment, classes in content.items()
        for label, paths in classes.items()
        for path in paths
    ]
    return pd.DataFrame(rows, columns=["path", "label", "environment"])
