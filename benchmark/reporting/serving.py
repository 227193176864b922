"""Serve a page to this machine only, made anew for each request."""

import re
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any

from invbench.errors import UserError

LOOPBACK = "127.0.0.1"
OURS = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
"""Host names under which the page is served; any other name that resolves to this machine is refused."""
VISITORS = 32
"""Largest number of requests that are answered at once, each by a thread."""
HEAD_SECONDS = 10.0
"""Seconds in which a request must arrive, and each part of the page must be sent."""
HEAD_BYTES = 16 * 1024
"""Largest size in bytes of a request with all its headers."""


class Latest:
    """The latest page, made by one thread at a time; all requests that came before it was begun share it."""

    def __init__(self, make: Callable[[], str]) -> None:
        self.make, self.lock = make, threading.Lock()
        self.begun, self.page = float("-inf"), b""

    def __call__(self) -> bytes:
        """Return a page that was begun after this call."""
        requested = time.monotonic()
        with self.lock:
            if self.begun < requested:
                begun = time.monotonic()
                self.page = self.make().encode()
                self.begun = begun
            return self.page


class Server(ThreadingHTTPServer):
    """A server that answers `/` to a bounded number of visitors at once, and ignores those who disconnect early.

    Args:
        make: makes the page.
        port: 0 takes any free one.
        explain: turns the text of an error into what a visitor may read.

    Raises:
        UserError: the port is taken.
    """

    request_queue_size = VISITORS

    def __init__(self, make: Callable[[], str], port: int, explain: Callable[[str], str] = str) -> None:
        self.latest, self.explain = Latest(make), explain
        self.free = threading.Semaphore(VISITORS)
        try:
            super().__init__((LOOPBACK, port), Answer)
        except OSError as error:
            raise UserError(f"--port {port}: {error.strerror}; give another one") from None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer a request in a thread; refuse it at once where there are too many."""
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer a request in this thread, then let another one in."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show errors, except that a visitor disconnected or was too slow."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    """The answer to one request; its connection is closed after it."""

    server: Server

    def handle(self) -> None:
        """Read one request within the limits, and answer it."""
        head = self._head()
        self.rfile.close()
        self.rfile = BytesIO(head)
        if len(head) > HEAD_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.handle_one_request()

    def _head(self) -> bytes:
        """Read request line and headers, within the limits of size and time."""
        head, end = b"", time.monotonic() + HEAD_SECONDS
        while len(head) <= HEAD_BYTES and b"\r\n\r\n" not in head and b"\n\n" not in head:
            self.connection.settimeout(max(end - time.monotonic(), 1e-3))
            part = self.connection.recv(HEAD_BYTES + 1 - len(head))
            if not part:
                return b""
            head += part
        self.connection.settimeout(HEAD_SECONDS)
        return head

    def do_GET(self) -> None:
        """Answer a GET request with the page of all runs."""
        if not self._ours():
            return
        try:
            page = self.server.latest()
        except UserError as error:
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, explain=self.server.explain(str(error)))
            return
        self._begin(("Content-Length", str(len(page))))
        self.wfile.write(page)

    def do_HEAD(self) -> None:
        """Answer with headers alone; no page is made."""
        if self._ours():
            self._begin()

    def _ours(self) -> bool:
        """Tell whether the page was requested under a name of this machine; otherwise answer with an error."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1:
            self.send_error(HTTPStatus.BAD_REQUEST, explain="one Host header is needed")
        elif not OURS.fullmatch(hosts[0]):
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path != "/":
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            return True
        return False

    def _begin(self, *headers: tuple[str, str]) -> None:
        """Send the status and the headers of a page."""
        self.send_response(HTTPStatus.OK)
        for name, value in (("Content-Type", "text/html; charset=utf-8"), *headers):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Leave out the line that the base class prints for each request."""
