"""Paths that a user names: whether anything can be there at all."""

import os
from pathlib import Path

from invbench.errors import UserError, brief

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Bytes that Linux and macOS allow at most; the system's own refusal would come in the middle of the work."""


def why_impossible(path: Path) -> str:
    """Why no file system can have a path, or not all libraries can open it; empty where they can."""
    try:
        text = str(path).encode("utf-8")
    except UnicodeEncodeError:
        return f"{brief(str(path))} is no text in UTF-8; rename it, or make a link to it"
    if b"\0" in text or len(text) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in text.split(b"/")):
        return f"{brief(str(path))} is no path: a name has {LONGEST_NAME} bytes at most, all of it {LONGEST_PATH}"
    return ""


def path_of_variable(name: str) -> Path | None:
    """The path in a variable of the environment; None where it is not set, or empty.

    Raises:
        UserError: it is below the home of a user who does not exist, or not possible.
    """
    text = os.environ.get(name)
    if not text:
        return None
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{name}={brief(text)}: nobody's home is {Path(text).parts[0]}") from None
    if problem := why_impossible(path):
        raise UserError(f"{name}: {problem}")
    return path
