"""Untrusted tar archives, read member by member within limits that are checked before anything is unpacked."""

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from invbench.errors import UserError

MAX_HEADERS = 1 << 16
"""Maximum number of bytes between the contents of two members: tarfile holds a long name in memory, however long."""
MAX_UNPACKED = 4 << 30
"""Maximum number of bytes that an archive may unpack to."""
MAX_MEMBERS = 200_000
"""Maximum number of files and folders in an archive."""
MAX_DEPTH = 16
"""Maximum number of parts of a member's path."""
COMPRESSIONS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}
"""Decompressors by the first bytes of a file. Unlike tarfile's streams, they unpack no more than they are asked for."""


class Member(NamedTuple):
    """Plain file in an archive; its content must be read before the next member is asked for."""

    name: str
    size: int
    content: IO[bytes]


class _Metered:
    """Stream of which no more than `left` bytes can be read."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream = stream
        self.left = MAX_HEADERS

    def read(self, size: int) -> bytes:
        block = self._stream.read(min(size, self.left + 1))
        self.left -= len(block)
        if self.left < 0:
            raise tarfile.ReadError(f"a header is longer than {MAX_HEADERS} bytes")
        return block


@contextmanager
def members(archive: Path, limit: int = MAX_UNPACKED, most: int = MAX_MEMBERS) -> Iterator[Iterator[Member]]:
    """Yield the plain files of a tar archive, compressed or not.

    Args:
        limit: bytes that they may have together.
        most: how many files and folders there may be.

    Raises:
        UserError: too much of anything, a path that leads out of its folder, a link or device, or a damaged archive.
    """
    try:
        with _unpacked(archive) as stream:
            metered = _Metered(stream)
            with tarfile.open(fileobj=metered, mode="r|") as tar:  # type: ignore[call-overload]
                yield _checked(archive, tar, metered, limit, most)
    except (tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        reason = getattr(error, "strerror", None)  # by the system; else a decompressor or tarfile raised it
        text = f": {reason}" if reason else f", it is damaged ({error}); delete it and fetch it again"
        raise UserError(f"{archive} cannot be unpacked{text}") from None


def _unpacked(archive: Path) -> io.BufferedIOBase:
    with archive.open("rb") as file:
        start = file.read(max(map(len, COMPRESSIONS)))
    known = (opener for magic, opener in COMPRESSIONS.items() if start.startswith(magic))
    return next(known, lambda path: path.open("rb"))(archive)


def _checked(archive: Path, tar: tarfile.TarFile, metered: _Metered, limit: int, most: int) -> Iterator[Member]:
    """Yield the members, each checked before anything of it is read."""
    names: set[str] = set()
    left = limit
    while member := _next(tar):
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        left -= member.size
        reason = _refusal(member, names)
        names.add(member.name)
        if reason:
            raise UserError(f"{archive} is refused: its member {member.name[:80]!r} {reason}")
        if len(names) > most:
            raise UserError(f"{archive} is refused: it has more than {most} members")
        if left < 0:
            raise UserError(f"{archive} is refused: it unpacks to more than {limit} bytes")
        content = tar.extractfile(member) if member.isreg() else None
        metered.left = MAX_HEADERS + (member.size if content else 0)
        if content:
            yield Member(member.name, member.size, content)
    if any(tar.fileobj.read(MAX_HEADERS)):  # tarfile takes a damaged header for the end
        raise tarfile.ReadError("there is something behind its end")


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        return tar.next()
    except ValueError as error:  # tarfile takes what a header says of holes for numbers
        raise tarfile.ReadError(str(error)) from None


def _refusal(member: tarfile.TarInfo, names: set[str]) -> str:
    """Return what is wrong with a member that comes after those of these names; empty where nothing is."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name or "\0" in member.name:
        return "points out of the folder"
    if len(path.parts) > MAX_DEPTH:
        return f"lies in more than {MAX_DEPTH} folders"
    if not member.isdir() and (not member.isreg() or member.issparse()):
        return "is a link or device, or has holes"
    if member.name in names:
        return "is there twice"
    if member.size < 0:
        return "has a negative size"
    return ""
