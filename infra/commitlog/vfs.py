"""SQLite's write-ahead log, watched: a transaction becomes visible only after it was shipped.

In WAL mode with synchronous=FULL SQLite writes a transaction's frames, calls xSync, and only then lets
readers see them. So the header of the commit frame, the last one, is held back: on disk it has no salt and no
checksum, and WAL recovery would not accept it. xSync ships the transaction and then puts the real header down.
When shipping raises, SQLite rolls back, and nothing of the transaction can come back by any way.

Other programs append transactions of their own, which nobody holds back. They are shipped as soon as they are
noticed, at the latest together with the next transaction of this process; `infra/commitlog/anchor.py` says why
they are still there then.
"""

from dataclasses import dataclass
from pathlib import Path

import apsw

from core.errors import DatabaseUnavailable, TransactionTooLarge
from infra.commitlog.commit import Committer
from infra.commitlog.file_state import NOTHING_SHIPPED, Shipped
from infra.commitlog.ltx import lock_page
from infra.commitlog.wal import DATABASE_SIZE, FILE_HEADER, FRAME_HEADER, PAGE_SIZE, SALTS, WalEnd


class ShippingVFS(apsw.VFS):
    """`Connection(path, vfs=this.name)` ships each of its transactions. Close it when no connection is left."""

    def __init__(self, name: str, committer: Committer, sync_locally: bool, base: str = "") -> None:
        """`sync_locally`: whether the files must outlive a power cut. `base`: the VFS below, if not SQLite's own."""
        super().__init__(name, base=base)
        self.name = name
        self._committer = committer
        self._sync_locally = sync_locally
        self._wal: WalFile | None = None
        self._path: Path | None = None
        self._shipped = NOTHING_SHIPPED

    def expect(self, shipped: Shipped) -> None:
        """Say, before the writer connects, what of the WAL that it will find is in the log."""
        self._shipped = shipped
        self._wal = self._path = None

    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:
        """Watch the WAL. Raises DatabaseUnavailable for a second database, and for a rollback journal."""
        if flags[0] & apsw.SQLITE_OPEN_WAL:
            assert isinstance(name, str)
            if self._path not in (None, Path(name)):
                raise DatabaseUnavailable("ATTACH is refused: what is written to another file would not be stored.")
            self._wal = WalFile(name, flags, self._committer, self._shipped, self._sync_locally)
            self._path = Path(name)
            return self._wal
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            raise DatabaseUnavailable("The database must stay in WAL mode: PRAGMA journal_mode is refused.")
        return super().xOpen(name, flags)

    @property
    def shipped(self) -> Shipped:
        """How much of the WAL is in the log."""
        return self._wal.shipped if self._wal else self._shipped

    @property
    def salts(self) -> bytes:
        """Of the WAL as it is now; none after it was emptied."""
        return self._wal.salts() if self._wal else b""

    def ship_frames(self, frames: int) -> None:
        """Ship what other programs have committed, up to the WAL's frame of this number. Raises what
        `Committer.ship` raises.
        """
        assert self._wal
        self._wal.ship_frames(frames)

    def forget(self) -> None:
        """Hold nothing back any more: where no transaction is open, it belongs to one that failed."""
        if self._wal:
            self._wal.forget()

    def close(self) -> None:
        """Unregister it with SQLite."""
        self._wal = None
        self.unregister()


class WalFile(apsw.VFSFile):
    """The WAL as SQLite writes it, but for the commit mark: that follows when the transaction is in the log."""

    def __init__(self, name: str, flags: list[int], committer: Committer, shipped: Shipped, sync_locally: bool) -> None:
        """`shipped`: how much of it is in the log. `sync_locally`: whether it must outlive a power cut."""
        super().__init__("", name, flags)
        self.shipped = shipped
        self._committer = committer
        self._sync_locally = sync_locally
        self._held_back: _CommitMark | None = None
        self._page_size = 0  # bytes; 0 while it was not looked for

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write through, but hold back the header of a transaction's last frame."""
        if offset == 0:  # the WAL begins anew
            super().xWrite(data, offset)
            self._held_back = None
            self._restart(bytes(data))
        elif len(data) == FRAME_HEADER:
            self._write_frame_header(bytes(data), offset)
        else:
            super().xWrite(data, offset)
            if self._held_back and offset == self._held_back.offset + FRAME_HEADER:
                self._held_back.has_page = True
            else:
                self._held_back = None  # a page after the last one: that was a transaction that failed

    def xSync(self, flags: int) -> None:
        """Ship the transaction that SQLite has just written, and only then write its commit mark: now readers see it.

        Only a checkpoint needs the WAL on disk, and syncs it first. A power cut before that takes commits from its end,
        which are in the log. Raises what `Committer.ship` raises, and TransactionTooLarge; SQLite then rolls back.
        """
        mark, self._held_back = self._held_back, None
        if mark and mark.has_page:
            self._follow_restart()
            self._ship(mark.offset, mark.header, self._committer.max_bytes)
            super().xWrite(mark.header, mark.offset)
            self._note_shipped(mark.offset)
        elif self._sync_locally:
            super().xSync(flags)

    def salts(self) -> bytes:
        """Read them from its header: they are others after each time that it was begun anew."""
        return self._header()[SALTS]

    def ship_frames(self, frames: int) -> None:
        """Ship up to the frame of this number, which is the last one of a transaction, whatever its size."""
        self._follow_restart()
        last = FILE_HEADER + (frames - 1) * self._frame_size
        self._ship(last, super().xRead(FRAME_HEADER, last))
        self._note_shipped(last)

    def forget(self) -> None:
        """Hold nothing back any more."""
        self._held_back = None

    def _write_frame_header(self, header: bytes, offset: int) -> None:
        if not any(header[DATABASE_SIZE]):  # not the last frame of its transaction
            super().xWrite(header, offset)
            return
        # SQLite writes headers anew when a page was rewritten in place; the page itself is there by then
        held_back = self._held_back
        rewritten = held_back is not None and held_back.offset == offset and held_back.has_page
        self._held_back = None
        super().xWrite(header[:8] + bytes(FRAME_HEADER - 8), offset)
        self._held_back = _CommitMark(offset, header, rewritten)

    def _ship(self, last: int, header: bytes, max_bytes: int | None = None) -> None:
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
        self._committer.ship(self._page_size, size, pages, WalEnd(self._frames_to(last), header))

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


@dataclass(slots=True)
class _CommitMark:
    """The header of a transaction's last frame, which is held back."""

    offset: int  # of its place in the WAL
    header: bytes
    has_page: bool  # whether the page that belongs to it is written
