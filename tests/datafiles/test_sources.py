"""Fetching against a local server that misbehaves, unpacking of archives that do, and what is kept in the cache."""

import contextlib
import hashlib
import http.server
import io
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from standins import archive_of, write_cifar, write_mnist

from invbench.cli.listing import availability
from invbench.core.data import Dataset
from invbench.core.registry import DATASETS
from invbench.datafiles.cache import cached_arrays
from invbench.datafiles.download import BLOCK, fetch, kept_sums, required, unpack
from invbench.datafiles.release import Download, Release, SourceFile, release
from invbench.errors import UserError

CONTENT = bytes(range(256)) * 4096  # 1 MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; `mode` says how badly. Keeps the ranges that were asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.mode = "good"
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        content = self.server.files.get(self.path.lstrip("/"))
        if self.server.mode == "forbidden" or content is None:
            self.send_error(403 if content is not None else 404)
            return
        if self.server.mode == "stalled":
            time.sleep(3)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.mode != "no ranges" else 0
        if start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = start + 300_000 if self.server.mode == "truncated" else len(content)
        pause = 0.05 if self.server.mode == "slow" else 0
        with contextlib.suppress(ConnectionError):
            for first in range(start, end, 50_000):
                self.wfile.write(content[first : min(first + 50_000, end)])
                time.sleep(pause)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def release_of(server: Server, content: bytes = CONTENT, name: str = "thing/data.bin", unpack: str = "") -> Release:
    """Publish a file on a server and return its release."""
    server.files[name] = content
    hash_ = f"sha256:{hashlib.sha256(content).hexdigest()}"
    file = SourceFile(f"{unpack}/inner.bin" if unpack else name)
    return Release(
        "thing", "free", "nobody", (file,), (Download(name, (f"{server.url}/{name}",), hash_, None, unpack),)
    )


def fetching(thing: Release) -> str:
    """Return a program that fetches the release."""
    lines = ["from invbench.datafiles.download import fetch", "from invbench.datafiles.release import *"]
    return "\n".join([*lines, f"print(fetch({thing!r}))"])


# --- fetching --------------------------------------------------------------------------------------------------------


def test_fetch_and_again(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    assert thing.state == "not here"
    assert fetch(thing)
    assert (tmp_path / "cache/thing/data.bin").read_bytes() == CONTENT
    assert thing.state == "here"
    assert kept_sums(thing) == {tmp_path / "cache/thing/data.bin": hashlib.sha256(CONTENT).hexdigest()}
    assert not fetch(thing)
    assert len(server.ranges) == 1, "what is here is not asked for again"
    assert required(thing) == {"thing/data.bin": tmp_path / "cache/thing/data.bin"}


def test_a_broken_connection_is_continued_by_the_next_call(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    server.mode = "truncated"
    for _ in range(2):
        with pytest.raises(UserError, match="the connection broke off; repeat the command to continue"):
            fetch(thing)
        assert thing.state == "not here"
    server.mode = "good"
    assert fetch(thing)
    kept = 4 * BLOCK  # of each 300,000 bytes
    assert server.ranges == [None, f"bytes={kept}-", f"bytes={2 * kept}-"]
    assert (tmp_path / "cache/thing/data.bin").read_bytes() == CONTENT
    assert sorted(p.name for p in (tmp_path / "cache/thing").iterdir()) == ["data.bin"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    server.mode = "truncated"
    with pytest.raises(UserError):
        fetch(thing)
    server.mode = "no ranges"
    assert fetch(thing)
    assert (tmp_path / "cache/thing/data.bin").read_bytes() == CONTENT


def test_a_part_that_is_whole_already(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    part = tmp_path / "cache/thing/data.bin.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(CONTENT)
    assert fetch(thing)
    assert not part.exists()


def test_a_wrong_file_is_refused_and_not_kept(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    server.files["thing/data.bin"] = CONTENT[::-1]
    with pytest.raises(UserError, match="has not the published hash"):
        fetch(thing)
    assert list((tmp_path / "cache/thing").iterdir()) == []
    server.files["thing/data.bin"] = CONTENT
    assert fetch(thing)


def test_a_file_that_does_not_end_is_cut_off(server: Server, tmp_path: Path) -> None:
    whole = release_of(server)
    (download,) = whole.downloads
    thing = Release("thing", "", "", whole.files, (Download(download.path, download.urls, download.hash, 1000),))
    with pytest.raises(UserError, match="longer than the published 1000 bytes"):
        fetch(thing)
    assert list((tmp_path / "cache/thing").iterdir()) == []


@pytest.mark.parametrize(("mode", "message"), [("forbidden", "HTTP 403 Forbidden"), ("stalled", "no answer in time")])
def test_servers_that_refuse(server: Server, mode: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("invbench.datafiles.download.TIMEOUT", (1.0, 0.5))
    thing = release_of(server)
    server.mode = mode
    with pytest.raises(UserError, match=message):
        fetch(thing)
    with pytest.raises(UserError) as error:
        required(thing)
    text = str(error.value)
    assert "\n" not in text
    for way in ("set INVBENCH_DATA to a folder that has thing/data.bin", "put the same into the cache", "connect to"):
        assert way in text


def test_the_second_home_helps(server: Server) -> None:
    (download,) = release_of(server).downloads
    urls = ("http://127.0.0.1:9/nothing", *download.urls)
    thing = Release("thing", "", "", (SourceFile(download.path),), (Download(download.path, urls, download.hash),))
    assert fetch(thing)


def test_a_mirror_comes_first(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real release of MNIST from a mirror that has something else: nothing of it is believed."""
    write_mnist(tmp_path / "raw")
    server.files = {f"MNIST/raw/{path.name}": path.read_bytes() for path in (tmp_path / "raw").iterdir()}
    monkeypatch.setenv("INVBENCH_MIRROR", f"{server.url}/")
    with pytest.raises(UserError, match="127.0.0.1:.*has not the published hash; ossci"):
        fetch(release("mnist"))


def test_two_processes_fetch_once(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    command = [sys.executable, "-W", "error", "-c", fetching(thing)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ), text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=60)[0].strip() for process in both) == ["False", "True"]
    assert len(server.ranges) == 1


def test_a_killed_fetcher_is_continued(server: Server, tmp_path: Path) -> None:
    thing = release_of(server)
    server.mode = "slow"
    process = subprocess.Popen([sys.executable, "-c", fetching(thing)], stderr=subprocess.DEVNULL)
    part = tmp_path / "cache/thing/data.bin.part"
    while not (part.exists() and part.stat().st_size >= 2 * BLOCK) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait(60) == -signal.SIGKILL
    server.mode = "good"
    assert fetch(thing)
    assert int(str(server.ranges[1]).removeprefix("bytes=").removesuffix("-")) >= 2 * BLOCK
    assert (tmp_path / "cache/thing/data.bin").read_bytes() == CONTENT


def test_a_third_party_brings_its_release(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = release_of(server)
    monkeypatch.setitem(DATASETS._registered, "theirs", type("Theirs", (Dataset,), {"release": thing}))
    assert availability("theirs") == "not here"
    fetch(thing)
    assert availability("theirs") == "here"


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INVBENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write to .*file.*set INVBENCH_CACHE"):
        fetch(release_of(server))


def test_a_fetched_archive_is_unpacked_and_verified(server: Server, tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.bz2", [(tarfile.TarInfo("inside/inner.bin"), b"abc")]).read_bytes()
    thing = release_of(server, archive, "a.tar.bz2", unpack="inside")
    assert fetch(thing)
    assert (tmp_path / "cache/inside/inner.bin").read_bytes() == b"abc"
    assert sorted(p.name for p in (tmp_path / "cache").iterdir() if p.name[0] != ".") == ["inside", "thing.sha256"]
    assert not fetch(thing)


# --- archives nobody should trust ------------------------------------------------------------------------------------


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [(tarfile.TarInfo("good/first"), b"x"), (tarfile.TarInfo("good/../../evil"), b"x")],
            "points out of the folder",
        ),
        ([(tarfile.TarInfo("/tmp/evil"), b"x")], "points out of the folder"),  # noqa: S108
        ([(tarfile.TarInfo("good\\..\\evil"), b"x")], "points out of the folder"),
        ([(link("good/link", tarfile.SYMTYPE, "/etc/passwd"), b"")], "is a link or device"),
        ([(link("good/link", tarfile.LNKTYPE, "good/other"), b"")], "is a link or device"),
        ([(link("good/pipe", tarfile.FIFOTYPE, ""), b"")], "is a link or device"),
        ([(tarfile.TarInfo("good/bomb"), bytes(2_000_000))], "unpacks to more than 1000000 bytes"),
        ([(tarfile.TarInfo(f"good/{i}"), bytes(200_000)) for i in range(6)], "unpacks to more than 1000000 bytes"),
        ([(tarfile.TarInfo("other/file"), b"x")], "has no folder good"),
    ],
)
def test_bad_archives_leave_nothing(members: list[tuple[tarfile.TarInfo, bytes]], message: str, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    archive = archive_of(tmp_path / "bad.tar.bz2", members)
    with pytest.raises(UserError, match=message):
        unpack(archive, target, "good", limit=1_000_000)
    assert list(target.iterdir()) == []
    assert not (tmp_path / "evil").exists()


def test_a_truncated_archive(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "a.tar.bz2", [(tarfile.TarInfo("good/file"), os.urandom(100_000))])
    archive.write_bytes(archive.read_bytes()[:50_000])
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "target", "good")
    assert not (tmp_path / "target").exists()


# --- folders ---------------------------------------------------------------------------------------------------------


def test_folders_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of CIFAR-10 in the data folder is not completed from the cache: those could be the same images."""
    write_cifar(tmp_path / "data/cifar-10-batches-bin", batches=1)
    write_cifar(tmp_path / "cache/cifar-10-batches-bin", batches=5)
    monkeypatch.setenv("INVBENCH_DATA", str(tmp_path / "data"))
    cifar = release("cifar10")
    assert {path.parent for path in cifar.locate().values()} == {tmp_path / "data/cifar-10-batches-bin"}
    assert cifar.state == "here without 4 of 6 files"
    monkeypatch.delenv("INVBENCH_DATA")
    assert cifar.state == "here"


def test_every_release_is_described() -> None:
    for name in DATASETS.entries():
        needed = DATASETS.literal(name, "release", "")
        if needed:
            files = release(needed)
            assert files.licence
            assert files.citation
            for download in files.downloads:
                assert download.hash.partition(":")[0] in ("sha256", "md5")
                assert all(url.startswith("http") for url in download.urls)


# --- prepared data ---------------------------------------------------------------------------------------------------


def test_prepared_data_are_made_once_per_dependency(tmp_path: Path) -> None:
    made = []

    def make() -> dict[str, NDArray[Any]]:
        made.append(1)
        return {"a": np.arange(5), "b": np.eye(2, dtype=np.float32)}

    first, second = cached_arrays("x", ["1"], make), cached_arrays("x", ["1"], make)
    assert len(made) == 1
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])
    cached_arrays("x", ["2"], make)
    assert len(made) == 2
    for file in (tmp_path / "cache/prepared").glob("x-*.npz"):
        file.write_bytes(file.read_bytes()[:-20])
    np.testing.assert_array_equal(cached_arrays("x", ["1"], make)["a"], np.arange(5))
    assert len(made) == 3, "a damaged file is made anew"
    buffer = io.BytesIO()
    np.savez(buffer, a=np.arange(6), b=np.eye(2), fingerprint=np.array("0" * 64))
    for file in (tmp_path / "cache/prepared").glob("x-*.npz"):
        file.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(cached_arrays("x", ["1"], make)["a"], np.arange(5))


def test_without_a_cache_it_is_made_every_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("INVBENCH_CACHE", str(tmp_path / "file"))
    assert cached_arrays("x", [], lambda: {"a": np.zeros(1)})["a"] == 0
