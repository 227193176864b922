"""Checks of paths that a user names."""

import os
from pathlib import Path

from invbench.errors import UserError, brief

LONGEST_NAME, LONGEST_PATH = 255, 4095
"""Maximum number of bytes that Linux and macOS allow; the system would refuse longer ones in the middle of the work."""


def why_impossible(path: Path) -> str:
    """Return why no file system can have a path, or not all libraries can open it; empty where they can."""
    try:
        text = str(path).encode("utf-8")
    except UnicodeEncodeError:
        return f"{brief(str(path))} is no text in UTF-8; rename it, or make a link to it"
    if b"\0" in text or len(text) > LONGEST_PATH or any(len(part) > LONGEST_NAME for part in text.split(b"/")):
        return f"{brief(str(path))} is no path: a name has {LONGEST_NAME} bytes at most, all of it {LONGEST_PATH}"
    return ""


def path_of_variable(name: str) -> Path | None:
    """Return the path in an environment variable; None where it is not set, or empty.

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
