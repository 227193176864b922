"""Content and checksums of files and arrays, read within bounds."""

import gzip
import hashlib
import io
import stat
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from invbench.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


def fingerprint(arrays: Iterable[tuple[str, "NDArray[Any]"]]) -> str:
    """Return the sha256 of every array's name, type, shape and bytes, in the order given."""
    import numpy as np  # this module is loaded where nothing heavy may be

    digest = hashlib.sha256()
    for name, value in arrays:
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.data)
    return digest.hexdigest()


MAX_UNPACKED = 1 << 30
"""Maximum number of bytes that one file is read or unpacked to; the longest of a release has 86 MB."""


BLOCK = 1 << 20
"""Number of bytes that are read at once for a checksum."""


def is_regular(path: Path) -> bool:
    """Tell whether a path is a file, no folder, pipe or device. Takes any name, however odd."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@contextmanager
def opened(path: Path) -> Iterator[io.BufferedIOBase]:
    """Open the content of a file as a stream, unpacked where the name ends in `.gz`.

    Raises:
        UserError: here or while it is read: no such file, a pipe or a device, or a damaged gzip archive.
    """
    try:
        if not is_regular(path):
            path.stat()  # says why there is none
            raise UserError(f"{path} cannot be read: it is a folder, a pipe or a device")
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield file
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def read(path: Path, limit: int = MAX_UNPACKED) -> bytes:
    """Read the unpacked content. Raises UserError as `opened` does, and where it has more than `limit` bytes."""
    with opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UserError(_too_long(path, limit))
    return content


def digest(path: Path, algorithm: str = "sha256", limit: int = MAX_UNPACKED) -> str:
    """Return the checksum of the unpacked content, without holding all of it in memory.

    Raises:
        UserError: as `opened` does, or an archive unpacks to more than `limit` bytes.
    """
    sum_, left = hashlib.new(algorithm), limit
    with opened(path) as file:
        while block := file.read(BLOCK):
            sum_.update(block)
            left -= len(block)
            if left < 0 and path.suffix == ".gz":
                raise UserError(_too_long(path, limit))
    return sum_.hexdigest()


def _too_long(path: Path, limit: int) -> str:
    return f"{path} has more than {limit} bytes, more than any official file; delete it and fetch it again"


def sha256(path: Path) -> str:
    """Return the sha256 of a file as it is, without holding all of it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp(path: Path) -> str:
    """Return the path, size and time of change of a file, which tell whether it has changed. Raises OSError."""
    status = path.stat()
    return f"{path.absolute()} {status.st_size} {status.st_mtime_ns}"


def verify(content: bytes, expected: str, path: Path) -> None:
    """Raise UserError unless the content has this sha256."""
    digest = hashlib.sha256(content).hexdigest()
    if digest != expected:
        raise UserError(
            f"{path} is not the official file: sha256 {digest[:16]}… of {len(content)} bytes, expected "
            f"{expected[:16]}…; delete it and fetch it again"
        )
