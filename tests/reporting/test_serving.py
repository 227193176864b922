"""The served page, over real sockets: who is answered and how, and visitors that are slow, rude or gone."""

import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from invbench.errors import UserError
from invbench.reporting.page import published_text
from invbench.reporting.serving import HEAD_BYTES, VISITORS, Server

PATIENCE = 60.0
"""Longest wait of a test; none needs a second on an idle machine."""
HELLO = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


@contextmanager
def served(make: Callable[[], str], explain: Callable[[str], str] = str) -> Iterator[Server]:
    """Run a server in a thread."""
    with Server(make, 0, explain) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=PATIENCE)


def answer(server: Server, request: bytes) -> tuple[int, bytes]:
    """Return the status and body of an answer; status 0 where the connection is only closed."""
    with connected(server) as client:
        client.sendall(request)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    # An answer in an old protocol has no head.
    status = re.match(rb"HTTP/1\.\d (\d+) ", head) or re.search(rb"Error code: (\d+)", received)
    return int(status[1]) if status else 0, body


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(scope="module")
def page() -> Iterator[Server]:
    with served(lambda: "the page") as server:
        yield server


@pytest.mark.parametrize("name", ["127.0.0.1", "127.0.0.1:8000", "localhost", "LocalHost:1", "[::1]", "[::1]:8000"])
def test_names_of_this_machine(page: Server, name: str) -> None:
    assert answer(page, f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()) == (200, b"the page")


@pytest.mark.parametrize(
    "hosts",
    [
        [], ["localhost", "localhost"], ["localhost", "evil.example"], ["evil.example"], [""], ["localhost:"],
        ["localhost:port"], ["localhost:8000:8000"], ["127.0.0.1.evil.example"], ["user@localhost"], ["::1"],
        ["localhost, evil.example"], ["[::1"], ["127.0.0.1:123456"], ["localhost/"],
    ],
)  # fmt: skip
def test_other_names(page: Server, hosts: list[str]) -> None:
    headers = "".join(f"Host: {host}\r\n" for host in hosts)
    status, body = answer(page, f"GET / HTTP/1.1\r\n{headers}\r\n".encode())
    assert status == (403 if len(hosts) == 1 else 400)
    assert b"the page" not in body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n", 200),
        (b"HEAD /x HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"HEAD / HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /? HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        *((b"%s / HTTP/1.1\r\nHost: localhost\r\n\r\n" % m, 501) for m in (b"POST", b"PUT", b"DELETE", b"TRACE")),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/1.1 x\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"x" * HEAD_BYTES, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * HEAD_BYTES, 431),
    ],
)
def test_requests(page: Server, request_: bytes, status: int) -> None:
    """Another method, path or version, and one that never ends."""
    answered, body = answer(page, request_[: HEAD_BYTES + 1])
    assert answered == status
    assert b"the page" not in body
    if request_.startswith(b"HEAD"):
        assert body == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost:", b"HEAD / HTTP/1.0\r\nHost: a\r\n"]),
    st.sampled_from([b"", b"\n\n", b"\r\n\r\n"]),
)
def test_noise(page: Server, capsys: pytest.CaptureFixture[str], noise: bytes, begin: bytes, end: bytes) -> None:
    """Answered or not, it is never told the page, and nothing is said of it here."""
    with connected(page) as client:
        client.sendall(begin + noise + end)
        client.shutdown(socket.SHUT_WR)
        received = bytearray()
        with suppress(ConnectionError):  # what came after the head was not read
            while part := client.recv(65536):
                received += part
    assert b"the page" not in received
    assert capsys.readouterr().err == ""


def test_pages_are_made_one_at_a_time_and_shared() -> None:
    inside, most, made = 0, 0, 0

    def make() -> str:
        nonlocal inside, most, made
        inside += 1
        most, made = max(most, inside), made + 1
        time.sleep(0.2)
        inside -= 1
        return "x" * 100_000

    with served(make) as server, ThreadPoolExecutor(12) as pool:
        answers = set(pool.map(lambda _: answer(server, HELLO), range(12)))
        assert answers == {(200, b"x" * 100_000)}
        assert most == 1
        before = made
        answer(server, HELLO)
        assert made == before + 1, "who asks later gets what is there by then"
    assert before < 12


def test_an_error_is_shared_with_nobody(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """And its text stays in the body: it ends no line of the head, and tells no folder."""
    pages: Iterator[str | UserError] = iter(
        ["first", UserError(f"no run in\r\nX-Injected: 1 — {tmp_path}/some/results\x1b[2J <b>"), "third"]
    )

    def make() -> str:
        page = next(pages)
        if isinstance(page, UserError):
            raise page
        return page

    with served(make, published_text([tmp_path / "some" / "results"])) as server:
        assert answer(server, HELLO) == (200, b"first")
        status, body = answer(server, HELLO)
        assert status == 500
        assert "X-Injected: 1 — results\\x1b[2J &lt;b&gt;" in body.decode()
        assert body.startswith(b"<!DOCTYPE")
        assert str(tmp_path).encode() not in body
        assert answer(server, HELLO) == (200, b"third")
    assert capsys.readouterr().err == ""


def test_silent_visitors_are_sent_away(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """So are those that dribble; meanwhile more than there may be are told to come later."""
    monkeypatch.setattr("invbench.reporting.serving.VISITORS", 3)
    monkeypatch.setattr("invbench.reporting.serving.HEAD_SECONDS", 0.5)
    with served(lambda: "the page") as server, ExitStack() as stack:
        silent = [stack.enter_context(connected(server)) for _ in range(2)]
        dribbling = stack.enter_context(connected(server))

        def dribble() -> None:
            with pytest.raises(OSError):  # a broken pipe, or a reset
                while True:
                    dribbling.send(b"G")
                    time.sleep(0.05)

        thread = threading.Thread(target=dribble)
        thread.start()
        seen = []
        until(lambda: seen.append(answer(server, HELLO)[0]) or seen[-1] == 200)  # type: ignore[func-returns-value]
        assert set(seen) <= {0, 200, 503}
        assert [client.recv(1) for client in silent] == [b"", b""]
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert capsys.readouterr().err == ""


def test_visitors_who_leave(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In the middle of their request, before the page is made, and in the middle of the page: nothing is said."""
    monkeypatch.setattr("invbench.reporting.serving.HEAD_SECONDS", 1.0)
    opened = threading.Event()

    def make() -> str:
        opened.wait(PATIENCE)
        return "x" * 20_000_000

    with served(make) as server:
        free = server.free
        for request in (b"", b"GET / HT", HELLO, HELLO):
            with connected(server) as client:
                client.sendall(request)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset at the end
        opened.set()
        with connected(server) as client:
            client.sendall(HELLO)
            assert client.recv(100).startswith(b"HTTP/1.0 200")
        until(lambda: free._value == VISITORS)
    assert capsys.readouterr().err == ""


def test_an_error_of_ours_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    def make() -> str:
        raise ZeroDivisionError

    with served(make) as server:
        assert answer(server, HELLO) == (0, b"")
        until(lambda: server.free._value == VISITORS)
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_a_port_that_is_taken(page: Server) -> None:
    with pytest.raises(UserError, match=f"--port {page.server_address[1]}: .*give another one"):
        Server(lambda: "", page.server_address[1])
