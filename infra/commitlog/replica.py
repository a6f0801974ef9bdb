"""The SQLite file of one instance: a copy of the log that takes part in writing it."""

import logging
import random
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core import errors
from infra.clock import Clock
from infra.commitlog.chain import START, Change, Position
from infra.commitlog.local_file import LocalFile
from infra.commitlog.log import CommitLog
from infra.commitlog.note import state_of
from infra.commitlog.turns import Turns
from infra.commitlog.vfs import ShippingVFS, WalReset
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

MAX_TRANSACTION_BYTES = 256 * 1024 * 1024
_CLOCK_TOLERANCE_MS = 15 * 60 * 1000
_BATCH = 256
_LOOK_FURTHER = 4  # lost numbers
_CHECKPOINT_FRAMES = 1000  # SQLite's own default
_PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
_vfs_numbers = count(1)


class Replica:
    """Two connections to a file that is a prefix of the log: one that writes, one that reads.

    Everything but `reader` and `visible` belongs to one thread. Raises what CommitLog raises,
    and DatabaseError when the file itself cannot be used.
    """

    def __init__(
        self,
        path: Path,
        log: CommitLog,
        clock: Clock,
        *,
        lasting: bool,
        busy_timeout: float = 5.0,
        rng: random.Random | None = None,
        swap: Callable[[Callable[[], None]], None] = lambda change: change(),
    ) -> None:
        """`lasting`: the file outlives this process. `swap` runs what replaces the file under the connections, at a
        moment when nobody is reading.
        """
        self.path = path
        self.log = log
        self.visible = START  # the newest commit that readers see
        self._position = START  # of the log, as far as this instance has it
        self._clock = clock
        self._turns = Turns(clock, rng or random.SystemRandom())
        self._swap = swap
        self._file = LocalFile(path, log, clock, lasting=lasting, busy_timeout=busy_timeout)
        self._deadline = 0.0
        self._inode = 0
        self._unshipped = False
        self._whole = False  # whether file and connections are what `_position` says
        self._vfs = ShippingVFS(f"commitlog-{next(_vfs_numbers)}", self._ship, MAX_TRANSACTION_BYTES, lasting)
        self.writer = APSWDatabase(
            str(path), pragmas=_PRAGMAS, timeout=busy_timeout, thread_safe=False, vfs=self._vfs.name
        )
        # Its waits happen on the event loop, between tries, so SQLite itself must not wait
        self._reader: peewee.Database = APSWDatabase(
            str(path), pragmas={**_PRAGMAS, "query_only": 1}, timeout=0, thread_safe=False
        )

    @property
    def reader(self) -> peewee.Database:
        """The connection that reads. Raises DatabaseUnavailable while the file is not what `visible` says."""
        if not self._whole:
            raise errors.DatabaseUnavailable(f"{self.path} is being brought in order; try again.")
        return self._reader

    def open(self) -> None:
        """Bring the file to the log's head and connect to it."""
        self._settle()
        if self.visible.timestamp > self._clock.timestamp() + _CLOCK_TOLERANCE_MS:
            logger.error(
                "%s: the newest commit is of %s, which is ahead of this machine's clock; one of the clocks is wrong, "
                "and a restore to a moment between may miss by as much",
                self.log.url,
                datetime.fromtimestamp(self.visible.timestamp / 1000, UTC).isoformat(),
            )

    def close(self) -> None:
        """Move the WAL into the file and note that it is whole. Safe to call twice."""
        whole = self._whole and not self._vfs.foreign()
        self._disconnect()
        self._vfs.close()
        self._file.close(self._position if whole else None)

    def write(self, use_case: UseCase[T], deadline: float, not_before: float, txid: int = 0) -> T:
        """Run in a transaction; when this returns, its commit is in the log.

        A conflict runs the use case again on the new state, until `deadline`. One that commits nothing is a read:
        it answers from a state as `refresh` would have it (both times by the clock).
        """
        self._turns.before_first_attempt()
        for conflicts in count(1):
            before = self._position
            failure: Exception | None = None
            try:
                result = self._transaction(use_case, deadline)
            except errors.CommitConflict as error:
                if self._clock.now() >= deadline:
                    raise errors.CommitNotStored("Other instances were faster every time.") from error
                # The commit that was lost to is all that is known to be new; asking for more would take another turn
                self.catch_up(None if conflicts % _LOOK_FURTHER == 0 else 1)
                self._turns.lost(conflicts)
                continue
            except WalReset as error:
                logger.warning("%s was changed by another program; comparing it with the log", self.path)
                self._settle()
                if self._clock.now() >= deadline:
                    raise errors.DatabaseLocked("Another program kept changing the database.") from error
                continue
            except (errors.DatabaseError, errors.StoreError, errors.CommitError):
                raise
            except Exception as error:
                failure = error
            if self._position == before and self.refresh(not_before, txid):
                continue
            if failure:
                raise failure
            return result
        raise AssertionError("unreachable")

    def refresh(self, not_before: float, txid: int = 0) -> bool:
        """See to it that the log's head was known after `not_before`; returns whether there was anything new.

        Raises TxidNotReached when the log does not reach as far as `txid`.
        """
        if self.is_fresh(not_before, txid):
            return False
        moved = self.catch_up()
        self.check_reached(txid)
        return moved

    def check_reached(self, txid: int) -> None:
        if self.visible.txid < txid:
            raise errors.TxidNotReached(
                f"The log ends at TXID {self.visible.txid:016x}; {txid:016x} was never acknowledged by it."
            )

    def is_fresh(self, not_before: float, txid: int = 0) -> bool:
        shown = self.visible.txid
        return self._whole and self.log.verified_at(shown) >= not_before and shown >= txid

    def is_current(self) -> bool:
        """Ask the store whether what readers see is the newest; any thread may, while another one writes."""
        return self._whole and self.log.is_head(self.visible)

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened.

        After `rm` or `mv` SQLite would go on writing to a file that nobody can find any more.
        """
        found = state_of(self.path)
        if self._whole and (found is None or found.inode != self._inode):
            raise errors.DatabaseUnavailable(
                f"{self.path} was removed or replaced while the service runs; restart the service "
                "(to restore a backup, stop it first: `make restore` checks that)."
            )

    def catch_up(self, limit: int | None = None) -> bool:
        """Apply what is new in the log, up to `limit` objects of it; returns whether there was anything."""
        if not self._whole:
            self._settle()
            return True
        changes = islice(self.log.changes(self._position), limit)
        moved = False
        while True:
            with ExitStack() as stack:
                batch = []
                with translated_errors(self.path):  # what does not fit into memory goes to a temporary file
                    for change in islice(changes, _BATCH):
                        stack.callback(change.close)
                        batch.append(change)
                if not batch:
                    return moved
                if self._vfs.foreign():
                    self._settle()
                    return True
                self._swap(partial(self._apply, batch))
                moved = True

    # Transactions

    def _transaction(self, use_case: UseCase[T], deadline: float) -> T:
        if not self._whole:
            self._settle()
        self.check()
        self._deadline = deadline
        self._vfs.forget()
        self._unshipped = False
        before = self._position
        try:
            with translated_errors(self.path), self.writer.atomic("IMMEDIATE"):
                result = use_case(self.writer)
        except Exception as error:
            if self._position == before:
                raise
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                f"The commit is stored, but {self.path} could not take it: {error}"
            ) from error
        if self._unshipped:
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                "A transaction was committed without being stored (was PRAGMA synchronous changed?)."
            )
        self.visible = self._position
        return result

    def _ship(self, page_size: int, size: int, pages: Iterable[tuple[int, bytes]]) -> None:
        started = self._clock.now()
        self._position = self.log.append(self._position, page_size, size, pages, self._deadline)
        self._turns.stored(self._clock.now() - started)
        self._file.write_note(self._position)

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """SQLite calls this after each commit; the other half of the proof that nothing goes by unshipped."""
        self._unshipped |= frames != self._vfs.shipped_frames
        if frames >= _CHECKPOINT_FRAMES:
            with suppress(apsw.Error):  # the commit is stored; the next one tries again
                in_wal, in_file = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
                if in_wal == in_file:
                    self._file.checkpointed = self._position.txid
        return apsw.SQLITE_OK

    def _apply(self, changes: list[Change]) -> None:
        self._disconnect()
        if self._file.in_use():
            self._connect(self._position, self._file.checkpointed)  # reads go on
            self._file.check_unused()
        with translated_errors(self.path):
            position = self._file.apply(changes, self._position)
        self._connect(position)

    def _settle(self) -> None:
        self._swap(self._disconnect)
        with translated_errors(self.path):
            position = self._file.settle()
        self._swap(partial(self._connect, position))

    def _connect(self, position: Position, checkpointed: int | None = None) -> None:
        with translated_errors(self.path):
            self.writer.connect()
            self._reader.connect()
            self.writer.connection().set_wal_hook(self._on_commit)
            if self.writer.connection().pragma("synchronous") != 2:
                raise errors.DatabaseUnavailable(
                    "SQLite must run with synchronous=FULL; a commit is stored by its sync."
                )
        found = state_of(self.path)
        self._inode = found.inode if found else 0
        self._position = self.visible = position
        self._file.checkpointed = position.txid if checkpointed is None else checkpointed
        self._file.write_note(position)
        self._whole = True

    def _disconnect(self) -> None:
        self._whole = False
        self._reader.close()
        self.writer.close()
