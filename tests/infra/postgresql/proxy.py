"""What stands between the service and PostgreSQL, and may cut a connection at any byte."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Rule = Callable[[bytes], bool]  # of what a client sends: whether to cut there


class Proxy:
    """`before`: cuts instead of sending it on, `after`: when the server has answered it, and nobody hears of that."""

    def __init__(self, port: int) -> None:
        self.before: Rule = lambda sent: False
        self.after: Rule = lambda sent: False
        self.accepts = True  # else whoever comes is cut at once
        self.accepted = 0
        self._server_port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listening.getsockname()[1])
        self._forgotten: set[tuple[socket.socket, socket.socket]] = set()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """All connections that there are."""
        for pair in self._pairs:
            _end(*pair)

    def forget(self) -> None:
        """The connections that there are: nothing of them arrives any more, on either side."""
        self._forgotten.update(self._pairs)

    def close(self) -> None:
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self.accepted += 1
                if not self.accepts:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._server_port))
                self._pairs.append((client, server))
                both = client, server, threading.Event(), threading.Event()
                threading.Thread(target=self._pass, args=both, daemon=True).start()
                threading.Thread(target=self._pass_back, args=both, daemon=True).start()

    def _pass(
        self, client: socket.socket, server: socket.socket, answered: threading.Event, mute: threading.Event
    ) -> None:
        with suppress(OSError):
            while sent := client.recv(65536):
                if (client, server) in self._forgotten:
                    continue
                if self.before(sent):
                    break
                if self.after(sent):
                    mute.set()
                    server.sendall(sent)
                    answered.wait(30)
                    break
                server.sendall(sent)
        _end(client, server)

    def _pass_back(
        self, client: socket.socket, server: socket.socket, answered: threading.Event, mute: threading.Event
    ) -> None:
        with suppress(OSError):
            while answer := server.recv(65536):
                if mute.is_set():
                    answered.set()
                else:
                    client.sendall(answer)
        _end(client, server)


def _end(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy_before(port: int) -> Iterator[Proxy]:
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()
