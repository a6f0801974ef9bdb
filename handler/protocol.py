"""HTTP/1.1 on the wire."""

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Protocol(H11Protocol):
    """Ignores each offer to go on in another protocol (RFC 9110, 7.8), of which the JDK's client makes one a request.

    h11 reads the body of such a request; Uvicorn's other parser, httptools, hands over none.
    """

    def _should_upgrade(self) -> bool:
        return False  # Uvicorn says no as well, but with two warnings in the log

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state is h11.SEND_BODY:  # what is no HTTP came after an early answer, which is under way
            self.transport.close()
        else:
            super().send_400_response(msg)
