"""Datasets of Hugging Face's package `datasets`: loaded from disk, or by a name that its `load_dataset` takes."""

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from invbench.datafiles.release import at_home
from invbench.datasets._packages import files_below, made, named_in, package
from invbench.errors import UserError, brief, did_you_mean

SAVED = ("dataset_dict.json", "dataset_info.json")
"""Files of which a folder has one that `save_to_disk` has written."""
RENAMED = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Usual names of splits that have another one here."""


def huggingface() -> ModuleType:
    """Import Hugging Face's package `datasets`, and return it."""
    return package("datasets", "huggingface")


def loaded(path: str, arguments: Mapping[str, Any], splits: Mapping[str, str]) -> dict[str, Any]:
    """Load a dataset as one `datasets.Dataset` for each split.

    Args:
        path: a folder that `save_to_disk` has written, or what `load_dataset` takes, such as `imagefolder`.
        arguments: of `load_dataset`, such as `{data_dir: photos}`.
        splits: the dataset's name of each split that is used; empty takes all.

    Raises:
        UserError: it is not there, or has no such split.
    """
    datasets = huggingface()
    folder = at_home(path)
    if folder.is_file():
        raise UserError(
            "dataset.path is a file; of files it is csv, parquet, json or the like, with "
            f"'dataset.arguments={{data_files: {brief(path)}}}'"
        )
    offline = (
        "where there is no network, give a folder that `save_to_disk` has written, or csv, parquet or images with "
        "'dataset.arguments={data_files: ...}'"
    )
    if any((folder / name).is_file() for name in SAVED):
        content = made(datasets.load_from_disk, {"dataset_path": str(folder)}, offline)
    else:
        content = made(datasets.load_dataset, {"path": path} | dict(arguments), offline)
    parts = dict(content) if isinstance(content, datasets.DatasetDict) else {"train": content}
    if not all(isinstance(part, datasets.Dataset) for part in parts.values()):
        raise UserError(f"dataset.path: {brief(path)} is streamed; leave streaming out")
    for split, name in splits.items():
        if name not in parts:
            raise UserError(f"dataset.splits: {split} is {brief(name)}, which is no split{did_you_mean(name, parts)}")
    if len(set(splits.values())) < len(splits):
        raise UserError("dataset.splits takes one split twice, so that it would be tested on what it is trained on")
    chosen = {split: parts[name] for split, name in splits.items()}
    if not chosen:  # `validation` twice would leave one of them out
        renamed = [RENAMED.get(name, name) for name in parts]
        chosen = dict(zip(renamed if len(set(renamed)) == len(renamed) else parts, parts.values(), strict=True))
    names = [part.column_names for part in chosen.values()]
    if any(set(columns) != set(names[0]) for columns in names):
        raise UserError("the splits of the dataset have different columns; choose some by dataset.splits")
    if not sum(map(len, chosen.values())):
        raise UserError(f"dataset.path: {brief(path)} has no rows")
    return chosen


def local_files(path: str, arguments: Mapping[str, Any]) -> tuple[Path, ...]:
    """List the files of a dataset that is saved on disk or built of local files."""
    folder = at_home(path)
    saved = files_below(folder) if any((folder / name).is_file() for name in SAVED) else ()
    return (*saved, *files_below(*named_in(dict(arguments))))


def check_column(part: Any, name: str, setting: str) -> None:
    """Raise UserError with the nearest name where a dataset has no such column."""
    if name not in part.column_names:
        raise UserError(f"{setting}: the dataset has no column '{brief(name)}'{did_you_mean(name, part.column_names)}")
