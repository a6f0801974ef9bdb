"""The SQLite file of one instance: a copy of the log that takes part in writing it."""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core import errors
from infra.clock import Clock
from infra.commitlog.anchor import Anchor
from infra.commitlog.chain import START, Change, Position
from infra.commitlog.local_file import FileChanged, LocalFile
from infra.commitlog.log import CommitLog
from infra.commitlog.note import FileState, WalEnd, state_of
from infra.commitlog.turns import Turns
from infra.commitlog.vfs import NOTHING_SHIPPED, Shipped, ShippingVFS, salts_in
from infra.sqlite_errors import root_cause, translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

MAX_TRANSACTION_BYTES = 256 * 1024 * 1024
_CLOCK_TOLERANCE_MS = 15 * 60 * 1000
_BATCH = 256
_LOOK_FURTHER = 4  # lost numbers
_CHECKPOINT_FRAMES = 1000  # SQLite's own default
_BUSY_POLL_SECONDS = 0.01
_SHARE_SECONDS = 1.0  # how long one of several requests in a transaction may keep the others waiting
_STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's virtual machine, some milliseconds
_OVERWRITTEN_SECONDS = 2.0  # a copy over the file is complete when it has not changed for so long
_SETTLINGS = 5
_PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
_vfs_numbers = count(1)


@dataclass(slots=True)
class Write:
    """A request to write, and what became of it."""

    use_case: UseCase[Any]
    not_before: float = float("-inf")  # by the clock: it may answer from a state that was the newest then, or later
    txid: int = 0  # and that is not older than this commit
    result: Any = None
    error: Exception | None = None
    shown: int = 0  # the newest commit that the outcome reflects, a TXID

    def outcome(self) -> Any:
        if self.error:
            raise self.error
        return self.result


class Replica:
    """A file that is a prefix of the log, and the connections to it: one that writes, one that reads.

    Everything but `reader`, `visible` and `check` belongs to one thread. Raises what CommitLog raises,
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
        self._busy_timeout = busy_timeout
        self._file = LocalFile(path, log, clock, lasting=lasting, busy_timeout=busy_timeout)
        self._anchor = Anchor(path)
        self._deadline = 0.0
        self._run_until = float("inf")
        self._inode = 0
        self._backfilled = (0, 0)  # frames in the WAL, and how many of them are in the file too
        self._overwritten: tuple[float, FileState] | None = None  # since when the file has been what it should not be
        self._file_counts_alone = False
        self._may_commit = False
        self._unshipped = False
        self._whole = False  # whether file and connections are what `_position` says
        self._vfs = ShippingVFS(f"commitlog-{next(_vfs_numbers)}", self._ship, MAX_TRANSACTION_BYTES, lasting)
        # Who waits, and for how long, is decided here, not by SQLite
        options = {"timeout": 0, "thread_safe": False}
        self.writer = APSWDatabase(str(path), pragmas=_PRAGMAS, vfs=self._vfs.name, **options)
        self._reader: peewee.Database = APSWDatabase(str(path), pragmas={**_PRAGMAS, "query_only": 1}, **options)

    @property
    def reader(self) -> peewee.Database:
        """The connection that reads. Raises DatabaseUnavailable while the file is not what `visible` says."""
        if not self._whole:
            raise errors.DatabaseUnavailable(f"{self.path} is being brought in order; try again.")
        return self._reader

    def open(self) -> None:
        """Bring the file to the log's head and connect to it."""
        asked = self._clock.now()
        self._settle()
        self.refresh(asked)
        if self.visible.timestamp > self._clock.timestamp() + _CLOCK_TOLERANCE_MS:
            logger.error(
                "%s: the newest commit is of %s, which is ahead of this machine's clock; one of the clocks is wrong, "
                "and a restore to a moment between may miss by as much",
                self.log.url,
                datetime.fromtimestamp(self.visible.timestamp / 1000, UTC).isoformat(),
            )

    def close(self, deadline: float = 0.0) -> None:
        """Store what other programs have committed, until `deadline`, move the WAL into the file and note that it is
        whole. Safe to call twice.
        """
        position = None
        if self._whole:
            try:
                self._check_file()
                self._adopt(deadline)
                position = self._position
            except (errors.DatabaseError, errors.StoreError, errors.CommitError) as error:
                logger.warning(
                    "%s holds changes that are not in the log; the next start stores them: %s", self.path, error
                )
        self._look_whether_file_counts_alone()
        shipped = self._vfs.shipped
        self._disconnect()
        self._vfs.close()
        if self._file_counts_alone:
            with suppress(errors.DatabaseError):
                self._file.discard_wal(self._position)
        self._file.close(position, shipped)

    def write(self, use_case: UseCase[T], deadline: float, not_before: float, txid: int = 0) -> T:
        """Run in a transaction; when this returns, its commit is in the log.

        A conflict runs the use case again on the new state, until `deadline`. One that commits nothing is a read:
        it answers from a state as `refresh` would have it (both times by the clock).
        """
        write = Write(use_case, not_before, txid)
        self._write_alone(write, deadline)
        result: T = write.outcome()
        return result

    def write_together(self, writes: Sequence[Write], seconds: float) -> None:
        """Run requests in one transaction, each in a savepoint of its own, and set what became of each.

        All of it is one commit. What makes that fail as a whole, and is the doing of one of them, runs each of them
        again in a transaction of its own, whoever did it last. `seconds`: how long each commit is tried.
        """
        culprit: Write | None = None
        if len(writes) > 1:
            try:
                return self._store(writes, partial(self._run_all, writes), self._clock.now() + seconds)
            except _Aborted as aborted:
                culprit = aborted.write
            except (errors.TransactionTooLarge, errors.DatabaseFull):
                pass  # perhaps for all of them together only
            except Exception as error:
                return _fail(writes, error)
        for write in sorted(writes, key=lambda write: write is culprit):
            self._write_alone(write, self._clock.now() + seconds)

    def run_alone(self, use_case: UseCase[T], deadline: float) -> T:
        """Run outside of any transaction, each statement a commit of its own: what SQLite allows nowhere else, as
        VACUUM. A conflict runs all of it again.
        """
        write = Write(use_case)

        def run() -> None:
            self._may_commit = True
            self._run_until = float("inf")
            write.result = write.use_case(self.writer)

        self._store([write], run, deadline)
        result: T = write.outcome()
        return result

    def watch(self, deadline: float) -> None:
        """Called every now and then while nobody writes: store what other programs have committed, and do not keep
        their checkpoints waiting. Raises StoreError or CommitError when that cannot be stored now.
        """
        if not self._whole:
            return
        try:
            self._check_file()
            self._adopt(deadline)
        except errors.CommitConflict:
            self.catch_up()
        except FileChanged:
            self._settle()

    def refresh(self, not_before: float, txid: int = 0) -> bool:
        """See to it that the log's head was known after `not_before`; returns whether there was anything new.

        Raises TxidNotReached when the log does not reach as far as `txid`.
        """
        moved = not self.is_fresh(not_before, txid) and self.catch_up()
        self.check_reached(txid)
        return moved

    def check_reached(self, txid: int) -> None:
        if self.visible.txid < txid:
            raise self._not_reached(txid)

    def is_fresh(self, not_before: float, txid: int = 0) -> bool:
        shown = self.visible.txid
        return self._whole and self.log.verified_at(shown) >= not_before and shown >= txid

    def is_current(self) -> bool:
        """Ask the store whether what readers see is the newest; any thread may, while another one writes."""
        return self._whole and self.log.is_head(self.visible)

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened; any thread may ask.

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
                try:
                    self._patiently(partial(self._take, batch))
                except (FileChanged, errors.CommitConflict):
                    self._settle()
                    return True
                moved = True

    # Transactions

    def _write_alone(self, write: Write, deadline: float) -> None:
        try:
            self._store([write], partial(self._run_all, [write]), deadline)
        except _Aborted:
            write.error = write.error or errors.DatabaseUnavailable("The transaction ended in the middle of a request.")
        except Exception as error:
            write.error = error

    def _store(self, writes: Sequence[Write], work: Callable[[], None], deadline: float) -> None:
        """Run the work that sets the outcome of these writes until what it commits is in the log."""
        self._turns.before_first_attempt()
        for conflicts in count(1):
            try:
                committed = self._patiently(partial(self._attempt, work, deadline))
            except errors.CommitConflict as error:
                if self._clock.now() >= deadline:
                    raise errors.CommitNotStored("Other instances were faster every time.") from error
                # The commit that was lost to is all that is known to be new; asking for more would take another turn
                self.catch_up(None if conflicts % _LOOK_FURTHER == 0 else 1)
                self._turns.lost(conflicts)
                continue
            except FileChanged as error:
                self._settle()
                if self._clock.now() >= deadline:
                    raise errors.DatabaseLocked("Another program kept changing the database.") from error
                continue
            except errors.TransactionTooLarge:
                if self._adopt(deadline):  # another program's transaction was in the way
                    continue
                raise
            # What commits nothing was a read
            if not committed and self._is_outdated(writes):
                continue
            for write in writes:
                write.shown = self.visible.txid
                if write.txid > write.shown and (write.error or not committed):
                    write.error = self._not_reached(write.txid)
            return
        raise AssertionError("unreachable")

    def _not_reached(self, txid: int) -> errors.TxidNotReached:
        return errors.TxidNotReached(
            f"The log ends at TXID {self.visible.txid:016x}; {txid:016x} was never acknowledged by it."
        )

    def _is_outdated(self, writes: Sequence[Write]) -> bool:
        not_before, txid = max(write.not_before for write in writes), max(write.txid for write in writes)
        return not self.is_fresh(not_before, txid) and self.catch_up()

    def _attempt(self, work: Callable[[], None], deadline: float) -> bool:
        """Returns whether anything was committed."""
        if not self._whole:
            self._settle()
        self.check()
        self._check_file()
        if self._vfs.unshipped(self._frames):
            self._adopt(deadline)
        self._deadline = deadline
        self._vfs.forget()
        self._unshipped = False
        before = self._position
        try:
            with translated_errors(self.path):
                work()
        except Exception as error:
            if self._position == before:
                raise
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                f"The commit is stored, but {self.path} could not take it: {error}"
            ) from error
        finally:
            self._may_commit = False
        if self._unshipped:
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                "A transaction was committed without being stored (was PRAGMA synchronous changed?)."
            )
        self.visible = self._position
        return self._position != before

    def _run_all(self, writes: Sequence[Write]) -> None:
        with self.writer.atomic("IMMEDIATE"):
            for write in writes:
                share = _SHARE_SECONDS if len(writes) > 1 else float("inf")
                self._run_until = min(self._deadline, self._clock.now() + share)
                self._run(write)
            self._may_commit = True

    def _run(self, write: Write) -> None:
        """In a savepoint, so that its failure undoes nothing but itself."""
        connection = self.writer.connection()
        connection.execute("SAVEPOINT request")
        write.result, write.error = None, None
        try:
            with translated_errors(self.path):
                write.result = write.use_case(self.writer)
        except Exception as error:
            write.error = error
        # Some errors end the whole transaction, and what came next would be committed by itself
        if not connection.in_transaction:
            write.error = write.error and root_cause(write.error, self.path)
            raise _Aborted(write)
        if write.error:
            connection.execute("ROLLBACK TO request")
        connection.execute("RELEASE request")

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Again and again while another program holds a lock, which may in turn be waiting for the anchor to move."""
        until = self._clock.now() + self._busy_timeout
        while True:
            try:
                return attempt()
            except errors.DatabaseLocked:
                if self._clock.now() >= until:
                    raise
                self._clock.sleep(_BUSY_POLL_SECONDS)
                with suppress(errors.DatabaseLocked):
                    if self._whole:
                        self._adopt(until)

    def _ship(self, page_size: int, size: int, pages: Iterable[tuple[int, bytes]], end: WalEnd) -> None:
        started = self._clock.now()
        self._position = self.log.append(self._position, page_size, size, pages, self._deadline)
        self._turns.stored(self._clock.now() - started)
        self._file.write_note(self._position, end)

    def _refuse_stray_commit(self) -> bool:
        """SQLite asks before each commit. Inside a request, only the end of its transaction is one."""
        return not self._may_commit

    def _take_too_long(self) -> bool:
        """SQLite asks now and then during a statement."""
        return self._clock.now() > self._run_until

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """SQLite calls this after each commit; the other half of the proof that nothing goes by unshipped."""
        self._unshipped |= frames != self._vfs.shipped.frames
        if frames >= _CHECKPOINT_FRAMES:
            with suppress(apsw.Error, errors.DatabaseLocked):  # the commit is stored; the next one tries again
                self._checkpoint(connection)
        return apsw.SQLITE_OK

    def _checkpoint(self, connection: apsw.Connection) -> None:
        self._move_anchor()  # to the end of the WAL, so that all of it can be moved into the file
        in_wal, in_file = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        self._file.state = state_of(self.path)
        if in_wal == in_file:
            self._file.checkpointed = self._position.txid
            self._move_anchor()  # off the WAL, so that it can be begun anew

    # Other programs

    def _frames(self) -> int:
        return self._wal_state()[0]

    def _wal_state(self) -> tuple[int, int]:
        """Committed frames in the WAL, and how many of them are in the file too."""
        in_wal, in_file = self.writer.connection().wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        return in_wal, in_file

    def _adopt(self, deadline: float) -> bool:
        """Store what other programs have committed to the WAL; returns whether there was anything."""
        adopted = False
        with translated_errors(self.path), self._anchor.moving():
            while frames := self._vfs.unshipped(self._frames):
                self._deadline = deadline
                self._vfs.ship_foreign(frames)
                self.visible = self._position
                adopted = True
                logger.info("another program's changes of %s are commit %016x", self.path, self._position.txid)
        return adopted

    def _move_anchor(self) -> None:
        with self._anchor.moving():
            if self._vfs.unshipped(self._frames):
                raise errors.DatabaseLocked("Another program's changes are to be stored first.")

    def _check_file(self) -> None:
        """The file changes only by checkpoints, and those show in the WAL's index.

        Raises FileChanged when something else has written to it, DatabaseLocked while it may be a checkpoint or is
        going on.
        """
        if not self._vfs.is_in_place():
            raise FileChanged(f"the write-ahead log of {self.path} was removed.")
        found = state_of(self.path)
        with translated_errors(self.path):
            before, self._backfilled = self._backfilled, self._wal_state()
        if found is None or found == self._file.state:
            self._overwritten = None
            return
        if before != self._backfilled:
            self._file.state, self._overwritten = found, None
            return
        self._backfilled = before
        now = self._clock.now()
        since, seen = self._overwritten or (now, found)
        self._overwritten = (since if seen == found else now), found
        if now - self._overwritten[0] < _OVERWRITTEN_SECONDS:
            raise errors.DatabaseLocked(f"{self.path} is being written by another program.")
        raise FileChanged(f"{self.path} was overwritten by another program.")

    def _take(self, changes: list[Change]) -> None:
        self._check_file()
        if self._vfs.unshipped(self._frames):
            raise FileChanged(f"{self.path} and the log have both changed.")
        self._swap(partial(self._apply, changes))

    def _apply(self, changes: list[Change]) -> None:
        shipped = self._vfs.shipped
        self._disconnect()
        try:
            position = self._file.apply(changes, self._position, shipped)
        except errors.DatabaseLocked:
            self._connect(self._position, shipped, self._file.checkpointed)  # reads go on
            raise
        self._connect(position)

    def _settle(self) -> None:
        """Bring the file in order, whatever it is and whoever has changed it."""
        self._look_whether_file_counts_alone()
        self._swap(self._disconnect)
        if self._file_counts_alone:
            self._file.discard_wal(self._position)
        self._file_counts_alone = False
        self._overwritten = None
        for tries_left in reversed(range(_SETTLINGS)):
            with translated_errors(self.path):
                position = self._file.settle()
            try:
                return self._swap(partial(self._connect, position))
            except FileChanged:
                if not tries_left:
                    raise

    def _look_whether_file_counts_alone(self) -> None:
        """A file that was overwritten must not be mixed with the WAL of another one, which is in the log anyway."""
        if self._whole and self._overwritten and not self._vfs.unshipped(self._frames):
            logger.warning("%s was overwritten while the service runs", self.path)
            self._file_counts_alone = True

    def _connect(self, position: Position, shipped: Shipped = NOTHING_SHIPPED, checkpointed: int | None = None) -> None:
        """`shipped`: what of the WAL is in the log. Raises FileChanged when the file is not as it was just left."""
        self._vfs.expect(shipped)
        try:
            with translated_errors(self.path):
                self._anchor.hold()
                self.writer.connect()
                self._reader.connect()
                connection = self.writer.connection()
                self._backfilled = self._wal_state()
        except BaseException:
            self._disconnect()
            raise
        found = state_of(self.path)
        if found is None or found != self._file.state or (shipped.frames and salts_in(self._wal) != shipped.salts):
            self._disconnect()
            raise FileChanged(f"{self.path} is being changed by another program.")
        for each in (connection, self._reader.connection()):
            each.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.set_wal_hook(self._on_commit)
        connection.set_commit_hook(self._refuse_stray_commit)
        connection.set_progress_handler(self._take_too_long, _STEPS_BETWEEN_LOOKS)
        if connection.pragma("synchronous") != 2:
            raise errors.DatabaseUnavailable("SQLite must run with synchronous=FULL; a commit is stored by its sync.")
        self._inode = found.inode
        self._position = self.visible = position
        self._file.checkpointed = position.txid if checkpointed is None else checkpointed
        self._file.write_note(position)
        self._whole = True

    @property
    def _wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _disconnect(self) -> None:
        self._whole = False
        self._reader.close()
        self.writer.close()
        self._anchor.release()


class _Aborted(Exception):
    """A request has ended the transaction that it was to share."""

    def __init__(self, write: Write) -> None:
        super().__init__(write)
        self.write = write


def _fail(writes: Sequence[Write], error: Exception) -> None:
    """Their common commit has failed."""
    for write in writes:
        if write.error and isinstance(error, errors.CommitOutcomeUnknown):
            write.error = errors.CommitNotStored(str(error))  # it had failed by itself, and has no part in the commit
        else:
            write.error = error
