"""A snapshot of a database, its index as simple as can be, and a store that can be told to fail."""

import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import lz4.block
from fastcrc.crc64 import go_iso

from core.errors import LogDamaged
from infra.commitlog import ltx
from infra.commitlog.raw_file import pages_of

PAGE_HEAD = 10  # bytes before each page in the object


class SimpleIndex:
    """Says where the blocks of a snapshot are; a block is right when it is what it was at first."""

    def __init__(self, database: Path, page_size: int, block_bytes: int = 65536) -> None:
        self.object = bytearray()
        self.uppers: dict[int, bytes] = {}
        self.asked_upper: list[int] = []
        self.pages_per_block = max(1, block_bytes // page_size)
        pages = dict(pages_of(database, page_size))
        self.header = ltx.Header(page_size, max(pages), 1, 7, 1_700_000_000_000, node_id=1)
        writer = ltx.Writer(self.header, self.object.extend)
        self._numbers = sorted(pages)
        self._ends = [ltx.HEADER_SIZE]
        for at, number in enumerate(self._numbers):
            writer.add(number, pages[number])
            if (at + 1) % self.pages_per_block == 0 or number == self._numbers[-1]:
                self._ends.append(len(self.object))
        writer.end()
        self._crcs = [go_iso(bytes(self.object[slice(*self.span(block, block))])) for block in range(self.blocks)]

    @property
    def blocks(self) -> int:
        return len(self._ends) - 1

    def block_of(self, number: int) -> int:
        return (number - 1 - (number > ltx.lock_page(self.header.page_size))) // self.pages_per_block

    def span(self, first: int, last: int) -> tuple[int, int]:
        return self._ends[first], self._ends[last + 1]

    def pages(self, block: int, body: bytes) -> list[tuple[int, bytes]]:
        if go_iso(body) != self._crcs[block]:
            raise LogDamaged(f"has a block {block} that is not what its checksum says")
        found, offset = [], 0
        while offset < len(body):
            number, length = (
                int.from_bytes(body[offset : offset + 4], "big"),
                int.from_bytes(body[offset + 6 : offset + PAGE_HEAD], "big"),
            )
            offset += PAGE_HEAD
            page = lz4.block.decompress(body[offset : offset + length], uncompressed_size=self.header.page_size)
            found.append((number, page))
            offset += length
        return found

    def upper(self, number: int) -> bytes | None:
        self.asked_upper.append(number)
        return self.uppers.get(number)


class Store:
    """Hands out ranges of one object, and counts them; `before` may raise, or wait."""

    def __init__(self, index: SimpleIndex) -> None:
        self.index = index
        self.ranges: list[tuple[int, int]] = []
        self.before: Callable[[int, int], None] = lambda begin, end: None
        self._lock = threading.Lock()

    def fetch(self, begin: int, end: int) -> bytes:
        with self._lock:
            self.ranges.append((begin, end))
        self.before(begin, end)
        return bytes(self.index.object[begin:end])


def make_database(path: Path, page_size: int = 4096, rows: int = 2000, journal_mode: str = "wal") -> None:
    """Make one with an index, and with rows of half a kilobyte that do not compress to nothing."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA page_size={page_size}; PRAGMA journal_mode={journal_mode}").fetchall()
        connection.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, v TEXT); CREATE INDEX by_name ON t (name)"
        )
        insert_rows(connection, rows)


def insert_rows(connection: apsw.Connection, rows: int) -> None:
    connection.execute(
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
        " INSERT INTO t (name, v) SELECT hex(randomblob(8)), hex(randomblob(250)) FROM n",
        (rows,),
    )
