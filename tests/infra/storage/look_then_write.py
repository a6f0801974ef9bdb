"""A small S3 that looks whether a name is free, and writes some moments later: one after the other it keeps
create-if-absent, at the same moment it does not.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class LookThenWrite:
    def __init__(self, window: float) -> None:
        """`window`: seconds between the look and the write; below 0 they are one step."""
        self.window = window
        self.objects: dict[str, bytes] = {}
        self.requests: Counter[str] = Counter()
        self.order: list[str] = []
        self.connections: set[Any] = set()
        self._lock = threading.Lock()

    def count(self, method: str, client: Any) -> None:
        with self._lock:
            self.requests[method] += 1
            self.order.append(method)
            self.connections.add(client)

    def create(self, path: str, body: bytes) -> bool:
        if self.window < 0:
            with self._lock:
                return self._create(path, body)
        if path in self.objects:
            return False
        threading.Event().wait(self.window)
        self.objects[path] = body
        return True

    def _create(self, path: str, body: bytes) -> bool:
        return self.objects.setdefault(path, body) is body


@contextmanager
def look_then_write_store(window: float) -> Iterator[tuple[str, LookThenWrite]]:
    """Its endpoint, and what it holds and has counted."""
    store = LookThenWrite(window)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            store.count("GET", self.client_address)
            body = store.objects.get(self.path)
            self._answer(404 if body is None else 200, body or b"")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            store.count("PUT", self.client_address)
            self._answer(200 if store.create(self.path, body) else 412, b"")

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"a"')
            self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        host, port = server.server_address[:2]
        yield f"http://{host!s}:{port}", store
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
