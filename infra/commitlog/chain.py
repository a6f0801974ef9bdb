"""Objects of the log and how they follow each other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from tempfile import SpooledTemporaryFile
from typing import Protocol

from core.errors import LogDamaged
from infra.commitlog import ltx

_CHUNK = 1024 * 1024  # bytes
IN_MEMORY = 16 * _CHUNK
_WRITTEN_AT_ONCE = 65536  # bytes; SQLite's file layer takes fewer than 128 KiB, and calls the disk full at more
MOST_ABSENT = 1024 * _CHUNK  # bytes that an object may add to a database without having them; SQLite writes nearly all


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log: after commit `txid`."""

    txid: int
    checksum: int  # of that commit's file, 0 when unknown
    timestamp: int  # of that commit, milliseconds since 1970
    log_id: int = 0  # of the log, 0 when unknown


START = Position(0, 0, 0)


@dataclass(frozen=True, slots=True)
class LogObject:
    """An object under its name in the store, with what a listing tells of it: commits `min_txid` to `max_txid`."""

    level: int
    min_txid: int
    max_txid: int
    size: int  # bytes
    modified: datetime  # by the store's clock
    dated: datetime | None = None  # by the writer's, if a listing has that: chmod and cp leave it as it is


class Change:
    """An object that was read to its end, checked, and may be applied. Whoever gets one closes it."""

    def __init__(self, chunks: Iterable[bytes], level: int, in_memory: int = IN_MEMORY) -> None:
        self._body = SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115  # lives as long as this object
        try:
            reader = ltx.Reader(self._copied(chunks))
            for _ in reader.pages():
                pass
        except BaseException:
            self._body.close()
            raise
        self.size = self._body.tell()  # bytes
        self.header = reader.header
        self.position = position_after(reader, level)

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield page number and content, ascending; may be called again."""
        return ltx.Reader(self.chunks()).pages()

    def chunks(self) -> Iterator[bytes]:
        """Yield its bytes in their order; may be called again."""
        self._body.seek(0)
        return iter(lambda: self._body.read(_CHUNK), b"")

    def close(self) -> None:
        """Let go of the memory, or the temporary file, that it takes."""
        self._body.close()

    def _copied(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._body.write(chunk)
            yield chunk


def chain(objects: list[LogObject], after: int) -> list[LogObject]:
    """Return the fewest objects that lead on from TXID `after` without a gap; of equals, the smallest."""
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


def end_of(links: list[LogObject], after: int = 0) -> int:
    """Return the TXID that a chain leads to; `after` if it has no link."""
    return links[-1].max_txid if links else after


def newest_in(objects: list[LogObject]) -> int:
    """Return the largest TXID that any of them holds, whatever leads there; 0 for none."""
    return max((item.max_txid for item in objects), default=0)


def restorable(objects: list[LogObject]) -> list[LogObject]:
    """Return one object for each TXID at which the database can be restored, in their order; each ends there.

    Of the commits only those count that lead to the newest one: what lies before a gap may have been created after
    its number was free again.
    """
    commits = sorted((item for item in objects if not item.level), key=lambda item: item.max_txid)
    gaps = [n for n in range(1, len(commits)) if commits[n].max_txid != commits[n - 1].max_txid + 1]
    candidates = [item for item in objects if item.level] + commits[gaps[-1] if gaps else 0 :]
    result: list[LogObject] = []
    end = 0
    for item in sorted(candidates, key=lambda item: (item.max_txid, -item.level)):
        if item.min_txid <= end + 1 <= item.max_txid:
            result.append(item)
            end = item.max_txid
    return result


def write_pages(file: "BinaryFile", header: ltx.Header, pages: Iterable[tuple[int, bytes]], before: int) -> int:
    """Bring a database file from the state before an object's transactions to the one after. `before`: its size then,
    bytes; returns its size now.

    Raises LogDamaged when that is far more than the object has: a hole in a file costs nothing, but whoever reads it.
    """
    page_size = header.page_size
    held, end = before, -1
    run: list[bytes] = []  # pages that follow each other, to be written in one piece
    for number, page in pages:
        begin = (number - 1) * page_size
        held += page_size
        check_absent(begin - held)
        if begin != end:
            _write_run(file, run)
            file.seek(begin)
        run.append(page)
        end = begin + page_size
        if len(run) * page_size >= _WRITTEN_AT_ONCE:
            _write_run(file, run)
    _write_run(file, run)
    size = header.size * page_size
    check_absent(size - held)
    file.truncate(size)
    return size


def _write_run(file: "BinaryFile", run: list[bytes]) -> None:
    if run:
        file.write(b"".join(run))
        run.clear()


def check_absent(size: int) -> None:
    """Raise LogDamaged when so many bytes are more than an object may leave out."""
    if size > MOST_ABSENT:
        raise LogDamaged(f"makes the database {size:,} bytes longer than what it holds")


def check_follows(header: ltx.Header, position: Position) -> None:
    """Raise LogDamaged unless an object with this header can be applied at this position: it holds the next commit, is
    of the same log and, if it begins with that commit, names the one before. What is unknown (0) is not compared.
    """
    if not header.min_txid <= position.txid + 1 <= header.max_txid:
        raise LogDamaged(f"holds TXID {header.min_txid}-{header.max_txid}, which does not follow {position.txid}")
    if header.log_id and position.log_id and header.log_id != position.log_id:
        raise LogDamaged(f"is of the log {header.log_id:016x}, but what is before it is of {position.log_id:016x}")
    comparable = header.min_txid == position.txid + 1 and header.predecessor and position.checksum
    if comparable and header.predecessor != position.checksum:
        raise LogDamaged(
            f"follows a commit with the checksum {header.predecessor:016x}, but the one before it has "
            f"{position.checksum:016x}: it belongs to another history"
        )


def is_made_on(header: ltx.Header, position: Position) -> bool:
    """Ask whether an object says that its first commit was made on top of this very one."""
    return header.min_txid == position.txid + 1 and header.predecessor == position.checksum


class BinaryFile(Protocol):
    """What a database's pages are written to: a file, or SQLite's own layer below it."""

    def seek(self, offset: int, /) -> int: ...
    def write(self, data: bytes, /) -> int: ...
    def truncate(self, size: int, /) -> int: ...


def position_after(reader: ltx.Reader, level: int) -> Position:
    """Return where an object of this level leads to; it must have been read to its end."""
    header = reader.header
    checksum = header.node_id if level else reader.checksum
    return Position(header.max_txid, checksum, header.timestamp, header.log_id)
