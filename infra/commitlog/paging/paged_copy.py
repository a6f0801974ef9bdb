"""A copy of the log's newest state that nobody writes."""

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from infra.commitlog.chain import Position, check_follows, write_pages
from infra.commitlog.log import CommitLog
from infra.commitlog.paging.newest_snapshot import NewestSnapshot, Paging, newest_snapshot
from infra.commitlog.paging.paged_file import PagedFile
from infra.commitlog.raw_file import RawFile


@contextmanager
def newest_copy(log: CommitLog, path: Path, paging: Paging | None) -> Iterator[tuple[Position, str]]:
    """Build the newest state in a new file, for as long as the context lasts; a large one page by page.

    Gives where the log ends, and the VFS through which SQLite has to open the file, empty for its own. Raises what
    CommitLog raises, and DatabaseFull; whoever reads a page that cannot be had any more gets SnapshotGone.
    """
    snapshot = newest_snapshot(log.objects, paging.above) if paging else None
    if paging and snapshot:
        with closing(PagedFile(path, paging.cache)) as file:
            yield _paged(log, file, snapshot), file.vfs
    else:
        yield log.restore(path), ""


def _paged(log: CommitLog, paged: PagedFile, snapshot: NewestSnapshot) -> Position:
    paged.begin(snapshot, snapshot.fetch)
    position = snapshot.position
    with RawFile(paged.path, paged.vfs) as file:
        size = file.size()
        for change in log.changes(position, most=sys.maxsize, is_new=True):
            with closing(change):
                check_follows(change.header, position)
                size = write_pages(file, change.header, change.pages(), size)
                position = change.position
    return position
