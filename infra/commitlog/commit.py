"""A transaction's way into the log, from the moment at which SQLite has written it to the WAL."""

from collections.abc import Iterable

from infra.clock import Clock
from infra.commitlog.chain import START
from infra.commitlog.fairness import Fairness
from infra.commitlog.log import CommitLog
from infra.commitlog.position_file import PositionFile
from infra.commitlog.wal import WalEnd

MAX_TRANSACTION_BYTES = 256 * 1024 * 1024


class Committer:
    """Ships one transaction after the other, each on top of the commit that the file is at."""

    def __init__(self, log: CommitLog, position_file: PositionFile, clock: Clock, fairness: Fairness) -> None:
        self.position = START  # of the log, as far as the file has it
        self.deadline = 0.0  # by the clock: how long storing is tried
        self.max_bytes = MAX_TRANSACTION_BYTES  # of the pages that one transaction of this process changes
        self._log = log
        self._position_file = position_file
        self._clock = clock
        self._fairness = fairness

    def ship(self, page_size: int, size: int, pages: Iterable[tuple[int, bytes]], end: WalEnd) -> None:
        """Store the next commit, then note beside the file that it is at it.

        `page_size`: bytes. `size`: of the database, in pages. `pages`: those that have changed, by number in ascending
        order. `end`: where the WAL has them. Raises what `CommitLog.append` raises, OSError when the note cannot be
        written: then the commit is stored all the same.
        """
        started = self._clock.now()
        self.position = self._log.append(self.position, page_size, size, pages, self.deadline)
        self._fairness.stored(self._clock.now() - started)
        self._position_file.note(self.position, end)

    def note_checkpoint(self) -> None:
        """Take down that the file has every commit up to its position without its WAL; the next note says so."""
        self._position_file.checkpointed = self.position.txid
