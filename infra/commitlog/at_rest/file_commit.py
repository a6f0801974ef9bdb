"""What is in a database file, as a commit of the log."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import apsw

from infra.clock import Clock
from infra.commitlog.chain import START, Position
from infra.commitlog.log import CommitLog
from infra.commitlog.raw_file import differing_pages, page_size_of, pages_of

START_SECONDS = 60.0  # how long a start tries to store what it must store


@dataclass(frozen=True, slots=True)
class Difference:
    """The numbers of the pages that are not the same in a file and in an image of the log, or are in one only."""

    pages: list[int]
    page_size: int  # bytes, in the file
    has_the_logs: bool  # pages of the size that the log has, which never changes


class FileCommits:
    """Makes commits of one file, which has no WAL and which nobody changes meanwhile. `connection`: one that reads it.

    Raises what `CommitLog.append` raises.
    """

    def __init__(self, path: Path, log: CommitLog, clock: Clock) -> None:
        self._path = path
        self._log = log
        self._clock = clock

    def difference(self, connection: apsw.Connection, image: Path) -> Difference:
        """Compare the file with an image of the log."""
        page_size = int(connection.pragma("page_size"))
        return Difference(differing_pages(self._path, image, page_size), page_size, page_size == page_size_of(image))

    def append_first(self, connection: apsw.Connection) -> Position:
        """Begin the log with all of the file."""
        page_size = int(connection.pragma("page_size"))
        return self._append(START, page_size, pages_of(self._path, page_size))

    def append_next(self, head: Position, difference: Difference) -> Position:
        """Commit what differs from the log at `head`, which has pages of the same size."""
        assert difference.has_the_logs
        wanted, page_size = set(difference.pages), difference.page_size
        pages = ((number, page) for number, page in pages_of(self._path, page_size) if number in wanted)
        return self._append(head, page_size, pages)

    def _append(self, position: Position, page_size: int, pages: Iterable[tuple[int, bytes]]) -> Position:
        size = self._path.stat().st_size // page_size
        return self._log.append(position, page_size, size, pages, self._clock.now() + START_SECONDS)
