"""SQLite's file layer over a sparse database file: what is not in it comes from a snapshot."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import apsw

from core.errors import ServiceError
from infra.commitlog.paging.snapshot_pages import SnapshotPages


class PagingVFS(apsw.VFS):
    """Pages the main database at one path; every other file is as it is on disk."""

    def __init__(self, name: str, path: Path) -> None:
        super().__init__(name, base="")
        self.name = name
        self.pages: SnapshotPages | None = None  # without any the file is as it is on disk
        self.is_whole = True  # whether somebody who opens the file would see all of it
        self._path = os.path.realpath(path)  # as SQLite names it

    def xOpen(self, name: "str | apsw.URIFilename | None", flags: list[int]) -> apsw.VFSFile:
        """Open a file of the database's, or another one. Raises apsw.CantOpenError where the file has holes."""
        if name is not None and flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            path = name if isinstance(name, str) else name.filename()
            if os.path.realpath(path) == self._path:
                if not self.is_whole:
                    raise apsw.CantOpenError("the snapshot below the file is not there")
                if self.pages:
                    return PagedDatabaseFile(name, flags, self.pages)
        return super().xOpen(name, flags)


class PagedDatabaseFile(apsw.VFSFile):
    """The database file as SQLite sees it: whole."""

    def __init__(self, name: "str | apsw.URIFilename", flags: list[int], pages: SnapshotPages) -> None:
        super().__init__("", name, flags)
        self._pages = pages

    def xRead(self, amount: int, offset: int) -> bytes:
        """Read from the file or the snapshot. Raises what `Fetch` raises, and LogDamaged."""
        try:
            return self._pages.read(amount, offset, super().xRead)
        except BaseException as error:
            _raise_as_disk_error(error)

    def xWrite(self, data: bytes, offset: int) -> None:
        """Write into the file. Where it fails, a page that was not there yet stays what the snapshot has. Raises as
        `xRead` does.
        """
        try:
            data, offset = self._pages.widened(data, offset, super().xRead)
            super().xWrite(data, offset)
            self._pages.note_written(offset, offset + len(data))
        except BaseException as error:
            _raise_as_disk_error(error)

    def xTruncate(self, newsize: int) -> None:
        """Cut it off, or fill it up with zeros: what was beyond an end never comes back. Raises as `xRead` does."""
        try:
            begun = newsize % self._pages.page_size
            if begun and not self._pages.is_in_file(newsize // self._pages.page_size + 1):
                self.xWrite(self.xRead(begun, newsize - begun), newsize - begun)
            super().xTruncate(newsize)
            self._pages.note_truncated(newsize)
        except BaseException as error:
            _raise_as_disk_error(error)


def _raise_as_disk_error(error: BaseException) -> NoReturn:
    """Raise it so that SQLite takes it for a fault of the disk, as it must.

    Any other it takes for the statement's own: it would leave a transaction open whose changes are half done, and go on
    with pages in memory that it could not restore. An error of ours stays that very one, and is an apsw.IOError too.
    """
    if isinstance(error, ServiceError) and not isinstance(error, apsw.Error):
        error.__class__ = _also_disk_error(type(error))
    if isinstance(error, apsw.Error):
        raise error
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    raise (apsw.FullError if is_full else apsw.IOError)(f"{type(error).__name__}: {error}") from error


def _also_disk_error(kind: type[ServiceError]) -> type[ServiceError]:
    code = {"result": apsw.SQLITE_IOERR, "extendedresult": apsw.SQLITE_IOERR_READ}
    return type(kind.__name__, (kind, apsw.IOError), {"__module__": kind.__module__, "__doc__": kind.__doc__, **code})
