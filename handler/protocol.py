"""HTTP/1.1 on the wire."""

import sys

import h11
from httptools import HttpParserUpgrade
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Protocol(HttpToolsProtocol):
    """Ignores each offer to go on in another protocol (RFC 9110, 7.8), of which the JDK's client makes one a request.

    The fast parser takes what follows such an offer for that other protocol and hands over no body. So the connection
    goes over to the other parser, which does.
    """

    _received = b""

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
        protocol = _WithoutOffers(self.config, self.server_state, self.app_state, self.loop)
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        protocol.data_received(b"".join([*head, b"\r\n", self._received[end_of_head:]]))

    def send_400_response(self, msg: str) -> None:
        if self.cycle and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.close()  # what is no HTTP came after an early answer, which is under way
        else:
            super().send_400_response(msg)


class _WithoutOffers(H11Protocol):
    def _should_upgrade(self) -> bool:
        return False  # Uvicorn says no as well, but with two warnings in the log

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_BODY:
            self.transport.close()
        else:
            super().send_400_response(msg)
