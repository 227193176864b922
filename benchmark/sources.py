"""Files of official releases: where they may lie, and whether they are what they should be."""

import gzip
import hashlib
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from invbench.errors import UserError

DATA_VARIABLE = "INVBENCH_DATA"
CACHE_VARIABLE = "INVBENCH_CACHE"


@dataclass(frozen=True)
class SourceFile:
    """One file of a release.

    Args:
        path: where it lies below a data folder; the same path with `.gz` is accepted too.
        sha256: of the uncompressed file.
        size: in bytes, uncompressed.
        url: its public home.
    """

    path: str
    sha256: str
    size: int
    url: str


def data_folders() -> list[Path]:
    """Folders that are searched, in order: the one INVBENCH_DATA names, then the cache."""
    given = os.environ.get(DATA_VARIABLE)
    return [*([Path(given).expanduser()] if given else []), cache_folder()]


def cache_folder() -> Path:
    """Where downloads are kept: INVBENCH_CACHE, else the platform's cache folder."""
    given = os.environ.get(CACHE_VARIABLE)
    return Path(given).expanduser() if given else user_cache_path("invbench")


def locate(source: SourceFile) -> Path | None:
    """The first existing copy of a file, plain or gzipped."""
    for folder in data_folders():
        for path in (folder / source.path, folder / f"{source.path}.gz"):
            if path.is_file():
                return path
    return None


def read(path: Path) -> bytes:
    """The uncompressed content. Raises UserError when a gzip archive is damaged or the file cannot be read."""
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); delete it and fetch it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def verify(content: bytes, source: SourceFile, path: Path) -> None:
    """Raise UserError unless the content has the release's size and sha256."""
    found = hashlib.sha256(content).hexdigest()
    if found != source.sha256:
        raise UserError(
            f"{path} is not the official file: sha256 {found[:16]}… of {len(content)} bytes, expected "
            f"{source.sha256[:16]}… of {source.size}; delete it and fetch it again"
        )
