"""Fetching a release into the cache: checked, locked, continued where it broke off, unpacked without trust."""

import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from invbench.errors import UserError
from invbench.files import write_text
from invbench.progress import announce, error_console
from invbench.sources import CACHE_VARIABLE, DATA_VARIABLE, Download, Release, SourceFile, cache_folder, sha256

MIRROR_VARIABLE = "INVBENCH_MIRROR"
TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""
BLOCK = 1 << 16
"""Bytes that are written together; what a broken connection loses is less."""
MAX_UNPACKED = 4 << 30
"""Most bytes that an archive may unpack to."""


def required(release: Release) -> dict[str, Path]:
    """The files of a release by their paths, fetched if they are not here.

    Raises:
        UserError: they are not here and cannot be fetched; the message tells the three ways to get them.
    """
    found = release.found()
    if found:
        return found
    try:
        fetch(release)
    except UserError as error:
        raise UserError(
            f"the files of {release.name} are not here and cannot be downloaded ({error}). "
            f"Three ways: set {DATA_VARIABLE} to a folder that has {release.files[0].path}{_others(release)}; "
            f"put the same into the cache, {cache_folder()}; or connect to the network and repeat the command"
        ) from None
    return release.found()


def fetch(release: Release) -> bool:
    """Download what the cache lacks. Returns whether there was anything to do.

    Two fetchers of one release wait for each other. What is broken off is continued by the next call.

    Raises:
        UserError: no home could be reached, or what came is not what was published.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{release.name}.lock"):
            missing = [download for download in release.downloads if not _complete(release, download, cache)]
            for download in missing:
                _get(download, cache)
                if download.unpack:
                    archive = cache / download.path
                    unpack(archive, cache, download.unpack)
                    archive.unlink()
            if missing:
                write_text(_sums_file(release), "".join(f"{sum_}  {name}\n" for name, sum_ in _sums(release, cache)))
    except OSError as error:
        raise UserError(f"cannot write to {cache}: {error.strerror or error}; set {CACHE_VARIABLE}") from None
    return bool(missing)


def kept_sums(release: Release) -> dict[Path, str]:
    """The sha256 that each fetched file had when it came, by its path."""
    file = _sums_file(release)
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {cache_folder() / name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}


def unpack(archive: Path, target: Path, folder: str, limit: int = MAX_UNPACKED) -> None:
    """Take one folder out of a tar archive, plain files only; a bad archive leaves nothing behind.

    Raises:
        UserError: an absolute path, a `..`, a link or device, more than `limit` bytes, or a damaged archive.
    """
    temporary = target / f".unpacking.{uuid.uuid4().hex}"
    try:
        with tarfile.open(archive, "r|*") as members:
            unpacked = 0
            for member in members:
                unpacked += member.size
                if unpacked > limit:
                    raise UserError(f"{archive} is refused: it unpacks to more than {limit} bytes")
                _take(members, member, temporary, archive)
        if not (temporary / folder).is_dir():
            raise UserError(f"{archive} has no folder {folder}; it is not the official archive")
        for path in (temporary / folder).iterdir():
            (target / folder).mkdir(exist_ok=True)
            path.replace(target / folder / path.name)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UserError(f"{archive} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path, archive: Path) -> None:
    """Write one member below `target`."""
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or "\\" in member.name:
        raise UserError(f"{archive} is refused: its member {member.name!r} points out of the folder")
    if member.isdir():
        return
    source = members.extractfile(member) if member.isreg() else None
    if source is None:
        raise UserError(f"{archive} is refused: its member {member.name!r} is a link or device")
    place = target / path
    place.parent.mkdir(parents=True, exist_ok=True)
    with source, place.open("wb") as file:
        shutil.copyfileobj(source, file, BLOCK)


def _get(download: Download, cache: Path) -> None:
    """Fetch one file from the first home that has it."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    urls = [*([f"{mirror.rstrip('/')}/{download.path}"] if mirror else []), *download.urls]
    place = cache / download.path
    place.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    reasons = []
    for url in urls:
        announce(f"fetching {url}")
        try:
            pooch.retrieve(url, download.hash, place.name, place.parent, downloader=_downloader(place, download.size))
            return
        except (requests.RequestException, ValueError) as error:
            reasons.append(f"{urlsplit(url).netloc}: {_reason(error)}")
    raise UserError(f"{download.path}: {'; '.join(reasons)}")


def _downloader(place: Path, size: int | None) -> Callable[[str, str, Any], None]:
    """A downloader for pooch that keeps what it has got as `.part` and asks for the rest the next time."""
    part = place.with_name(f"{place.name}.part")

    def get(url: str, output: str, _: Any) -> None:
        start = part.stat().st_size if part.exists() else 0
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with requests.get(url, stream=True, timeout=TIMEOUT, headers=headers) as response:
            if response.status_code != requests.codes.requested_range_not_satisfiable:  # else all of it is here
                response.raise_for_status()
                continued = response.status_code == requests.codes.partial_content
                _receive(response, part, start if continued else 0, size)
        part.replace(output)

    return get


def _receive(response: requests.Response, part: Path, start: int, size: int | None) -> None:
    """Append the body to what is there up to `start`, or begin anew."""
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else size
    with part.open("r+b" if start else "wb") as file, _bar(part.stem, total, start) as advance:
        file.seek(start)
        file.truncate()
        for block in response.iter_content(BLOCK):
            file.write(block)
            advance(len(block))
            if size is not None and file.tell() > size:
                part.unlink()
                raise ValueError(f"it is longer than the published {size} bytes")


@contextmanager
def _bar(name: str, total: int | None, start: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, a line for every tenth in a log."""
    console = error_console()
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(name, total=total, completed=start)
            yield lambda count: progress.advance(task, count)
        return
    done, tenth = start, 10 * start // total if total else 0

    def advance(count: int) -> None:
        nonlocal done, tenth
        done += count
        if total and 10 * done // total > tenth:
            tenth = 10 * done // total
            announce(f"{name}  {done / 1e6:.1f} of {total / 1e6:.1f} MB")

    yield advance


def _complete(release: Release, download: Download, cache: Path) -> bool:
    """Whether all that a download yields is in the cache."""
    if not download.unpack:
        return SourceFile(download.path.removesuffix(".gz")).within(cache) is not None
    inside = [file for file in release.files if file.path.startswith(f"{download.unpack}/")]
    return all((cache / file.path).is_file() for file in inside)


def _sums_file(release: Release) -> Path:
    """In the format of `sha256sum`, so that `sha256sum -c` understands it too."""
    return cache_folder() / f"{release.name}.sha256"


def _sums(release: Release, cache: Path) -> Iterator[tuple[str, str]]:
    for file in release.files:
        path = file.within(cache)
        if path is not None:
            yield str(path.relative_to(cache)), sha256(path)


def _others(release: Release) -> str:
    more = sum(not file.optional for file in release.files) - 1
    return f" and the {more} other files of the release (or their .gz)" if more else ""


def _reason(error: Exception) -> str:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off; repeat the command to continue"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    text = str(error)
    return "what came has not the published hash" if "does not match" in text else text
