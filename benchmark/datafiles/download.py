"""Downloads of a release into the cache: checked, locked, continued where they broke off, unpacked without trust."""

import os
import queue
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests
from filelock import FileLock
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from invbench.console import announce, error_console
from invbench.datafiles.archives import MAX_UNPACKED, members
from invbench.datafiles.checksums import sha256
from invbench.datafiles.release import CACHE_VARIABLE, DATA_VARIABLE, Download, Release, SourceFile, cache_folder
from invbench.errors import UserError
from invbench.files import write_text

MIRROR_VARIABLE = "INVBENCH_MIRROR"
TIMEOUT = (10.0, 30.0)
"""Seconds to wait for a connection, and for the next bytes."""
BLOCK = 1 << 16
"""Number of bytes that are written together; a broken connection loses less."""
PATIENCE, LEAST_RATE = 60.0, 2000.0
"""Seconds that a download may take, and bytes for which it may take one more."""
MAX_DOWNLOAD = 1 << 30
"""Maximum number of bytes of a download whose size is not published."""
BROKEN = "the connection broke off; repeat the command to continue"
MAX_REASON = 200
"""Maximum number of characters that are shown of what a server says."""


def required(release: Release) -> dict[str, Path]:
    """Return the files of a release by their paths, fetched if they are not here.

    Raises:
        UserError: they are not here and cannot be fetched; the message tells the three ways to get them.
    """
    paths = release.locate()
    if paths:
        return paths
    try:
        fetch(release)
    except UserError as error:
        raise UserError(
            f"the files of {release.name} are not here and cannot be downloaded ({error}). "
            f"Three ways: set {DATA_VARIABLE} to a folder that has {release.files[0].path}{_others(release)}; "
            f"put the same into the cache, {cache_folder()}; or connect to the network and repeat the command"
        ) from None
    return release.locate()


def fetch(release: Release) -> bool:
    """Download what the cache lacks. Returns whether there was anything to do.

    Two processes that fetch one release wait for each other. A download that broke off is continued by the next call.

    Raises:
        UserError: no address could be reached, or what came is not what was published.
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
    """Return the sha256 that each file had when it was fetched, by its path."""
    file = _sums_file(release)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return {cache_folder() / name: sum_ for sum_, _, name in (line.partition("  ") for line in lines)}


def unpack(archive: Path, target: Path, folder: str, limit: int = MAX_UNPACKED) -> None:
    """Unpack one folder of a tar archive, plain files only; a bad archive leaves nothing behind.

    Raises:
        UserError: a damaged archive, one without the folder, or one that `archives.members` refuses.
    """
    temporary = target / f".unpacking.{uuid.uuid4().hex}"
    try:
        with members(archive, limit) as files:
            for member in files:
                path = temporary / member.name
                if path.is_relative_to(temporary / folder):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(member.content, file, BLOCK)
            if not (temporary / folder).is_dir():
                raise UserError(f"{archive} has no folder {folder}; it is not the official archive")
            for path in (temporary / folder).iterdir():
                (target / folder).mkdir(exist_ok=True)
                path.replace(target / folder / path.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _get(download: Download, cache: Path) -> None:
    """Fetch one file from the first address that has it."""
    mirror = os.environ.get(MIRROR_VARIABLE)
    urls = [*([f"{mirror.rstrip('/')}/{download.path}"] if mirror else []), *download.urls]
    path = cache / download.path
    path.parent.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("WARNING")
    reasons = []
    for url in urls:
        announce(f"fetching {url}")
        try:
            pooch.retrieve(url, download.hash, path.name, path.parent, downloader=_downloader(path, download.size))
            return
        except (requests.RequestException, ValueError, AssertionError) as error:  # urllib3's, of odd names of hosts
            reasons.append(f"{_host(url)}: {_reason(error)}")
    raise UserError(f"{download.path}: {'; '.join(reasons)}")


def _downloader(path: Path, size: int | None) -> Callable[[str, str, Any], None]:
    """Make a downloader for pooch that keeps an unfinished download as `.part` and asks for the rest the next time."""
    part = path.with_name(f"{path.name}.part")

    def get(url: str, output: str, _: Any) -> None:
        start = part.stat().st_size if part.exists() else 0
        if start > (size or MAX_DOWNLOAD):
            start = 0
        with closing(_Transfer(url, start)) as transfer:
            response = transfer.answer()
            # Where nothing is here yet, this is an error like any other: it does not say that all has come.
            if start and response.status_code == requests.codes.requested_range_not_satisfiable:
                if size not in (None, start):
                    part.unlink()
                    raise ValueError("it cannot be continued there; repeat the command to begin anew")
            else:
                response.raise_for_status()
                continued = response.status_code == requests.codes.partial_content
                _receive(transfer, part, start if continued else 0, size)
        part.replace(output)

    return get


class _Transfer:
    """Transfer of one file. A thread requests and reads it, so that the caller decides how long to wait.

    The time-outs of a connection alone would not do: a server that sends a byte every second never meets one.

    Args:
        start: number of bytes that are here already.
    """

    def __init__(self, url: str, start: int) -> None:
        self._url, self._start = url, start
        self._deadline = time.monotonic() + PATIENCE
        self._given_up = threading.Event()
        self._news: queue.Queue[Any] = queue.Queue(maxsize=16)
        threading.Thread(target=self._read, daemon=True).start()

    def answer(self) -> requests.Response:
        """Return the head of the response, which comes before the blocks."""
        response: requests.Response = self._next()
        length = response.headers.get("Content-Length", "")
        self.length = int(length[:20]) if length.isdecimal() else None
        return response

    def blocks(self) -> Iterator[bytes]:
        """Yield the body, BLOCK bytes at a time but for the last."""
        while block := self._next():
            self._deadline += len(block) / LEAST_RATE
            yield block

    def close(self) -> None:
        """Let the thread end, now or when the server sends something."""
        self._given_up.set()
        while not self._news.empty():
            self._news.get()

    def _next(self) -> Any:
        """Return the response, then blocks, then an empty one. Raises what the thread raised, or a time-out."""
        try:
            news = self._news.get(timeout=max(self._deadline - time.monotonic(), 0))
        except queue.Empty:
            raise requests.Timeout from None
        if isinstance(news, Exception):
            raise news
        return news

    def _read(self) -> None:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={self._start}-"} if self._start else {})
        try:
            with requests.get(self._url, stream=True, timeout=TIMEOUT, headers=headers) as response:
                if self._url.startswith("https:") and not response.url.startswith("https:"):
                    raise ValueError("it sends on to an address without https")
                # Reading would decode it, whatever that costs.
                if response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
                    raise ValueError("it sends the file encoded, which nobody asked for")
                self._news.put(response)
                for block in response.iter_content(BLOCK):
                    if self._given_up.is_set():
                        return
                    self._news.put(block)
            self._news.put(b"")
        except Exception as error:  # whatever it is, who waits raises it
            self._news.put(error)


def _receive(transfer: _Transfer, part: Path, start: int, size: int | None) -> None:
    """Write the body to the partial file behind its first `start` bytes."""
    limit = size or MAX_DOWNLOAD
    too_long = f"it is longer than {'the published' if size else 'the admitted'} {limit} bytes"
    total = size if transfer.length is None else start + transfer.length
    if total is not None and total > limit:
        part.unlink(missing_ok=True)  # a server may send the whole where the rest was asked for, again and again
        raise ValueError(too_long)
    with part.open("r+b" if start else "wb") as file, _bar(part.stem, total, start) as advance:
        file.seek(start)
        file.truncate()
        for block in transfer.blocks():
            if file.tell() + len(block) > limit:
                part.unlink()
                raise ValueError(too_long)
            file.write(block)
            advance(len(block))
        if transfer.length is None and size is not None and file.tell() < size:
            raise ValueError(BROKEN)


@contextmanager
def _bar(name: str, total: int | None, start: int) -> Iterator[Callable[[int], None]]:
    """Show progress by a bar on a terminal, by a line for every tenth in a log; yields a function that advances it."""
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
    """Tell whether all that a download yields is in the cache."""
    if not download.unpack:
        return SourceFile(download.path.removesuffix(".gz")).within(cache) is not None
    inside = [file for file in release.files if file.path.startswith(f"{download.unpack}/")]
    return all((cache / file.path).is_file() for file in inside)


def _sums_file(release: Release) -> Path:
    """Return the path of the checksums, a file in the format of `sha256sum -c`."""
    return cache_folder() / f"{release.name}.sha256"


def _sums(release: Release, cache: Path) -> Iterator[tuple[str, str]]:
    for file in release.files:
        path = file.within(cache)
        if path is not None:
            yield str(path.relative_to(cache)), sha256(path)


def _others(release: Release) -> str:
    more = sum(not file.optional for file in release.files) - 1
    return f" and the {more} other files of the release (or their .gz)" if more else ""


def _host(url: str) -> str:
    """Return the host of a URL; all of the text where it is none."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return url


def _reason(error: Exception) -> str:
    """Return why a URL failed, in text that is safe to show: a server may have written some of it."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        text = f"HTTP {error.response.status_code} {error.response.reason}"
    elif isinstance(error, requests.Timeout):
        text = "no answer in time, or too slow a one; repeat the command to continue"
    elif isinstance(error, requests.exceptions.ChunkedEncodingError):
        text = BROKEN
    elif isinstance(error, requests.ConnectionError):
        text = "no connection"
    else:
        text = "what came has not the published hash" if "does not match" in str(error) else str(error)
    return "".join(character if character.isprintable() else "?" for character in text)[:MAX_REASON]
