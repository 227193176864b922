"""Servers that send too much, too little, too slowly or something else, and archives that do harm."""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import random
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from allocation import MEBIBYTE, peak
from fuzzing import damaged

from invbench.core.registry import DATASETS
from invbench.datafiles import download as fetching
from invbench.datafiles.archives import MAX_HEADERS, members
from invbench.datafiles.download import fetch, unpack
from invbench.datafiles.release import Download, Release, SourceFile, release
from invbench.errors import UserError

CONTENT = bytes(range(256)) * 1024
Talk = Callable[[socket.socket, str], None]
"""What a server does with a connection, once it knows the request."""


class Server:
    """Answers every request on a port of this machine by a function; keeps the requests."""

    def __init__(self) -> None:
        self.talk: Talk = lambda connection, request: None
        self.requests: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/data.bin"
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def release(self, size: int | None = None, content: bytes = CONTENT) -> Release:
        """Return a release of one file, published as `content`."""
        hash_ = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return Release("thing", "", "", (SourceFile("data.bin"),), (Download("data.bin", (self.url,), hash_, size),))

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = connection.recv(65536).decode()
            self.requests.append(request)
            self.talk(connection, request)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


def answer(head: str, body: bytes = b"") -> Talk:
    """Return an answer with a status line, headers, and a body."""
    lines = "\r\n".join(["HTTP/1.1 " + head.replace("\n", "\r\n"), "Connection: close", "", ""])
    return lambda connection, request: connection.sendall(lines.encode("latin-1") + body)


def endless(start: bytes, block: bytes, pause: float) -> Talk:
    """Return an answer with a start, and then the same block again and again."""

    def talk(connection: socket.socket, request: str) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(block)
            time.sleep(pause)

    return talk


def kept(tmp_path: Path) -> dict[str, int]:
    """Return the sizes of the files in the cache, by name."""
    files = (path for path in (tmp_path / "cache").iterdir() if not path.name.startswith("."))
    return {path.name: path.stat().st_size for path in files}


@pytest.mark.parametrize("size", [None, 300_000])
@pytest.mark.parametrize("head", ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.0 200 OK\r\nContent-Type: x\r\n\r\n"])
def test_a_body_without_end(
    server: Server, size: int | None, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "MAX_DOWNLOAD", 500_000)
    server.talk = endless(head.encode(), bytes(100_000), 0)
    with pytest.raises(UserError, match="longer than the (published 300000|admitted 500000) bytes"):
        fetch(server.release(size))
    assert kept(tmp_path) == {}


def test_a_body_that_is_said_to_be_too_long(server: Server, tmp_path: Path) -> None:
    server.talk = answer(f"200 OK\nContent-Length: {10**15}", b"x")
    with pytest.raises(UserError, match="longer than the admitted 1073741824 bytes"):
        fetch(server.release())
    assert kept(tmp_path) == {}


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 262144\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
    ],
)
def test_a_byte_at_a_time(server: Server, start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the body, between its parts, or in the headers: no byte is late, and all of it would never be here."""
    monkeypatch.setattr(fetching, "PATIENCE", 0.5)
    server.talk = endless(start, b"1", 0.05)
    with pytest.raises(UserError, match="no answer in time, or too slow a one"):
        fetch(server.release(len(CONTENT)))


def test_a_slow_server_has_time_for_each_byte(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "PATIENCE", 0.5)
    monkeypatch.setattr(fetching, "LEAST_RATE", 10_000)

    def talk(connection: socket.socket, request: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for start in range(0, len(CONTENT), fetching.BLOCK):
            connection.sendall(CONTENT[start : start + fetching.BLOCK])
            time.sleep(0.3)

    server.talk = talk
    assert fetch(server.release(len(CONTENT)))


def test_nothing_to_continue_is_no_whole_file(server: Server, tmp_path: Path) -> None:
    """416 means that all is here only where something is."""
    server.talk = answer("416 Range Not Satisfiable\nContent-Length: 0")
    with pytest.raises(UserError, match="HTTP 416"):
        fetch(server.release())
    part = tmp_path / "cache/data.bin.part"
    part.write_bytes(CONTENT[:1000])
    with pytest.raises(UserError, match="cannot be continued there; repeat the command"):
        fetch(server.release(len(CONTENT)))
    assert not part.exists()
    part.write_bytes(CONTENT)
    assert fetch(server.release(len(CONTENT))), "here it does"
    assert kept(tmp_path).keys() == {"data.bin", "thing.sha256"}


def test_a_part_that_is_too_long_begins_anew(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/data.bin.part").write_bytes(CONTENT + b"x")
    server.talk = answer(f"200 OK\nContent-Length: {len(CONTENT)}", CONTENT)
    assert fetch(server.release(len(CONTENT)))
    assert "Range" not in server.requests[0]


def test_a_body_that_ends_early_without_a_length_is_continued(server: Server, tmp_path: Path) -> None:
    server.talk = answer("200 OK", CONTENT[:100_000])
    with pytest.raises(UserError, match="the connection broke off; repeat the command to continue"):
        fetch(server.release(len(CONTENT)))
    assert kept(tmp_path) == {"data.bin.part": 100_000}
    rest = CONTENT[100_000:]
    server.talk = answer(f"206 Partial Content\nContent-Length: {len(rest)}", rest)
    assert fetch(server.release(len(CONTENT)))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("503 \x1b[31mred\x07\x9b\nContent-Length: 0", "HTTP 503"),
        (f"503 {'x' * 10_000}\nContent-Length: 0", "HTTP 503 xxx"),
        ("302 Found\nLocation: http://\x1b[2J\nContent-Length: 0", "127.0.0.1"),
        ("200 OK\nContent-Encoding: gzip", "sends the file encoded"),
        ("200 OK\nContent-Length: -5", "has not the published hash|connection broke off"),
        (f"200 OK\nContent-Length: {'9' * 5000}", "127.0.0.1"),
        ("204 No Content", "has not the published hash"),
        ("nonsense", "127.0.0.1"),
    ],
)
def test_what_servers_say(server: Server, head: str, message: str, tmp_path: Path) -> None:
    server.talk = answer(head)
    with pytest.raises(UserError, match=message) as error:
        fetch(server.release())
    text = str(error.value)
    assert text.isprintable()
    assert len(text) < 500
    assert "data.bin" not in kept(tmp_path)


def test_a_bomb_that_is_sent_encoded(server: Server) -> None:
    server.talk = answer("200 OK\nContent-Encoding: gzip", 100 * gzip.compress(bytes(MEBIBYTE)))
    assert peak(lambda: fetch(server.release()), "sends the file encoded") < 20 * MEBIBYTE


def test_releases_are_sent_by_https_with_a_sum_of_each_file() -> None:
    only_md5 = []
    for name in DATASETS.entries():
        if needed := DATASETS.literal(name, "release", ""):
            for download in release(needed).downloads:
                assert all(url.startswith("https://") for url in download.urls)
                only_md5 += [download.path] if download.hash.startswith("md5:") else []
    assert set(only_md5) == {"dsgdb9nsd.xyz.tar.bz2", "uncharacterized.txt"}, "figshare publishes nothing else"


# --- archives --------------------------------------------------------------------------------------------------------


def tar(*entries: tuple[tarfile.TarInfo | str, bytes], end: bytes = b"", form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar archive of these members."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for entry, content in entries:
            member = tarfile.TarInfo(entry) if isinstance(entry, str) else entry
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue() + end


def info(name: str, kind: bytes = tarfile.REGTYPE, **more: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type = kind
    for field, value in more.items():
        setattr(member, field, value)
    return member


def header(kind: bytes, size: int) -> bytes:
    """Return the header of a member that is said to have this many bytes."""
    return info("x", kind, size=size).tobuf(tarfile.GNU_FORMAT)


FILE = ("good/file", b"x")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(FILE, ("good/../../evil", b"x")), "points out of the folder"),
        (tar(FILE, ("/evil", b"x")), "points out of the folder"),
        (tar(FILE, ("..", b"x")), "points out of the folder"),
        (tar(FILE, ("good\\..\\evil", b"x")), "points out of the folder"),
        (tar(FILE, (info("good/x", pax_headers={"path": "../evil"}), b"x")), "points out of the folder"),
        (tar(FILE, (info("good/x", pax_headers={"path": "/evil"}), b"x")), "points out of the folder"),
        (tar(FILE, (info("good/x", pax_headers={"path": "good/\0"}), b"x")), "points out of the folder"),
        (tar(FILE, (info("good/link", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")), "is a link or device"),
        (tar(FILE, (info("good/link", tarfile.LNKTYPE, linkname="good/file"), b"")), "is a link or device"),
        (tar(FILE, (info("good/pipe", tarfile.FIFOTYPE), b"")), "is a link or device"),
        (tar(FILE, (info("good/disk", tarfile.BLKTYPE), b"")), "is a link or device"),
        (tar(FILE, (info("good/tty", tarfile.CHRTYPE), b"")), "is a link or device"),
        (tar(FILE, (info("x", pax_headers={"GNU.sparse.map": "0,1", "GNU.sparse.size": "9" * 15}), b"x")), "has holes"),
        (tar(FILE, (info("x", pax_headers={"GNU.sparse.map": "0,x", "GNU.sparse.size": "1"}), b"x")), "is damaged"),
        (tar(FILE, FILE), "is there twice"),
        (tar(FILE, ("good/file/x", b"x")), "cannot be unpacked"),
        (tar(("good", b"x")), "has no folder good"),
        (tar(("good", b"x"), FILE), "cannot be unpacked"),
        (tar(FILE, (f"good/{'x' * 300}", b"x")), "cannot be unpacked: File name too long"),
        (tar(FILE, ("good/" + "d/" * 1000 + "x", b"x")), "lies in more than 16 folders"),
        (tar(FILE, ("other/bomb", bytes(1_000_000))), "unpacks to more than 1000000 bytes"),
        (tar(FILE) + header(tarfile.REGTYPE, -1), "has no folder good|behind its end"),
        (tar(FILE)[:1024] + header(tarfile.REGTYPE, 2**60), "unpacks to more than 1000000 bytes"),
        (tar(FILE)[:1024] + header(tarfile.XHDTYPE, 2**33) + bytes(10**6), "a header is longer than"),
        (tar(FILE)[:1024] + header(tarfile.GNUTYPE_LONGNAME, 2**33) + bytes(10**6), "a header is longer than"),
        (tar(FILE)[:1024] + header(tarfile.GNUTYPE_LONGNAME, 0) * 1000, "a header is longer than"),
        pytest.param(
            tar(FILE)[:1024] + header(tarfile.XGLTYPE, 512) + b"x" * 512,
            "is damaged",
            marks=pytest.mark.skipif(sys.version_info < (3, 11, 7), reason="older releases of Python pass over it"),
        ),
        (tar(FILE)[:1024] + b"x" * 512 + tar(("good/other", b"x")), "something behind its end"),
        (tar(FILE, end=b"x" * 100), "something behind its end"),
        (tar(FILE)[:512], "is damaged"),
        (b"", "is damaged"),
        (b"x" * 10_000, "is damaged"),
    ],
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_bad_archives_leave_nothing(
    content: bytes, message: str, pack: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    target, archive = tmp_path / "target", tmp_path / "archive"
    target.mkdir()
    archive.write_bytes(pack(content))
    with pytest.raises(UserError, match=message) as error:
        unpack(archive, target, "good", limit=1_000_000)
    assert len(str(error.value)) < 500
    assert list(target.iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} <= {"target", "archive"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_good_archives(pack: Callable[[bytes], bytes], form: int, tmp_path: Path) -> None:
    entries: list[tuple[tarfile.TarInfo | str, bytes]] = [
        (info("good", tarfile.DIRTYPE), b""),
        ("good/first", b"1"),
        (f"good/{'long' * 20}", bytes(100_000)),
        ("good/inner/empty", b""),
        ("other/file", b"x"),
    ]
    archive = tmp_path / "archive"
    archive.write_bytes(pack(tar(*entries, form=form)))
    (tmp_path / "target").mkdir()
    unpack(archive, tmp_path / "target", "good")
    files = {
        str(p.relative_to(tmp_path / "target")): p.stat().st_size
        for p in (tmp_path / "target").rglob("*")
        if p.is_file()
    }
    assert files == {"good/first": 1, f"good/{'long' * 20}": 100_000, "good/inner/empty": 0}


@pytest.mark.parametrize(
    "content",
    [
        tar(FILE)[:1024] + header(tarfile.XHDTYPE, 2**33) + bytes(100 * MEBIBYTE),
        tar(FILE)[:1024] + header(tarfile.GNUTYPE_LONGNAME, 2**33) + bytes(100 * MEBIBYTE),
        bytes(100 * MEBIBYTE),
    ],
)
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lambda content: lzma.compress(content, preset=0)])
def test_headers_are_no_bombs(content: bytes, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Neither tarfile, which holds a long name, nor a decompressor, which makes much of little, takes much memory."""
    archive = tmp_path / "archive"
    archive.write_bytes(pack(content))
    message = "a header is longer than|no folder good"
    assert peak(lambda: unpack(archive, tmp_path, "good"), message) < 16 * MEBIBYTE


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.DIRTYPE])
def test_the_number_of_members_is_bounded(kind: bytes, tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar(*((info(f"good/{i}", kind), b"") for i in range(6))))
    with pytest.raises(UserError, match="has more than 5 members"), members(archive, most=5) as files:
        list(files)
    with members(archive, most=6) as files:
        assert len(list(files)) == (6 if kind == tarfile.REGTYPE else 0)


def test_the_largest_headers_fit(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    comment = "x" * (MAX_HEADERS // 2)
    archive.write_bytes(tar(*((info(f"good/{i}", pax_headers={"comment": comment}), b"x") for i in range(20))))
    with members(archive) as files:
        assert [file.content.read() for file in files] == [b"x"] * 20
    with members(archive) as files:
        assert len([file.name for file in files]) == 20, "without reading their content, too"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_damaged_archives(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    entries = [(f"good/{i}", bytes(600)) for i in range(3)]
    content, archive, target = pack(tar(*entries)), tmp_path / "archive", tmp_path / "target"
    target.mkdir()
    for seed in range(300):
        archive.write_bytes(damaged(content, random.Random(seed)))  # noqa: S311
        try:
            unpack(archive, target, "good")
        except UserError as error:
            assert len(str(error)) < 500
        assert {path.name for path in target.iterdir()} <= {"good"}


def test_a_full_disk_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(tar(FILE))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(UserError, match="cannot be unpacked: No space left on device$"):
        unpack(archive, tmp_path, "good")


@pytest.mark.parametrize("mirror", ["http://[", "nowhere", "file:///etc", "http://127.0.0.1:0"])
def test_a_mirror_that_is_none(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INVBENCH_MIRROR", mirror)
    with pytest.raises(UserError, match="^a.bin: "):
        fetch(Release("mine", "", "", (SourceFile("a.bin"),), (Download("a.bin", (), "sha256:0"),)))
