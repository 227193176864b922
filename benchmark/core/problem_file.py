"""Files of problems: tensors in safetensors, with what they mean as JSON in the header."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from invbench.datafiles.checksums import is_regular
from invbench.datafiles.release import cache_folder
from invbench.errors import UserError
from invbench.files import replacing

FORMAT = "invbench problem 1"
ENTRIES: dict[str, type] = {
    "kind": str,
    "variant": str,
    "facts": dict,
    "classes": list,
    "environment_names": list,
    "metric": str,
    "source": dict,
    "task": list,
    "pixels": list,
    "provides": list,
    "smallest_environment": int,
    "fingerprint": str,
}
"""Entries of a description, with their types."""


def write(path: Path, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    """Write tensors with their description, replacing a file that is there. Raises UserError where that fails."""
    with named_errors(path), replacing(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "problem": json.dumps(described)})


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise UserError for what keeps a file of tensors from being written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = " ".join(str(getattr(error, "strerror", None) or error).split())[:200]
        raise UserError(f"{path} cannot be written: {why}") from None


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their description. Raises UserError where the file is damaged, or another one."""
    described = header(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name).clone() for name in names}, described  # else they change with the file
    except (SafetensorError, OSError, ValueError) as error:
        raise no_problem(path, error) from None


def header(path: Path) -> dict[str, Any]:
    """Read the description alone. Raises UserError as `read` does."""
    if not is_regular(path):
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        described: dict[str, Any] = json.loads(metadata["problem"])
        if not isinstance(described, dict) or missing(described):
            raise ValueError(f"its description has no {missing(described)}")
    except (SafetensorError, OSError, ValueError, KeyError, RecursionError) as error:
        raise no_problem(path, error) from None
    return described


def missing(described: Any) -> str:
    """Return the first entry that the description of a problem lacks, or has in another type; empty if it is whole."""
    there = described if isinstance(described, dict) else {}
    return next((name for name, kind in ENTRIES.items() if not isinstance(there.get(name), kind)), "")


def no_problem(path: Path, error: Exception) -> UserError:
    """Make the error that says that a file holds no problem."""
    why = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a problem that invbench has written ({why}); write it by Problem.save")


def path_in_cache(fingerprint: str) -> Path:
    """Return the path of a problem that was given in Python."""
    return cache_folder() / "problems" / f"{fingerprint}.safetensors"
