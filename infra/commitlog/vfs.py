"""SQLite's write-ahead log, watched: a transaction becomes visible only after it was shipped.

In WAL mode with synchronous=FULL SQLite writes a transaction's frames, calls xSync, and only then lets
readers see them. So the header of the commit frame, the last one, is held back: on disk it has no salt and no
checksum, and WAL recovery would not accept it. xSync ships the transaction and then puts the real header down.
When shipping raises, SQLite rolls back, and nothing of the transaction can come back by any way.

Source of the format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from collections.abc import Callable, Iterable
from itertools import count

import apsw

from core.errors import DatabaseUnavailable, TransactionTooLarge
from infra.commitlog.ltx import lock_page

_FILE_HEADER = 32
_FRAME_HEADER = 24
_SALTS = slice(16, 24)

# (page size in bytes, size of the database in pages, the changed pages in order)
Ship = Callable[[int, int, Iterable[tuple[int, bytes]]], None]


class WalReset(DatabaseUnavailable):
    """Another program has emptied and restarted the write-ahead log: what it held is not known here."""


class ShippingVFS(apsw.VFS):
    """`Connection(path, vfs=this.name)` ships each of its transactions. Close it when no connection is left."""

    def __init__(self, name: str, ship: Ship, max_bytes: int, sync_locally: bool) -> None:
        """`max_bytes`: the pages of one transaction. `sync_locally`: whether the files must outlive a power cut."""
        super().__init__(name, base="")
        self.name = name
        self._ship = ship
        self._max_bytes = max_bytes
        self._sync_locally = sync_locally
        self._wal: WalFile | None = None

    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            self._wal = WalFile(name, flags, self._ship, self._max_bytes, self._sync_locally)
            return self._wal
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            raise DatabaseUnavailable("The database must stay in WAL mode: PRAGMA journal_mode is refused.")
        return super().xOpen(name, flags)

    @property
    def shipped_frames(self) -> int:
        """Of the WAL as it is now, from its start."""
        return self._wal.shipped if self._wal else 0

    def foreign(self) -> bool:
        """Whether another program has committed to the WAL, or moved it away, since the last shipped commit."""
        try:
            return self._wal is not None and self._wal.foreign()
        except apsw.VFSFileClosedError:  # a refused PRAGMA journal_mode has closed it
            return True

    def forget(self) -> None:
        """Called where no transaction is open: whatever is held back belongs to one that failed."""
        if self._wal:
            self._wal.commit = None

    def close(self) -> None:
        self._wal = None
        self.unregister()


class WalFile(apsw.VFSFile):
    def __init__(
        self,
        name: "str | apsw.URIFilename | None",
        flags: list[int],
        ship: Ship,
        max_bytes: int,
        sync_locally: bool,
    ) -> None:
        super().__init__("", name, flags)
        self.commit: _Commit | None = None
        self._ship = ship
        self._max_bytes = max_bytes
        self._sync_locally = sync_locally
        self._salts = bytes(8)
        self._page_size = 0
        self.shipped = 0  # frames from the start of the file

    def xWrite(self, data: bytes, offset: int) -> None:
        if offset == 0:
            if self.foreign():
                raise WalReset("Another program has written to the database and moved that into the file.")
            super().xWrite(data, offset)
            self.commit = None
            self._salts = bytes(data[_SALTS])
            self._page_size = int.from_bytes(data[8:12], "big")
            self.shipped = 0
        elif len(data) == _FRAME_HEADER:
            self._write_frame_header(bytes(data), offset)
        else:
            super().xWrite(data, offset)
            if self.commit and offset == self.commit.offset + _FRAME_HEADER:
                self.commit.complete = True
            else:
                self.commit = None  # a page after the last one: that was a transaction that failed

    def foreign(self) -> bool:
        salts = super().xRead(_FILE_HEADER, 0)[_SALTS]
        if salts != self._salts:
            return bool(salts) or self._salts != bytes(8)
        for offset in count(self._first_unshipped, self._frame_size):
            header = super().xRead(_FRAME_HEADER, offset)
            if header[8:16] != salts:  # the end, a commit held back, or an older round's
                return False
            if header[4:8] != bytes(4):
                return True
        raise AssertionError("unreachable")

    def xSync(self, flags: int) -> None:
        commit, self.commit = self.commit, None
        if self._sync_locally:
            super().xSync(flags)
        if commit and commit.complete:
            self._ship_frames(commit)
            super().xWrite(commit.header, commit.offset)
            self.shipped = (commit.offset - _FILE_HEADER) // self._frame_size + 1

    def _write_frame_header(self, header: bytes, offset: int) -> None:
        size = int.from_bytes(header[4:8], "big")
        if not size:  # not the last frame of its transaction
            super().xWrite(header, offset)
            return
        # SQLite writes headers anew when a page was rewritten in place; the page itself is there by then
        rewritten = self.commit is not None and self.commit.offset == offset and self.commit.complete
        self.commit = None
        super().xWrite(header[:8] + bytes(_FRAME_HEADER - 8), offset)
        self.commit = _Commit(offset, header, size, rewritten)

    def _ship_frames(self, commit: "_Commit") -> None:
        if super().xRead(_FILE_HEADER, 0)[_SALTS] != self._salts:
            raise WalReset("Another program has restarted the database's write-ahead log.")
        offsets: dict[int, int] = {}
        for offset in range(self._first_unshipped, commit.offset + 1, self._frame_size):
            number = int.from_bytes(super().xRead(4, offset), "big")
            if number <= commit.size:
                offsets[number] = offset + _FRAME_HEADER  # the last image of a page is the one that counts
        offsets.pop(lock_page(self._page_size), None)
        if len(offsets) * self._page_size > self._max_bytes:
            raise TransactionTooLarge(
                f"The transaction changes {len(offsets) * self._page_size} bytes of pages; at most "
                f"{self._max_bytes} fit into one commit. Nothing was stored; do it in several transactions."
            )
        read = super().xRead
        pages = ((number, read(self._page_size, offset)) for number, offset in sorted(offsets.items()))
        self._ship(self._page_size, commit.size, pages)

    @property
    def _frame_size(self) -> int:
        return _FRAME_HEADER + self._page_size

    @property
    def _first_unshipped(self) -> int:
        """The offset of the frame after the last one that was shipped."""
        return _FILE_HEADER + self.shipped * self._frame_size


class _Commit:
    """A commit frame whose header is held back."""

    __slots__ = ("complete", "header", "offset", "size")

    def __init__(self, offset: int, header: bytes, size: int, complete: bool) -> None:
        self.offset = offset
        self.header = header
        self.size = size  # of the database, pages
        self.complete = complete  # whether its page is written
