"""A page that is served to this machine only, made anew for those who ask."""

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
"""How a browser on this machine may call it. Another site's name that was pointed here is not ours."""
VISITORS = 32
"""As many are answered at once, each by a thread."""
HEAD_SECONDS = 10.0
"""Time for a request to arrive, and for the page to leave."""
HEAD_BYTES = 16 * 1024
"""Of a request with all its headers."""


class Latest:
    """A page that one thread makes at a time; all who asked before it was begun share it."""

    def __init__(self, make: Callable[[], str]) -> None:
        self.make, self.lock = make, threading.Lock()
        self.begun, self.page = float("-inf"), b""

    def __call__(self) -> bytes:
        """The page as it is by now, or later."""
        asked = time.monotonic()
        with self.lock:
            if self.begun < asked:
                begun = time.monotonic()
                self.page = self.make().encode()
                self.begun = begun
            return self.page


class Server(ThreadingHTTPServer):
    """Answers `/` to a bounded number of visitors, and says nothing of those who leave early.

    Args:
        make: the page.
        port: 0 takes any free one.
        explain: makes of an error's text what a visitor may read.

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
        """In a thread; at once refused where there are too many."""
        if self.free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\n\r\n")
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Show errors of ours; a visitor who left is none."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class Answer(BaseHTTPRequestHandler):
    """The answer to one request; its connection is closed after it."""

    server: Server

    def handle(self) -> None:
        head = self._head()
        self.rfile.close()
        self.rfile = BytesIO(head)
        if len(head) > HEAD_BYTES:
            self.requestline = self.request_version = self.command = ""
            self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        else:
            self.handle_one_request()

    def _head(self) -> bytes:
        """Request line and headers, of which no more and no longer is read than there may be."""
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
        """The page."""
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
        """Whether there is a page; it is not made."""
        if self._ours():
            self._begin()

    def _ours(self) -> bool:
        """Whether the page was asked for under a name of this machine; else that is answered."""
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
        self.send_response(HTTPStatus.OK)
        for name, value in (("Content-Type", "text/html; charset=utf-8"), *headers):
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nobody reads these lines."""
