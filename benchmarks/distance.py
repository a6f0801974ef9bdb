"""A server at a distance: a relay before it that lets each request wait, and counts what passes."""

import asyncio
import mmap
import multiprocessing
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.processes import free_port, listens, until

_COUNTS = struct.Struct("<QQ")
_VERBS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ")
_CHUNK = 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Passed:
    """Since the relay began."""

    requests: int
    bytes: int  # of the answers, with their heads

    def __sub__(self, other: "Passed") -> "Passed":
        return Passed(self.requests - other.requests, self.bytes - other.bytes)


class Counts:
    """What has passed, in a file that several processes map."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), _COUNTS.size)

    def read(self) -> Passed:
        """Return what has passed so far."""
        return Passed(*_COUNTS.unpack_from(self._map))

    def write(self, passed: Passed) -> None:
        """Say what has passed so far; only the relay does."""
        _COUNTS.pack_into(self._map, 0, passed.requests, passed.bytes)


@contextmanager
def at_a_distance(upstream: str, seconds: float) -> Iterator[tuple[str, Path]]:
    """Relay to a server's URL, each request after so many seconds. Gives the URL to ask instead, and the counts."""
    port = free_port()
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(_COUNTS.size))
        file.flush()
        counts = Path(file.name)
        relay = multiprocessing.get_context("spawn").Process(
            target=_relay, args=(urlsplit(upstream).netloc, port, seconds, counts), daemon=True
        )
        relay.start()
        try:
            until(lambda: listens(port))
            yield f"http://127.0.0.1:{port}", counts
        finally:
            relay.terminate()
            relay.join()


def _relay(upstream: str, port: int, seconds: float, counts: Path) -> None:
    host, _, upstream_port = upstream.partition(":")
    known = Counts(counts)
    requests = passed = 0

    async def to_server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A client sends the next request when it has the answer to the last one."""
        nonlocal requests
        while some := await reader.read(_CHUNK):
            if some.startswith(_VERBS):
                requests += 1
                known.write(Passed(requests, passed))
                await asyncio.sleep(seconds)
            writer.write(some)
            await writer.drain()

    async def to_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal passed
        while some := await reader.read(_CHUNK):
            passed += len(some)
            known.write(Passed(requests, passed))
            writer.write(some)
            await writer.drain()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(host, int(upstream_port), limit=4 * _CHUNK)
        for each in (writer, back):
            each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        both = [asyncio.ensure_future(to_server(reader, back)), asyncio.ensure_future(to_client(there, writer))]
        with suppress(ConnectionError, asyncio.CancelledError):
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for one in both:
            one.cancel()
        for each in (writer, back):
            each.close()

    async def serve() -> None:
        server = await asyncio.start_server(connect, "127.0.0.1", port, limit=4 * _CHUNK)
        await server.serve_forever()

    asyncio.run(serve())
