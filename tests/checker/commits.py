"""What the log says, commit by commit: a reader of LTX files that owes the service nothing.

The format is that of github.com/superfly/ltx, version 3, big-endian: a header of 100 bytes; pages, each of them number
u32, flags u16, size u32 and an LZ4 block; six zero bytes; an index and checksums, which are not looked at here
(`litestream restore` does that).
"""

import sqlite3
import struct
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import lz4.block

from tests.checker.history import Row

_ROWS = "SELECT id, name, description, quantity, version FROM items"
_HEADER = struct.Struct(">4sIIIQQ")
_HEADER_SIZE = 100
_PAGE = struct.Struct(">IHI")
_END_OF_PAGES = 6
_JOURNAL_MODE = slice(18, 20)  # of the database's header; an image in memory cannot be in WAL mode
_ROLLBACK = b"\1\1"


@dataclass(frozen=True, slots=True)
class Change:
    """A row as it is since a commit; None: it is gone since."""

    txid: int
    item: int
    row: Row | None


@dataclass(slots=True)
class Log:
    """What the commits did to the items, in order, up to the first that is missing or cannot be read."""

    last: int = 0
    trouble: str = ""  # what is wrong with the one after the last
    changes: list[Change] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)  # after the last commit


def read_log(commits: Mapping[int, bytes]) -> Log:
    """`commits`: the level-0 object of each TXID."""
    log = Log()
    image = bytearray()
    with closing(sqlite3.connect(":memory:")) as database:
        for txid in range(1, max(commits, default=0) + 1):
            if txid not in commits:
                log.trouble = f"TXID {txid:016x} is not there, but {max(commits):016x} is"
                break
            try:
                _apply(image, commits[txid], txid)
                _add(log, txid, _rows(database, image))
            except (ValueError, struct.error, lz4.block.LZ4BlockError, sqlite3.DatabaseError) as error:
                log.trouble = f"TXID {txid:016x}: {error}"
                break
    return log


def rows_of(path: Path) -> list[Row]:
    """Of a database file that nobody has open."""
    with closing(sqlite3.connect(path)) as database:
        return sorted(map(Row._make, database.execute(_ROWS)))


def _apply(image: bytearray, body: bytes, txid: int) -> None:
    magic, _, page_size, size, low, high = _HEADER.unpack_from(body)
    if (magic, low, high) != (b"LTX1", txid, txid):
        raise ValueError(f"its object has the header {body[:_HEADER_SIZE].hex()}")
    image.extend(bytes(max(0, size * page_size - len(image))))
    offset = _HEADER_SIZE
    while any(body[offset : offset + _END_OF_PAGES]):
        number, _, length = _PAGE.unpack_from(body, offset)
        offset += _PAGE.size
        page = lz4.block.decompress(body[offset : offset + length], uncompressed_size=page_size)
        offset += length
        image[(number - 1) * page_size : number * page_size] = page
    del image[size * page_size :]
    image[_JOURNAL_MODE] = _ROLLBACK


def _rows(database: sqlite3.Connection, image: bytearray) -> list[Row]:
    database.deserialize(bytes(image))
    if not database.execute("SELECT count(*) FROM sqlite_master WHERE name = 'items'").fetchone()[0]:
        return []
    return list(map(Row._make, database.execute(_ROWS)))


def _add(log: Log, txid: int, rows: Iterable[Row]) -> None:
    log.last = txid
    now, before = set(rows), set(log.rows.values())
    came = sorted(now - before)
    ids = {row.id for row in came}
    for row in sorted(before - now):
        if row.id not in ids:
            log.changes.append(Change(txid, row.id, None))
            del log.rows[row.id]
    for row in came:
        log.changes.append(Change(txid, row.id, row))
        log.rows[row.id] = row
