"""Writing so that a reader sees the old file or the new one, never half of one, whatever kills the writer."""

import contextlib
import errno
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the errors of a write for which there is no room, or no room for this user."""


@contextlib.contextmanager
def replacing(
    path: Path, allowed: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
) -> Iterator[Path]:
    """Yield a temporary name beside `path`; on success that file is fsynced and replaces `path`, else it is removed.

    Args:
        allowed: entered around the replacement alone, which does not happen where it raises.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield temporary
        temporary.chmod(0o644)  # some writers make files that only their owner can read
        _sync(temporary)
        with allowed():
            temporary.replace(path)
        with contextlib.suppress(OSError):  # not every file system can; the file is in its place all the same
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_remains(folder: Path, names: tuple[str, ...]) -> None:
    """Remove what writers of these files left in a folder when they were killed; none may be at work there."""
    for path in folder.glob(".*.*"):
        name, _, token = path.name[1:].rpartition(".")
        if name in names and len(token) == len(uuid.uuid4().hex):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
