"""A database that is opened on the newest snapshot of a log, page by page, and brought on by what has followed."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from core.errors import SnapshotGone
from infra.commitlog.chain import LogObject, Position
from infra.commitlog.log import CommitLog
from infra.commitlog.paging.btrees import newest_leaves
from infra.commitlog.paging.newest_snapshot import NewestSnapshot, Paging, newest_snapshot
from infra.commitlog.paging.paged_file import PagedFile
from infra.commitlog.raw_file import RawFile, write_change
from infra.sqlite_errors import translated_errors

_BLOCK = 512  # bytes, as stat counts what a file takes
_LEAST_ROOM = 16 * 1024 * 1024  # bytes


class PagedDatabase:
    """One private file, and the snapshot below it. Raises what CommitLog raises, and DatabaseError for the file itself;
    whoever reads a page that cannot be had any more gets SnapshotGone.
    """

    def __init__(self, path: Path, log: CommitLog, paging: Paging) -> None:
        self._path = path
        self._log = log
        self._paging = paging
        self._file = PagedFile(path, paging.cache)
        self._snapshot: NewestSnapshot | None = None  # whose pages are read
        self._distrusted = set[LogObject]()  # snapshots whose sidecars are of no use
        self._room = 0  # bytes of changed pages that the file may take before a newer snapshot is looked for

    @property
    def vfs(self) -> str:
        """Through which SQLite has to open the file."""
        return self._file.vfs

    @property
    def snapshot(self) -> LogObject | None:
        """The snapshot whose pages are read; None while the file is as it is on disk."""
        return self._snapshot.item if self._snapshot else None

    def open(self) -> Position | None:
        """Make the file the newest snapshot, without reading more of it than that takes, and return its position; None
        where it is to be restored as a whole. Nobody may have the file open. After an error nobody can open it.
        """
        if self._snapshot and self._snapshot.is_of_another:
            self._distrusted.add(self._snapshot.item)
        self._snapshot = newest_snapshot(self._log.objects, self._paging.above, self._distrusted)
        if self._snapshot is None:
            self._file.end()
            return None
        with translated_errors(self._path):
            self._file.begin(self._snapshot, self._snapshot.fetch)
        self._room = max(self._paging.cache, _LEAST_ROOM)
        return self._snapshot.position

    def follow(self, position: Position) -> Position:
        """Bring the file, which was just opened, from the snapshot's position to the log's head, and return that."""
        assert self._snapshot
        try:
            for change in self._log.changes(position, most=sys.maxsize, is_new=True):
                with closing(change), translated_errors(self._path), RawFile(self._path, self.vfs) as file:
                    position = write_change(file, change, position)
        except SnapshotGone:
            self._distrusted.add(self._snapshot.item)  # what has followed it is only in a newer one
            raise
        return position

    def has_outgrown_its_snapshot(self) -> bool:
        """Ask whether so much of the file was changed that it would take less room on a newer snapshot, and whether
        there is one. The store is asked once for each time that it has grown by a quarter.
        """
        if self._snapshot is None or not self._path.exists():  # the store has failed while it was opened anew
            return False
        taken = self._path.stat().st_blocks * _BLOCK
        if taken <= self._room:
            return False
        self._room = taken * 5 // 4
        newest = self._log.objects.snapshots()[:1]
        return bool(newest) and newest[0][0].max_txid > self._snapshot.item.max_txid

    def read_ahead(self) -> Iterator[None]:
        """Fetch the leaves of each b-tree that hold what is newest, a block at each step. Any thread may."""
        if not self._snapshot:
            return
        try:
            with translated_errors(self._path):
                for number in newest_leaves(self._path, self.vfs):
                    self._file.warm([number])
                    yield
        except ValueError:  # SQLite does not know the VFS of a file that was closed meanwhile
            if self._snapshot:
                raise

    def close(self) -> None:
        """Forget the snapshot, and remove what was kept of it beside the file. Safe to call twice."""
        self._snapshot = None
        self._file.close()
