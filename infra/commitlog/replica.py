"""The SQLite file of one instance: a copy of the log that takes part in writing it."""

import logging
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeVar

import apsw
import peewee

from core import errors
from infra.clock import Clock
from infra.commitlog.at_rest.local_file import LocalFile
from infra.commitlog.at_rest.row_changes import DoesNotFit, apply_changes
from infra.commitlog.chain import START, Change, Position
from infra.commitlog.fairness import Turns
from infra.commitlog.file_state import FileChanged, Known
from infra.commitlog.log import CommitLog
from infra.commitlog.open_file import OpenFile, SavepointLost
from infra.commitlog.position_file import WalEnd
from infra.commitlog.schema import AnySchema, Schema
from infra.sqlite_errors import root_cause, translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

_BATCH = 256
_BATCH_BYTES = 4 * 1024 * 1024  # then reads get their turn; more only if one commit is larger
_LOOK_FURTHER = 4  # lost numbers
_BUSY_POLL_SECONDS = 0.01
_SHARE_SECONDS = 1.0  # how long one of several requests in a transaction may keep the others waiting
_SETTLINGS = 5
_HEAL_SECONDS = 60.0  # from one time that SQLite's word makes the file be built anew to the next: perhaps it is the log
_REDO_SECONDS = 1.0  # how long another program's changes may keep requests waiting

# Whatever ends the transaction of several
_FAULTS_OF_ONE = (
    errors.TransactionTooLarge,
    errors.DatabaseFull,
    errors.WriteRefused,
    peewee.PeeweeException,
    apsw.Error,
)


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
    """A file that is a prefix of the log.

    Everything but `reader`, `visible`, `stored`, `check` and `suspect` belongs to one thread. Raises what CommitLog
    raises, and DatabaseError when the file itself cannot be used.
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
        schema: Schema | None = None,
    ) -> None:
        """`lasting`: the file outlives this process. `busy_timeout`: seconds to wait for other programs. `swap` runs
        what replaces the file under the connections, at a moment when nobody is reading. `schema`: what may become a
        commit that another program has made, and what the log must hold at the start.
        """
        self.path = path
        self.log = log
        self.visible = START  # readers see this commit at least
        self._position = START  # of the log, as far as this instance has it
        self._clock = clock
        self._turns = Turns(clock, rng or random.SystemRandom())
        self._swap = swap
        self._busy_timeout = busy_timeout
        self._deadline = 0.0
        self._unsettled = 0  # the TXID of the last write whose outcome is unknown: somebody must take it
        self._whole = False  # whether file and connections are what `_position` says
        self._damaged = False  # by SQLite's word
        self._healed = float("-inf")  # by the clock: when that was last looked into
        self._overwritten: Known | None = None  # what was known of a file that somebody has overwritten
        schema = schema or AnySchema()
        self._at_rest = LocalFile(path, log, clock, lasting=lasting, busy_timeout=busy_timeout, schema=schema)
        self._open = OpenFile(path, clock, self._ship, self._note_checkpoint, schema, lasting=lasting)

    @property
    def reader(self) -> peewee.Database:
        """The connection that reads. Raises DatabaseUnavailable while the file is not what `visible` says."""
        if not self._is_usable:
            raise errors.DatabaseUnavailable(f"{self.path} is being brought in order; try again.")
        return self._open.reader

    @property
    def stored(self) -> Position:
        """The newest commit that readers may see: SQLite shows one before `visible` has moved, never before this."""
        return self._position

    def open(self) -> None:
        """Bring the file to the log's head and connect to it. Raises NotServed or LogInUse when the log is not for
        this service.
        """
        asked = self._clock.now()
        self._settle()
        self.refresh(asked)
        self._at_rest.check_served(self._open.writer.connection())
        self.log.head.check_written_here(self.visible)

    def close(self, deadline: float = 0.0) -> None:
        """Store what other programs have committed, until `deadline`, move the WAL into the file and note that it is
        whole. Safe to call twice.
        """
        whole = self._is_usable
        if whole:
            try:
                self._open.check_unchanged()
                self._adopt(deadline)
            except (errors.DatabaseError, errors.StoreError, errors.CommitError) as error:
                whole = False
                if self._open.is_overwritten():
                    self._overwritten = self._open.known
                logger.warning("%s has changes that the next start looks into: %s", self.path, error)
        known = self._open.known
        self._whole = False
        self._open.close()
        if self._overwritten:
            with suppress(errors.DatabaseError):
                self._at_rest.discard_wal(self._position, self._overwritten)
        self._at_rest.close(self._position if whole else None, known)

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
        with suppress(errors.ServiceError):  # `watch` says it
            self._redo()
        culprit: Write | None = None
        if len(writes) > 1:
            try:
                return self._store(writes, partial(self._run_all, writes), self._clock.now() + seconds)
            except _Aborted as aborted:
                culprit = aborted.write
            except _FAULTS_OF_ONE:
                pass  # nothing was stored
            except Exception as error:
                return _fail(writes, error)
        deadline = self._clock.now() + seconds
        waiting = sorted(writes, key=lambda write: write is culprit)
        while waiting:
            write = waiting.pop(0)
            self._write_alone(write, deadline)
            if isinstance(write.error, errors.CommitNotStored | errors.CommitOutcomeUnknown):
                _fail(waiting, errors.CommitNotStored(str(write.error)))  # the store is away, for them as well
                return

    def run_alone(self, use_case: UseCase[T], deadline: float) -> T:
        """Run outside of any transaction, each statement a commit of its own: what SQLite allows nowhere else, as
        VACUUM. A conflict runs all of it again. Raises CommitOutcomeUnknown for any error after its first commit.
        """
        write = Write(use_case)

        def run() -> None:
            self._open.run_until = float("inf")
            with self._open.autocommit():
                write.result = write.use_case(self._open.writer)

        self._store([write], run, deadline)
        result: T = write.outcome()
        return result

    def watch(self, deadline: float) -> None:
        """Called every now and then while nobody writes: store what other programs have committed, and do not keep
        their checkpoints waiting. Raises StoreError or CommitError when that cannot be stored now.
        """
        try:
            if self._is_usable:
                self._open.check_unchanged()
                self._adopt(deadline)
            else:
                self._settle()
        except errors.CommitConflict:
            self.catch_up()
        except FileChanged:
            self._settle()
        except errors.DatabaseDamaged:
            self.suspect()
            raise
        self._redo()
        self.settle_unknown(deadline)

    def settle_unknown(self, deadline: float) -> None:
        """After an unknown outcome, see to it that its number is taken: then what is still on its way can never land,
        and whoever finds the log at that number knows. Raises StoreError or CommitError when that is not to be had now.
        """
        if self._position.txid < self._unsettled:
            self.catch_up()
        if self._position.txid < self._unsettled:
            self.write(self._take_the_number, deadline, float("-inf"))

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
        return self._is_usable and self.log.head.seen_at(shown) >= not_before and shown >= txid

    def is_current(self) -> bool:
        """Ask the store whether what readers see is the newest; any thread may, while another one writes."""
        return self._is_usable and self.log.head.is_still_at(self.visible)

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened; any thread may ask."""
        if self._whole:
            self._open.check_in_place()

    def suspect(self) -> bool:
        """SQLite has found the file damaged: nobody is answered from it before it was compared with the log, and built
        anew from that. Any thread may say so. Returns whether it is to happen: not so soon again, if it was of no use.
        """
        self._damaged |= self._clock.now() >= self._healed + _HEAL_SECONDS
        return self._damaged

    def catch_up(self, limit: int | None = None) -> bool:
        """Apply what is new in the log, up to `limit` objects of it; returns whether there was anything."""
        if not self._is_usable:
            self._settle()
            return True
        changes = self.log.changes(self._position, limit)
        moved = False
        while True:
            with ExitStack() as stack:
                batch: list[Change] = []
                size = 0
                with translated_errors(self.path):  # what does not fit into memory goes to a temporary file
                    for change in islice(changes, _BATCH):
                        stack.callback(change.close)
                        batch.append(change)
                        size += change.size
                        if size > _BATCH_BYTES:
                            break
                if not batch:
                    return moved
                try:
                    self._patiently(partial(self._take, batch))
                except (FileChanged, errors.CommitConflict):
                    self._settle()
                    return True
                moved = True

    # Writing

    def _write_alone(self, write: Write, deadline: float) -> None:
        try:
            self._store([write], partial(self._run_all, [write]), deadline)
        except Exception as error:
            write.error = error

    def _store(self, writes: Sequence[Write], work: Callable[[], None], deadline: float) -> None:
        """Do the work that sets the outcome of these writes until what it commits is in the log."""
        self._turns.before_first_attempt()
        for conflicts in count(1):
            try:
                committed = self._patiently(partial(self._attempt, work, deadline))
            except _Aborted as aborted:
                if isinstance(aborted.write.error, errors.DatabaseDamaged) and self.suspect():
                    continue
                if len(writes) > 1:
                    raise
                committed = False
            except errors.DatabaseDamaged:
                if not self.suspect():
                    raise
                continue
            except errors.CommitOutcomeUnknown as error:
                self._unsettled = error.txid
                raise
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
                if self._open.has_foreign():  # another program's transaction was in the way
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

    def _attempt(self, work: Callable[[], None], deadline: float) -> bool:
        """Returns whether anything was committed."""
        if not self._is_usable:
            self._settle()
        self._open.check_in_place()
        self._open.check_unchanged()
        if self._open.has_foreign():
            self._adopt(deadline)
        self._deadline = deadline
        before = self._position
        try:
            with translated_errors(self.path):
                work()
        except Exception as error:
            if self._position == before:
                raise
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                f"The commit is stored, but {self.path} could not take it: {error}", self._position.txid
            ) from error
        if self._open.went_unshipped:
            self._whole = False
            raise errors.CommitOutcomeUnknown(
                "A transaction was committed without being stored (was PRAGMA synchronous changed?).",
                self._position.txid + 1,
            )
        self.visible = self._position
        return self._position != before

    def _run_all(self, writes: Sequence[Write]) -> None:
        share = _SHARE_SECONDS if len(writes) > 1 else float("inf")
        with self._open.transaction():
            for write in writes:
                self._open.run_until = min(self._deadline, self._clock.now() + share)
                self._run(write)
            if len(writes) == 1 and writes[0].error:
                raise _Aborted(writes[0])  # what its savepoint has undone would be a commit of nothing

    def _run(self, write: Write) -> None:
        """In a savepoint, so that its failure undoes nothing but itself. Raises _Aborted when that is not possible."""
        write.result, write.error = None, None
        try:
            with self._open.savepoint(), translated_errors(self.path):
                write.result = write.use_case(self._open.writer)
        except SavepointLost as lost:
            write.result, write.error = None, root_cause(lost.cause, self.path)
            raise _Aborted(write) from None
        except Exception as error:
            write.error = error
        # Alone it may take its time; and what is made of damaged pages must not become history
        if isinstance(write.error, errors.TransactionTooSlow | errors.DatabaseDamaged):
            raise _Aborted(write)

    def _take_the_number(self, db: peewee.Database) -> None:
        """By a commit that changes nothing: to set what stands there already writes the first page anew."""
        if self._position.txid < self._unsettled:
            db.execute_sql(f"PRAGMA user_version = {db.execute_sql('PRAGMA user_version').fetchone()[0]}")

    def _is_outdated(self, writes: Sequence[Write]) -> bool:
        not_before, txid = max(write.not_before for write in writes), max(write.txid for write in writes)
        return not self.is_fresh(not_before, txid) and self.catch_up()

    def _not_reached(self, txid: int) -> errors.TxidNotReached:
        return errors.TxidNotReached(
            f"The log ends at TXID {self.visible.txid:016x}; {txid:016x} is not in it: it was never acknowledged, or "
            "is the one of a 503 that is not settled yet."
        )

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

    def _adopt(self, deadline: float) -> bool:
        """Store what other programs have committed to the file; returns whether there was anything."""
        self._deadline = deadline
        try:
            adopted = self._open.ship_foreign()
        finally:
            self.visible = self._position  # the first of several may be stored, and what they changed is shown already
        if adopted:
            logger.info("another program's changes of %s are commit %016x", self.path, self._position.txid)
        return bool(adopted)

    def _redo(self) -> None:
        """Commit what other programs had changed on top of a state that was not the newest any more."""
        for path in list(self._at_rest.waiting):
            changeset = path.read_bytes()

            def use_case(db: peewee.Database, changeset: bytes = changeset) -> None:
                apply_changes(changeset, db.connection())

            try:
                self.write(use_case, self._clock.now() + _REDO_SECONDS, float("-inf"))
            except (DoesNotFit, errors.WriteRefused, errors.NotServed) as error:
                self._at_rest.waiting.remove(path)
                logger.error(
                    "%s: another program's changes do not fit the state that the log has since: %s. They are kept; "
                    "`python -m infra changes %s` shows them as SQL, and the next start tries them again",
                    path,
                    error,
                    path,
                )
            else:
                self._at_rest.remove_changes(path)
                txid = self._position.txid
                logger.info("another program's changes of %s, done again, are commit %016x", self.path, txid)

    def _ship(self, page_size: int, size: int, pages: Iterable[tuple[int, bytes]], end: WalEnd) -> None:
        started = self._clock.now()
        self._position = self.log.append(self._position, page_size, size, pages, self._deadline)
        self._turns.stored(self._clock.now() - started)
        self._at_rest.write_note(self._position, end)

    def _note_checkpoint(self) -> None:
        self._at_rest.checkpointed = self._position.txid

    # Replacing the file

    def _take(self, changes: list[Change]) -> None:
        self._open.check_unchanged()
        self._swap(partial(self._apply, changes))

    def _apply(self, changes: list[Change]) -> None:
        known = self._open.known
        self._disconnect()
        try:
            position = self._at_rest.apply(changes, self._position, known)
        except errors.DatabaseLocked:
            self._connect(self._position, known)  # reads go on
            raise
        self._at_rest.checkpointed = position.txid
        self._connect(position, self._at_rest.known)

    @property
    def _is_usable(self) -> bool:
        return self._whole and not self._damaged

    def _settle(self) -> None:
        """Bring the file in order, whatever it is and whoever has changed it."""
        if self._damaged:
            logger.error("SQLite has found %s damaged while the service runs; it becomes what the log has", self.path)
        if self._whole and self._open.is_overwritten():
            logger.warning("%s was overwritten while the service runs", self.path)
            self._overwritten = self._open.known
        if self._whole and self._open.has_moved_everything():  # by another program, which the note cannot know
            self._note_checkpoint()
            self._at_rest.write_note(self._position)
        if self._whole and not self._overwritten:
            self._at_rest.hold()
        self._swap(self._disconnect)
        if self._overwritten:
            with suppress(FileChanged):  # a shell has mixed the two by now: then the log decides
                self._at_rest.discard_wal(self._position, self._overwritten)
            self._overwritten = None
        for tries_left in reversed(range(_SETTLINGS)):
            try:
                with translated_errors(self.path):
                    position = self._at_rest.settle()
                self._at_rest.checkpointed = position.txid
                self._swap(partial(self._connect, position, self._at_rest.known))
                return self._note_healed()
            except FileChanged:
                if not tries_left:
                    raise

    def _note_healed(self) -> None:
        if self._damaged:
            self._healed = self._clock.now()
            self._damaged = False

    def _connect(self, position: Position, known: Known) -> None:
        self._open.connect(known)
        self._position = self.visible = position
        if not known.shipped.frames:  # or the note says already where the WAL has this commit
            self._at_rest.write_note(position)
        self._at_rest.keep_hold_of_wal()
        self._whole = True

    def _disconnect(self) -> None:
        self._whole = False
        self._open.disconnect()


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
