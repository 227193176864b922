"""Files of problems: tensors in safetensors, with what they mean as JSON in the header."""

import json
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


def write(path: Path, tensors: dict[str, Tensor], described: dict[str, Any]) -> None:
    """Write tensors with their description, replacing a file that is there."""
    with replacing(path) as temporary:
        save_file(tensors, temporary, {"format": FORMAT, "problem": json.dumps(described)})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read tensors and their description. Raises UserError where the file is damaged, or another one."""
    described = header(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, described  # noqa: SIM118, it is no mapping
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
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise no_problem(path, error) from None
    return described


def no_problem(path: Path, error: Exception) -> UserError:
    """Make the error that says that a file holds no problem."""
    why = " ".join(str(error).split())[:200]
    return UserError(f"{path} is not a problem that invbench has written ({why}); write it by Problem.save")


def path_in_cache(fingerprint: str) -> Path:
    """Return the path of a problem that was given in Python."""
    return cache_folder() / "problems" / f"{fingerprint}.safetensors"
