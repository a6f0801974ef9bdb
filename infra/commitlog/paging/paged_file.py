"""A database file of which only those pages are here that were asked for or written."""

from collections.abc import Iterable
from itertools import count
from pathlib import Path

import apsw

from infra.commitlog.paging.block_source import Fetch, Index
from infra.commitlog.paging.page_cache import PageCache
from infra.commitlog.paging.paging_vfs import PagingVFS
from infra.commitlog.paging.snapshot_pages import SnapshotPages
from infra.sqlite_errors import translated_errors

_vfs_numbers = count(1)


class PagedFile:
    """A sparse file with the pages that were written since the snapshot, and beside it a cache with some of the others.

    Only this process can read it, by way of `vfs`: for anybody else it has holes.
    """

    def __init__(self, path: Path, cache_bytes: int) -> None:
        """`cache_bytes`: how much room the pages of the snapshot may take on disk."""
        self.path = path
        self._cache_path = path.with_name(path.name + ".pages")
        self._cache_bytes = cache_bytes
        self._vfs = PagingVFS(f"paging-{next(_vfs_numbers)}", path)

    @property
    def vfs(self) -> str:
        """The name under which SQLite knows it."""
        return self._vfs.name

    def begin(self, index: Index, fetch: Fetch) -> None:
        """Make the file what the snapshot is, and forget all of before. No connection may be open, and no WAL be there.

        Raises DatabaseFull, DatabaseUnavailable; then nobody can open it until this has been done again.
        """
        self._forget()
        self._vfs.is_whole = False
        page_size = index.header.page_size
        with translated_errors(self.path):
            flags = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
            file = apsw.VFSFile("", str(self.path), [flags, 0])
            try:
                file.xTruncate(0)
                file.xTruncate(index.header.size * page_size)
            finally:
                file.xClose()
            cache = PageCache(self._cache_path, index.pages_per_block * page_size, self._cache_bytes)
        self._vfs.pages = SnapshotPages(index, fetch, cache)
        self._vfs.is_whole = True

    def warm(self, numbers: Iterable[int]) -> None:
        """Bring the blocks of these pages into the cache if they are not there; any thread may. Raises what the fetch
        raises; a damaged block is left to whoever reads it.
        """
        if pages := self._vfs.pages:
            # What was added since the snapshot, or is no page at all, is in no block
            pages.warm(pages.index.block_of(number) for number in numbers if not pages.is_in_file(number))

    def end(self) -> None:
        """Forget the snapshot: from now on the file is as it is on disk. No connection may be open."""
        self._forget()
        self._vfs.is_whole = True

    def close(self) -> None:
        """Forget the snapshot, remove the cache, and unregister with SQLite. Safe to call twice."""
        self._forget()
        self._vfs.unregister()

    def _forget(self) -> None:
        pages, self._vfs.pages = self._vfs.pages, None
        if pages:
            pages.close()
