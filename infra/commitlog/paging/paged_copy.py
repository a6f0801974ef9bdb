"""A copy of the log's newest state that nobody writes."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from infra.commitlog.chain import Position
from infra.commitlog.log import CommitLog
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.paging.paged_database import PagedDatabase


@contextmanager
def newest_copy(log: CommitLog, path: Path, paging: Paging | None) -> Iterator[tuple[Position, str]]:
    """Build the newest state in a new file, for as long as the context lasts; a large one page by page.

    Gives where the log ends, and the VFS through which SQLite has to open the file, empty for its own. Raises what
    CommitLog raises, and DatabaseFull; whoever reads a page that cannot be had any more gets SnapshotGone.
    """
    if paging:
        with closing(PagedDatabase(path, log, paging)) as pages:
            if position := pages.open():
                yield pages.follow(position), pages.vfs
                return
    yield log.restore(path), ""
