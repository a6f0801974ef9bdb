"""SQLite's write-ahead log, watched: a transaction becomes visible only after it was shipped.

In WAL mode with synchronous=FULL SQLite writes a transaction's frames, calls xSync, and only then lets
readers see them. So the header of the commit frame, the last one, is held back: on disk it has no salt and no
checksum, and WAL recovery would not accept it. xSync ships the transaction and then puts the real header down.
When shipping raises, SQLite rolls back, and nothing of the transaction can come back by any way.

Other programs append transactions of their own, which nobody holds back. They are shipped as soon as they are
noticed, at the latest together with the next transaction of this process; `infra/commitlog/anchor.py` says why
they are still there then.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import apsw

from core.errors import DatabaseUnavailable, TransactionTooLarge
from infra.commitlog.file_state import NOTHING_SHIPPED, Shipped
from infra.commitlog.ltx import lock_page
from infra.commitlog.position_file import WalEnd
from infra.commitlog.wal import DATABASE_SIZE, FILE_HEADER, FRAME_HEADER, PAGE_SIZE, SALTS

# (page size in bytes, size of the database in pages, the changed pages in order, where the WAL has them then)
Ship = Callable[[int, int, Iterable[tuple[int, bytes]], WalEnd], None]


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
        self._path: Path | None = None
        self._shipped = NOTHING_SHIPPED

    def expect(self, shipped: Shipped) -> None:
        """Called before the writer connects: what of the WAL that it will find is in the log."""
        self._shipped = shipped
        self._wal = self._path = None

    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            assert isinstance(name, str)
            if self._path not in (None, Path(name)):
                raise DatabaseUnavailable("ATTACH is refused: what is written to another file would not be stored.")
            self._wal = WalFile(name, flags, self._ship, self._max_bytes, self._sync_locally)
            self._wal.shipped = self._shipped
            self._path = Path(name)
            return self._wal
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            raise DatabaseUnavailable("The database must stay in WAL mode: PRAGMA journal_mode is refused.")
        return super().xOpen(name, flags)

    @property
    def shipped(self) -> Shipped:
        return self._wal.shipped if self._wal else self._shipped

    @property
    def salts(self) -> bytes:
        """Of the WAL as it is now; none after it was emptied."""
        return self._wal.salts() if self._wal else b""

    def unshipped(self, count: Callable[[], int]) -> int:
        """Frames of the WAL, if other programs have committed any that are not in the log, or 0.

        `count` asks SQLite how many committed frames there are now.
        """
        return self._wal.unshipped(count) if self._wal else 0

    def ship_foreign(self, frames: int) -> None:
        """Ship all that `unshipped` has found. Raises what `ship` raises."""
        assert self._wal
        self._wal.ship_foreign(frames)

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
        name: str,
        flags: list[int],
        ship: Ship,
        max_bytes: int,
        sync_locally: bool,
    ) -> None:
        super().__init__("", name, flags)
        self.commit: _Commit | None = None
        self.shipped = NOTHING_SHIPPED
        self._ship = ship
        self._max_bytes = max_bytes
        self._sync_locally = sync_locally
        self._page_size = 0

    def xWrite(self, data: bytes, offset: int) -> None:
        if offset == 0:  # the WAL begins anew
            super().xWrite(data, offset)
            self.commit = None
            self._restart(bytes(data))
        elif len(data) == FRAME_HEADER:
            self._write_frame_header(bytes(data), offset)
        else:
            super().xWrite(data, offset)
            if self.commit and offset == self.commit.offset + FRAME_HEADER:
                self.commit.complete = True
            else:
                self.commit = None  # a page after the last one: that was a transaction that failed

    def xSync(self, flags: int) -> None:
        commit, self.commit = self.commit, None
        if self._sync_locally:
            super().xSync(flags)
        if commit and commit.complete:
            self._follow_restart()
            self._ship_frames(commit.offset, commit.header, self._max_bytes)
            super().xWrite(commit.header, commit.offset)
            self._note_shipped(commit.offset)

    def salts(self) -> bytes:
        return self._header()[SALTS]

    def unshipped(self, count: Callable[[], int]) -> int:
        while True:
            salts = self.salts()
            frames = count()
            if frames <= 0:
                return 0
            if self.salts() == salts:  # or another program has begun the WAL anew in between
                return frames if Shipped(salts, frames) != self.shipped else 0

    def ship_foreign(self, frames: int) -> None:
        self._follow_restart()
        last = FILE_HEADER + (frames - 1) * self._frame_size
        self._ship_frames(last, super().xRead(FRAME_HEADER, last))
        self._note_shipped(last)

    def _write_frame_header(self, header: bytes, offset: int) -> None:
        if not any(header[DATABASE_SIZE]):  # not the last frame of its transaction
            super().xWrite(header, offset)
            return
        # SQLite writes headers anew when a page was rewritten in place; the page itself is there by then
        rewritten = self.commit is not None and self.commit.offset == offset and self.commit.complete
        self.commit = None
        super().xWrite(header[:8] + bytes(FRAME_HEADER - 8), offset)
        self.commit = _Commit(offset, header, rewritten)

    def _ship_frames(self, last: int, header: bytes, max_bytes: int | None = None) -> None:
        """What is not shipped yet, up to the frame at offset `last`, which has or will have this header."""
        size = int.from_bytes(header[DATABASE_SIZE], "big")
        offsets: dict[int, int] = {}
        for offset in range(FILE_HEADER + self.shipped.frames * self._frame_size, last + 1, self._frame_size):
            number = int.from_bytes(super().xRead(4, offset), "big")
            if number <= size:
                offsets[number] = offset + FRAME_HEADER  # the last image of a page is the one that counts
        offsets.pop(lock_page(self._page_size), None)
        if max_bytes is not None and len(offsets) * self._page_size > max_bytes:
            raise TransactionTooLarge(
                f"The transaction changes {len(offsets) * self._page_size} bytes of pages; at most "
                f"{max_bytes} fit into one commit. Nothing was stored; do it in several transactions."
            )
        read = super().xRead
        pages = ((number, read(self._page_size, offset)) for number, offset in sorted(offsets.items()))
        self._ship(self._page_size, size, pages, WalEnd(self._frames_to(last), header))

    def _note_shipped(self, last: int) -> None:
        self.shipped = Shipped(self.shipped.salts, self._frames_to(last))

    def _frames_to(self, last: int) -> int:
        return (last - FILE_HEADER) // self._frame_size + 1

    def _follow_restart(self) -> None:
        """Another program may have begun the WAL anew, but only after all of the old one was shipped."""
        header = self._header()
        if header[SALTS] != self.shipped.salts or not self._page_size:
            frames = self.shipped.frames if header[SALTS] == self.shipped.salts else 0
            self._restart(header, frames)

    def _restart(self, header: bytes, frames: int = 0) -> None:
        self.shipped = Shipped(header[SALTS], frames)
        self._page_size = int.from_bytes(header[PAGE_SIZE], "big")

    def _header(self) -> bytes:
        return super().xRead(FILE_HEADER, 0)

    @property
    def _frame_size(self) -> int:
        return FRAME_HEADER + self._page_size


class _Commit:
    """A commit frame whose header is held back."""

    __slots__ = ("complete", "header", "offset")

    def __init__(self, offset: int, header: bytes, complete: bool) -> None:
        self.offset = offset
        self.header = header
        self.complete = complete  # whether its page is written
