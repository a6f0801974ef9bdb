"""A proxy between the service and its store that does what networks and stores do on their bad days."""

import http.client
import itertools
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_COMMIT = re.compile(r"/log/0000/[0-9a-f]{16}-[0-9a-f]{16}\.ltx")
_BY_HOP = {"connection", "content-length", "transfer-encoding", "keep-alive"}


@dataclass(slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def is_commit(self) -> bool:
        """Whether it creates a commit's object."""
        return self.method == "PUT" and _COMMIT.search(self.path) is not None


@dataclass(slots=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes


RESET = Reply(0, {}, b"")  # none: the connection is reset

Forward = Callable[[Request], Reply]
Rule = Callable[[Request, Forward], Reply | None]  # None: the connection is cut without a reply


def pass_on(request: Request, forward: Forward) -> Reply:
    return forward(request)


class Proxy:
    """Every request goes through `rule`, which may be changed at any time, and is kept in `requests`.

    With `tls` clients are to speak that.
    """

    def __init__(self, upstream: str, rule: Rule = pass_on, tls: ssl.SSLContext | None = None) -> None:
        self.rule = rule
        self.requests: list[tuple[Request, Reply | None]] = []
        self.tls = tls
        self._upstream = urlsplit(upstream).netloc
        self._server = _Server(self, ("127.0.0.1", 0))
        self._thread = self._started()

    @property
    def endpoint(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{'https' if self.tls else 'http'}://{host!s}:{port}"

    @contextmanager
    def away(self) -> Iterator[None]:
        """Connections are refused meanwhile."""
        self.close()
        try:
            yield
        finally:
            self.listen_again()

    def close(self) -> None:
        self.refuse_connections()
        self._server.cut_connections()

    def refuse_connections(self) -> None:
        """New ones; those that there are go on. A rule may do it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def listen_again(self) -> None:
        address = self._server.server_address
        self._server = _Server(self, (str(address[0]), int(address[1])))
        self._thread = self._started()

    def handle(self, request: Request) -> Reply | None:
        reply = self.rule(request, self._forward)
        self.requests.append((request, reply))
        return reply

    def _forward(self, request: Request) -> Reply:
        connection = http.client.HTTPConnection(self._upstream, timeout=60)
        try:
            headers = {**request.headers, "Content-Length": str(len(request.body))}
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def _started(self) -> threading.Thread:
        thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        thread.start()
        return thread


@contextmanager
def proxy_before(upstream: str, rule: Rule = pass_on, tls: ssl.SSLContext | None = None) -> Iterator[Proxy]:
    proxy = Proxy(upstream, rule, tls)
    try:
        yield proxy
    finally:
        proxy.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: Proxy, address: tuple[str, int]) -> None:
        self.proxy = proxy
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def cut_connections(self) -> None:
        for connection in list(self.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gives up, or a store that dies, is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        if tls := self.server.proxy.tls:
            self.request = tls.wrap_socket(self.request, server_side=True)
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()
        if self.server.proxy.tls:
            self.connection.close()

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _BY_HOP}
        reply = self.server.proxy.handle(Request(self.command, self.path, headers, body))
        if reply is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if reply is RESET:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            socket.close(self.connection.detach())  # at once, whoever else holds it: no FIN before
            return
        self.send_response_only(reply.status)
        for name, value in reply.headers.items():
            if name.lower() not in _BY_HOP:
                self.send_header(name, value)
        length = reply.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(reply.body))
        self.send_header("Content-Length", length)
        self.end_headers()
        self.wfile.write(reply.body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


# Rules


def lost_reply(request: Request, forward: Forward) -> Reply | None:
    """The store does it, and nobody hears of it."""
    forward(request)
    return None


def reset_reply(request: Request, forward: Forward) -> Reply:
    """The same, and the connection is reset: a restart of the store, or of what is before it."""
    forward(request)
    return RESET


def answered(status: int, code: str) -> Rule:
    """An error instead of any service."""
    return lambda request, forward: _error(status, code)


def applied_but_answered(status: int, code: str) -> Rule:
    """The store does it and says that it did not."""

    def rule(request: Request, forward: Forward) -> Reply:
        forward(request)
        return _error(status, code)

    return rule


def applied_but_replied(reply: Reply) -> Rule:
    """The same with any reply at all."""

    def rule(request: Request, forward: Forward) -> Reply:
        forward(request)
        return reply

    return rule


def delayed(seconds: float) -> Rule:
    def rule(request: Request, forward: Forward) -> Reply:
        threading.Event().wait(seconds)
        return forward(request)

    return rule


def without_header(name: str) -> Rule:
    def rule(request: Request, forward: Forward) -> Reply:
        request.headers = {key: value for key, value in request.headers.items() if key.lower() != name}
        return forward(request)

    return rule


def every_commit(fault: Rule) -> Rule:
    return lambda request, forward: (fault if request.is_commit else pass_on)(request, forward)


def first_try_of_every(nth: int, fault: Rule) -> Rule:
    """The fault for the first PUT of every nth commit; what is sent again passes."""
    seen: set[str] = set()
    numbers = itertools.count(1)
    lock = threading.Lock()

    def rule(request: Request, forward: Forward) -> Reply | None:
        if request.is_commit:
            with lock:
                first = request.path not in seen
                seen.add(request.path)
                unlucky = first and next(numbers) % nth == 0
            if unlucky:
                return fault(request, forward)
        return forward(request)

    return rule


class Gate:
    """Holds commits back until it is opened: before the store has them, or on the reply's way."""

    def __init__(self, *, after: bool = False) -> None:
        self.reached = threading.Event()
        self._opened = threading.Event()
        self._after = after

    def open(self) -> None:
        self._opened.set()

    def __call__(self, request: Request, forward: Forward) -> Reply:
        if not request.is_commit:
            return forward(request)
        if self._after:
            reply = forward(request)
        self.reached.set()
        self._opened.wait(60)
        return reply if self._after else forward(request)


def _error(status: int, code: str) -> Reply:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{code}</Message></Error>'
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())
