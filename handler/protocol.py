"""HTTP/1.1 on the wire."""

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from httptools import HttpParserUpgrade
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from handler.middleware.connection_limit import CROWDED
from handler.middleware.request_log import METRICS
from handler.middleware.security_headers import missing_fields
from handler.problems import Code, problem

logger = logging.getLogger(__name__)

_TOLD_HERE = "Invalid HTTP request received."  # Uvicorn's warning; who sends it is to blame, as for any 4xx
_NO_LINGERING = struct.pack("ii", 1, 0)
SPARE_CONNECTIONS = 100  # beyond the limit, to be told so; of what comes after these nothing is read


def is_not_told_here(record: logging.LogRecord) -> bool:
    """Ask of a line of Uvicorn's whether it is not also one of this module's."""
    return record.msg != _TOLD_HERE


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the clients may use of a server."""

    connections: int
    seconds: float  # for the head of a request to arrive, and for an answer to be taken


class _Deadline:
    """A time limit that is set, or is not."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, passed: Callable[[], None]) -> None:
        self._loop, self._seconds, self._passed = loop, seconds, passed
        self._timer: asyncio.TimerHandle | None = None

    def set(self) -> None:
        """Once it is set, it stays what it is."""
        if self._timer is None:
            self._timer = self._loop.call_later(self._seconds, self._passed)

    def unset(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Bounded(asyncio.Protocol):
    """Lets go of clients that take their time, for each of them holds a connection.

    While a request is in hand, the service is what takes time: that has limits of its own, and the body one, too (see
    BodyLimit).
    """

    connections: set[Any]
    app_state: dict[str, Any]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    cycle: Any
    server_state: Any

    def __init__(self, *args: Any, bounds: Bounds, **others: Any) -> None:
        super().__init__(*args, **others)
        self.bounds = bounds
        self._received_any = False
        self._is_lost = False
        self._head = _Deadline(self.loop, bounds.seconds, self._head_is_late)
        self._answer = _Deadline(self.loop, bounds.seconds, self._answer_is_not_taken)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._head.set()
        excess = len(self.connections) - self.bounds.connections
        if excess > SPARE_CONNECTIONS:
            self._reset()
        elif excess > 0:
            self.app_state = {**self.app_state, CROWDED: True}

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_protocol() is not self:
            self._head.unset()
        elif self.transport.is_closing():
            self._closing()
        elif self.cycle is None or self.cycle.response_complete:
            self._received_any = True
            self._head.set()
        else:
            self._received_any = False
            self._head.unset()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._answer.set()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            self._answer.unset()

    def on_response_complete(self) -> None:
        super().on_response_complete()  # type: ignore[misc]
        if self.transport.is_closing():
            self._closing()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()  # type: ignore[misc]
        self._closing()

    def send_400_response(self, msg: str) -> None:
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # what is no HTTP came after an early answer, which is under way
        else:
            self._refuse(Code.MALFORMED_REQUEST, msg)

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_lost = True
        self._head.unset()
        self._answer.unset()
        super().connection_lost(exc)

    def _head_is_late(self) -> None:
        if self._received_any and not self.transport.is_closing():
            self._refuse(Code.REQUEST_TIMEOUT, f"The head did not arrive within {self.bounds.seconds:g} s.")
        self.transport.close()
        self._closing()

    def _answer_is_not_taken(self) -> None:
        logger.warning("a client did not take its answer within %g s", self.bounds.seconds)
        self._reset()

    def _reset(self) -> None:
        """End it, and forget what is left to deliver, which the kernel would keep for as long as the client likes."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGERING)
        self.transport.abort()

    def _closing(self) -> None:
        """What is written is still sent; that may take as long as any other answer."""
        self._head.unset()
        if not self._is_lost:
            self._answer.set()

    def _refuse(self, code: Code, detail: str) -> None:
        request_id = uuid4().hex
        if METRICS in self.app_state:
            self.app_state[METRICS].request_refused(code.status)
        logger.info("%d: %s", code.status, detail, extra={"request_id": request_id, "code": code})
        answer = problem({"path": "", "state": {"request_id": request_id}}, code, detail)
        fields = [
            *self.server_state.default_headers,
            *answer.raw_headers,
            *missing_fields(code.status, set()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        head = b"HTTP/1.1 %d %s\r\n" % (code.status, code.status.phrase.encode())
        self.transport.write(head + b"".join(b"%s: %s\r\n" % field for field in fields) + b"\r\n" + bytes(answer.body))
        self.transport.close()


class Protocol(_Bounded, HttpToolsProtocol):
    """Ignores each offer to go on in another protocol (RFC 9110, 7.8), of which the JDK's client makes one a request.

    The fast parser takes what follows such an offer for that other protocol and hands over no body. So the connection
    goes over to the other parser, which does.
    """

    _received = b""
    _in_head = False

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer is no header (RFC 9110, 6.5.1), also when it comes along with the head
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._received = data
        super().data_received(data)
        self._received = b""

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() is not None  # so that the request is not begun here

    def handle_websocket_upgrade(self) -> None:
        if self.cycle and not self.cycle.response_complete:  # the client may send it again, on another connection
            self.cycle.keep_alive = False
            return
        offer = sys.exception()
        assert isinstance(offer, HttpParserUpgrade)
        end_of_head: int = offer.args[0]
        head = [self.parser.get_method(), b" ", self.url, b" HTTP/", self.parser.get_http_version().encode(), b"\r\n"]
        for name, value in self.headers:
            head += [name, b": ", value, b"\r\n"]
        self.connections.discard(self)
        protocol = _WithoutOffers(self.config, self.server_state, self.app_state, self.loop, bounds=self.bounds)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join([*head, b"\r\n", self._received[end_of_head:]]))


class _WithoutOffers(_Bounded, H11Protocol):
    def _should_upgrade(self) -> bool:
        return False  # Uvicorn says no as well, but with two warnings in the log
