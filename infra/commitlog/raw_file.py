"""A database file's bytes, past SQLite's pages but through its file layer.

Plain open() and close() would drop the locks that this process has on the file.
"""

from collections.abc import Iterator
from itertools import count, zip_longest
from pathlib import Path
from types import TracebackType

import apsw

from infra.commitlog.chain import Change, Position, check_follows, write_pages
from infra.commitlog.ltx import lock_page

_PAGES_AT_A_TIME = 64


class RawFile:
    """Reads and writes one file, as much as is asked for, at an offset of its own in bytes. Raises apsw.Error."""

    def __init__(self, path: Path, vfs: str = "") -> None:
        """`vfs`: the one to open it through, if not SQLite's own."""
        flags = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE
        self._file = apsw.VFSFile(vfs, str(path), [flags, 0])
        self._offset = 0

    def __enter__(self) -> "RawFile":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.xClose()

    def seek(self, offset: int, /) -> int:
        """Go to an offset from the start, in bytes."""
        self._offset = offset
        return offset

    def size(self) -> int:
        """Return how long it is, in bytes."""
        return self._file.xFileSize()

    def read(self, size: int) -> bytes:
        """Read so many bytes; fewer, or none, at the end."""
        size = min(size, max(self.size() - self._offset, 0))
        data = self._file.xRead(size, self._offset) if size else b""
        self._offset += len(data)
        return data

    def write(self, data: bytes, /) -> int:
        """Write where the last call has ended."""
        self._file.xWrite(data, self._offset)
        self._offset += len(data)
        return len(data)

    def truncate(self, size: int, /) -> int:
        """Cut it off after so many bytes, or fill it up with zeros."""
        self._file.xTruncate(size)
        return size

    def sync(self) -> None:
        """Wait until all of it is on disk."""
        self._file.xSync(apsw.SQLITE_SYNC_NORMAL)


def page_size_of(path: Path) -> int:
    """Read it from the header, in bytes; see https://www.sqlite.org/fileformat2.html#page_size."""
    with RawFile(path) as file:
        size = int.from_bytes(file.read(18)[16:], "big")
    return 65536 if size == 1 else size


def write_change(file: RawFile, change: Change, position: Position) -> Position:
    """Bring a database file from a position of the log to the one after a change, and return that. Raises LogDamaged
    for a change that does not follow.
    """
    check_follows(change.header, position)
    write_pages(file, change.header, change.pages(), file.size())
    return change.position


def pages_of(path: Path, page_size: int) -> Iterator[tuple[int, bytes]]:
    """Read every page but the lock page, with its number."""
    with RawFile(path) as file:
        numbers = count(1)
        while some := file.read(_PAGES_AT_A_TIME * page_size):
            for begin in range(0, len(some), page_size):
                if (number := next(numbers)) != lock_page(page_size):
                    yield number, some[begin : begin + page_size]


def differing_pages(mine: Path, other: Path, page_size: int) -> list[int]:
    """Compare two files; returns the numbers of the pages that are not the same in both, or are in one only."""
    pairs = zip_longest(pages_of(mine, page_size), pages_of(other, page_size))
    return [(one or two or (0, b""))[0] for one, two in pairs if one != two]
