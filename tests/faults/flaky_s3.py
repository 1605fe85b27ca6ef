"""An object store that fails on demand: a reverse proxy on loopback in front of moto's S3 server.

Clients speak real HTTP with it; what it does not spoil goes to the real store and back.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Literal

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "expect"})

Event = Literal["refuse", "delay", "cut_request", "cut_answer"]


@dataclass(frozen=True, slots=True)
class Request:
    """What a fault looks at to decide whether it strikes."""

    method: str
    path: str
    """With the query, as the client sent it."""
    authorized: bool
    """Whether the request is signed."""

    @property
    def is_upload_of_a_part(self) -> bool:
        """Whether it carries a part of a multi-part upload."""
        return self.method == "PUT" and "uploadId=" in self.path


Strikes = Callable[[Request], bool]


def any_request(_request: Request) -> bool:
    """Every request is struck."""
    return True


@dataclass(slots=True)
class Fault:
    """What happens to the requests that ``strikes`` chooses, until ``left`` of them were struck."""

    event: Event
    strikes: Strikes = any_request
    left: int = 1
    status: int = 503
    delay_s: float = 0.0
    struck: int = 0


@dataclass
class FlakyS3:
    """The proxy's controls; ``url`` is the endpoint that clients use."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    """All that came, struck or not."""
    _lock: Lock = field(default_factory=Lock)

    def add(self, fault: Fault) -> Fault:
        """Puts a fault in place; the first one that strikes a request counts."""
        self.faults.append(fault)
        return fault

    def refuse(self, times: int, *, status: int = 503, strikes: Strikes = any_request) -> Fault:
        """Answers the next requests with an error of the store."""
        return self.add(Fault("refuse", strikes, times, status))

    def delay(self, times: int, seconds: float, *, strikes: Strikes = any_request) -> Fault:
        """Lets the next requests wait before they are served."""
        return self.add(Fault("delay", strikes, times, delay_s=seconds))

    def cut(self, times: int, *, answer: bool = False, strikes: Strikes = any_request) -> Fault:
        """Closes the connection in the middle of the request's body, or of the answer's."""
        return self.add(Fault("cut_answer" if answer else "cut_request", strikes, times))

    def heal(self) -> None:
        """Takes all faults away."""
        with self._lock:
            self.faults.clear()

    def fault_for(self, request: Request) -> Fault | None:
        """Notes the request and returns what is to happen to it."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.left > 0 and fault.strikes(request):
                    fault.left -= 1
                    fault.struck += 1
                    return fault
            return None


@contextmanager
def flaky_s3(upstream: str) -> Iterator[FlakyS3]:
    """A proxy in front of the S3 server at ``upstream`` (``host:port``)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FlakyS3(f"http://127.0.0.1:{server.server_port}")
    server.proxy, server.upstream = proxy, upstream  # type: ignore[attr-defined]
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing is written to the tests' output."""

    def _serve(self) -> None:
        request = Request(self.command, self.path, "Authorization" in self.headers)
        fault = self.server.proxy.fault_for(request)  # type: ignore[attr-defined]
        if fault is not None and fault.event == "cut_request":
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._hang_up()
            return
        body = self._body()
        if fault is not None and fault.event == "refuse":
            self._refuse(fault.status)
            return
        if fault is not None and fault.event == "delay":
            time.sleep(fault.delay_s)
        self._forward(body, cut=fault is not None and fault.event == "cut_answer")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _refuse(self, status: int) -> None:
        code, message = {
            403: ("AccessDenied", "Access Denied"),
            500: ("InternalError", "We encountered an internal error. Please try again."),
            503: ("SlowDown", "Please reduce your request rate."),
        }[status]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _forward(self, body: bytes, *, cut: bool) -> None:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=60)  # type: ignore[attr-defined]
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _HOP_BY_HOP}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _HOP_BY_HOP | {"server", "date"}:
                self.send_header(name, value)
        size = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", size or "0")
        self.end_headers()
        if self.command == "HEAD":
            return
        if cut:
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self._hang_up()
        else:
            self.wfile.write(content)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
