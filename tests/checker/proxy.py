"""Stands between one server and the store, and does what networks, load balancers and stores do on their bad days."""

import http.client
import random
import re
import socket
import socketserver
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

_COMMIT = re.compile(r"/0000/[0-9a-f]{16}-[0-9a-f]{16}\.ltx$")
_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
# What an error's text may hold without being the error that it looks like
_HOSTILE = [
    "upstream connect error: kind: Connect, reset before headers",
    "Error { kind: Connect, source: tcp connect error: Connection refused (os error 111) }",
    "<Error><Code>NoSuchKey</Code><Message>dns error: failed to lookup address information</Message></Error>",
    "<html>502: PreconditionFailed, 412, AlreadyExists, kind: ConnectionReset</html>",
]


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_commit(self) -> bool:
        return self.method == "PUT" and _COMMIT.search(self.path.partition("?")[0]) is not None


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


class Cut(Exception):
    """The connection ends here: `reset` by RST, otherwise by FIN, after the first `part` bytes of the answer."""

    def __init__(self, reset: bool, part: bytes = b"") -> None:
        super().__init__()
        self.reset = reset
        self.part = part


FAULTS = (
    "reset before",
    "reset after",
    "end before",
    "end after",
    "late",
    "late reply",
    "half reply",
    "error after",
    "hostile error after",
    "error before",
    "conflict before",
    "expired before",
    "repeated",
)


class Proxy:
    """`weather`: the share of requests that meet a fault, of commits and of others. It may change at any time."""

    def __init__(self, upstream: str, port: int, rng: random.Random) -> None:
        self.port = port
        self.weather = (0.0, 0.0)
        self.faults: Counter[str] = Counter()
        self.patience = 2.0  # seconds that the service goes on trying; what is late is later than that now and then
        self._upstream = urlsplit(upstream).netloc
        self._random = rng
        self._lock = threading.Lock()
        self._held = 0
        self._darkens: list[tuple[list[Proxy], float]] = []
        self._dark_until = 0.0
        self.is_shut = False  # nothing passes
        self._closed = False
        self._listening: _Listener | None = None
        self._listen()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def held(self) -> int:
        """Requests that are on their way to the store, and late."""
        return self._held

    def black_out_after_commit(self, proxies: "list[Proxy]", seconds: float) -> None:
        """The store takes the next commit, its connection is reset, and then these proxies refuse every connection."""
        self._darkens.append((proxies, seconds))

    @property
    def is_armed(self) -> bool:
        """Whether that commit is still to come."""
        return bool(self._darkens)

    def go_dark(self, seconds: float) -> None:
        with self._lock:
            self._dark_until = max(self._dark_until, time.monotonic() + seconds)
            listening, self._listening = self._listening, None
        if listening:
            listening.refuse()
            threading.Thread(target=self._come_back, args=(listening,), daemon=True).start()

    def heal(self) -> None:
        self.weather = (0.0, 0.0)
        self._darkens.clear()
        self._dark_until = 0.0

    def close(self) -> None:
        self._closed = True
        with self._lock:
            listening, self._listening = self._listening, None
        if listening:
            listening.refuse()
            listening.shutdown()

    def handle(self, request: Request, upstream: http.client.HTTPConnection) -> Reply:
        """Raises Cut."""
        if self.is_shut or time.monotonic() < self._dark_until:
            raise Cut(reset=True)
        if request.is_commit and self._darkens:
            return self._black_out(request, upstream)
        share = self.weather[0 if request.is_commit else 1]
        if self._random.random() >= share:
            return _forward(request, upstream)
        fault = self._random.choice(FAULTS)
        self.faults[fault] += 1
        return self._with_fault(fault, request, upstream)

    def _black_out(self, request: Request, upstream: http.client.HTTPConnection) -> Reply:
        """Only after a commit that was stored: one that came second tells nobody anything."""
        reply = _forward(request, upstream)
        if reply.status != http.HTTPStatus.OK or not self._darkens:
            return reply
        proxies, seconds = self._darkens.pop()
        self.faults["blackout after a commit"] += 1
        for proxy in proxies:
            proxy.go_dark(seconds)
        raise Cut(reset=True)

    def _with_fault(self, fault: str, request: Request, upstream: http.client.HTTPConnection) -> Reply:
        match fault:
            case "reset before" | "end before":
                raise Cut(reset=fault.startswith("reset"))
            case "reset after" | "end after":
                _forward(request, upstream)
                raise Cut(reset=fault.startswith("reset"))
            case "late":
                self._hold(self._random.uniform(0.2, 2.5 * self.patience))
                return _forward(request, upstream)
            case "late reply":
                reply = _forward(request, upstream)
                self._hold(self._random.uniform(0.2, 2.5 * self.patience))
                return reply
            case "half reply":
                whole = _bytes_of(_forward(request, upstream))
                raise Cut(self._random.random() < 0.5, whole[: self._random.randrange(1, len(whole))])
            case "error after":
                _forward(request, upstream)
                return _error(self._random.choice([500, 503]), "InternalError")
            case "hostile error after":
                _forward(request, upstream)
                return Reply(self._random.choice([500, 502, 504]), {}, self._random.choice(_HOSTILE).encode())
            case "conflict before" if request.method == "PUT":
                return _error(409, "ConditionalRequestConflict")
            case "expired before" if request.method == "PUT":
                return _error(400, "ExpiredToken")
            case "repeated" if request.method == "PUT":
                _forward(request, upstream)
                return _forward(request, upstream)
            case _:
                return _error(503, "SlowDown")

    def _hold(self, seconds: float) -> None:
        with self._lock:
            self._held += 1
        time.sleep(seconds)
        with self._lock:
            self._held -= 1

    def _listen(self) -> None:
        listening = _Listener(self, self._upstream)
        with self._lock:
            self._listening = listening

    def _come_back(self, before: "_Listener") -> None:
        before.shutdown()
        while time.monotonic() < self._dark_until:
            time.sleep(0.02)
        while not self._closed:
            try:
                return self._listen()
            except OSError:  # somebody has the port for a moment
                time.sleep(0.05)


class _Listener(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy, upstream: str) -> None:
        self.proxy = proxy
        self.upstream = upstream
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", proxy.port), _Handler)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def refuse(self) -> None:
        """From now on no connection is made, and those that are there are reset."""
        self.server_close()
        for connection in list(self.connections):
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                connection.shutdown(socket.SHUT_RD)  # its thread wakes up, and closes it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)
        self.upstream = http.client.HTTPConnection(self.server.upstream, timeout=60)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        self.upstream.close()
        super().finish()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _BY_HOP}
        try:
            self.wfile.write(
                _bytes_of(self.server.proxy.handle(Request(self.command, self.path, headers, body), self.upstream))
            )
        except Cut as cut:
            self.close_connection = True
            with suppress(OSError):
                self.wfile.write(cut.part)
            if cut.reset:
                self._reset()

    def _reset(self) -> None:
        with suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.rfile.close()
        self.connection.close()

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def _forward(request: Request, upstream: http.client.HTTPConnection) -> Reply:
    headers = {**request.headers, "Content-Length": str(len(request.body))}
    for again in (True, False):
        try:
            upstream.request(request.method, request.path, request.body, headers)
            response = upstream.getresponse()
            break
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            upstream.close()  # it had been idle for too long; the store has not seen this
            if not again:
                raise
    reply = Reply(response.status, dict(response.getheaders()), response.read())
    if request.method == "HEAD":
        reply.headers["x-length"] = response.headers.get("Content-Length", "0")
    return reply


def _bytes_of(reply: Reply) -> bytes:
    length = reply.headers.get("x-length", str(len(reply.body)))
    lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, 'Unknown')}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items() if name.lower() not in _BY_HOP | {"x-length"}]
    lines += [f"Content-Length: {length}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + reply.body


def _error(status: int, code: str) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())
