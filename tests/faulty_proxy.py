"""An HTTP proxy on loopback that spoils some requests, by a seeded schedule: delays, resets, 429, 500, 503, cut bodies."""

from __future__ import annotations

import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BEFORE = ("reset", "429", "500", "503")
"""The server never sees the request."""
AFTER = ("reset after", "500 after", "cut")
"""The server has carried it out, and the client does not learn it."""
FAULTS = (*BEFORE, *AFTER, "delay")

_CODES = {"429": "TooManyRequests", "500": "InternalError", "503": "SlowDown"}


class FaultyProxy(ThreadingHTTPServer):
    """Spoils a share of the requests in the order of their arrival.

    Args:
        upstream: URL of the server behind.
        share: of the requests that are spoilt.
        seed: of the schedule.
        faults: that are drawn from.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, upstream: str, share: float, seed: int = 0, faults: tuple[str, ...] = FAULTS) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self.share, self.faults = share, faults
        self.injected: Counter[str] = Counter()
        self._rng, self._lock = random.Random(seed), threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> str | None:
        with self._lock:
            fault = self._rng.choice(self.faults) if self._rng.random() < self.share else None
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def handle_error(self, request, client_address) -> None:
        """Clients that were cut off hang up: no news."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultyProxy
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        self.close_connection = True
        if not self.raw_requestline or not self.parse_request():
            return
        self.close_connection = True
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.next_fault()
        if fault == "delay":
            time.sleep(0.1)
        elif fault == "silence":
            time.sleep(3.0)
        elif fault == "reset":
            return self._reset()
        elif fault in _CODES:
            return self._refuse(fault)
        status, headers, answer = self._forward(body)
        if fault == "reset after":
            return self._reset()
        if fault == "500 after":
            return self._refuse("500")
        self._answer(status, headers, answer, len(answer) // 2 if fault == "cut" else None)
        return None

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        with contextlib.closing(http.client.HTTPConnection(self.server.upstream, timeout=30)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def _refuse(self, status: str) -> None:
        text = f"<Error><Code>{_CODES[status]}</Code><Message>injected</Message></Error>".encode()
        self._answer(int(status), [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))], text)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: int | None = None) -> None:
        kept = [f"{k}: {v}" for k, v in headers if k.lower() not in ("connection", "transfer-encoding")]
        if not any(line.lower().startswith("content-length") for line in kept):
            kept.append(f"Content-Length: {len(body)}")
        head = "\r\n".join((f"HTTP/1.1 {status} x", *kept, "Connection: close", "", "")).encode()
        if cut is not None and not body:
            head, cut = head[: len(head) // 2], 0
        self.wfile.write(head + (b"" if self.command == "HEAD" else body[:cut]))

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()


@contextlib.contextmanager
def running(upstream: str, share: float, seed: int = 0, faults: tuple[str, ...] = FAULTS) -> Iterator[FaultyProxy]:
    """A proxy in a thread until the block ends."""
    with FaultyProxy(upstream, share, seed, faults) as proxy:
        thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield proxy
        finally:
            proxy.shutdown()
            thread.join()
