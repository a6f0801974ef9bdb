"""Objects of the log and how they follow each other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import Protocol

from core.errors import LogDamaged
from infra.commitlog import ltx

_CHUNK = 1024 * 1024  # bytes
_IN_MEMORY = 16 * _CHUNK


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log: after commit `txid`."""

    txid: int
    checksum: int  # of that commit's file, 0 when unknown
    timestamp: int  # of that commit, milliseconds since 1970


START = Position(0, 0, 0)


@dataclass(frozen=True, slots=True)
class LogObject:
    level: int
    min_txid: int
    max_txid: int
    size: int  # bytes
    modified: datetime  # by the store's clock


class Change:
    """An object that was read to its end, checked, and may be applied. Whoever gets one closes it."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._body = SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  # lives as long as this object
        try:
            reader = ltx.Reader(self._copied(chunks))
            for _ in reader.pages():
                pass
        except BaseException:
            self._body.close()
            raise
        self.size = self._body.tell()  # bytes
        self.header = reader.header
        self.position = position_after(reader)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        self._body.seek(0)
        return ltx.Reader(iter(lambda: self._body.read(_CHUNK), b"")).pages()

    def close(self) -> None:
        self._body.close()

    def _copied(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._body.write(chunk)
            yield chunk


def chain(objects: list[LogObject], after: int) -> list[LogObject]:
    """The fewest objects that lead on from TXID `after` without a gap; of equals, the smallest."""
    result: list[LogObject] = []
    waiting = sorted(objects, key=lambda item: item.min_txid, reverse=True)
    best: LogObject | None = None
    end = after
    while True:
        while waiting and waiting[-1].min_txid <= end + 1:
            item = waiting.pop()
            if best is None or (item.max_txid, -item.size) > (best.max_txid, -best.size):
                best = item
        if best is None or best.max_txid <= end:
            return result
        result.append(best)
        end = best.max_txid


def write_pages(file: "BinaryFile", header: ltx.Header, pages: Iterable[tuple[int, bytes]]) -> None:
    """Bring a database file from the state before an object's transactions to the one after."""
    for number, page in pages:
        file.seek((number - 1) * header.page_size)
        file.write(page)
    file.truncate(header.size * header.page_size)


def check_follows(header: ltx.Header, position: Position) -> None:
    if not header.min_txid <= position.txid + 1 <= header.max_txid:
        raise LogDamaged(f"holds TXID {header.min_txid}-{header.max_txid}, which does not follow {position.txid}")
    comparable = header.min_txid == position.txid + 1 and header.predecessor and position.checksum
    if comparable and header.predecessor != position.checksum:
        raise LogDamaged(
            f"follows a commit with the checksum {header.predecessor:016x}, but the one before it has "
            f"{position.checksum:016x}: it belongs to another history"
        )


class BinaryFile(Protocol):
    def seek(self, offset: int, /) -> int: ...
    def write(self, data: bytes, /) -> int: ...
    def truncate(self, size: int, /) -> int: ...


def position_after(reader: ltx.Reader) -> Position:
    header = reader.header
    single = header.min_txid == header.max_txid
    return Position(header.max_txid, reader.checksum if single else header.node_id, header.timestamp)
