"""The SQLite file of one instance: a copy of the log that takes part in writing it."""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

import peewee

from core import errors
from infra.clock import Clock
from infra.commitlog.at_rest.local_file import LocalFile
from infra.commitlog.at_rest.row_changes import DoesNotFit, apply_changes
from infra.commitlog.chain import START, Change, LogObject, Position
from infra.commitlog.commit import Committer
from infra.commitlog.fairness import Fairness
from infra.commitlog.file_state import Condition, FileChanged, Known
from infra.commitlog.group import FAULTS_OF_ONE, Aborted, UseCase, Write, fail_together, run_together
from infra.commitlog.log import CommitLog
from infra.commitlog.open_file import OpenFile
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.schema import AnySchema, Schema
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH = 256
_BATCH_BYTES = 4 * 1024 * 1024  # then reads get their turn; more only if one commit is larger
_LOOK_FURTHER = 4  # lost numbers
_MOST_BEHIND = 64 * 1024 * 1024  # bytes: when more follows, a paged file is opened on a newer snapshot
_BUSY_POLL_SECONDS = 0.01
_SETTLINGS = 5
_SNAPSHOTS = 3  # one that is gone, and one that what has followed it has left behind, and then there is a newer one
_HEAL_SECONDS = 60.0  # from one time that SQLite's word makes the file be built anew to the next: perhaps it is the log
_REDO_SECONDS = 1.0  # how long another program's changes may keep requests waiting


class Replica:
    """A file that is a prefix of the log.

    What asks about it (`reader`, `visible`, `stored`, `is_fresh`, `is_current`, `check`, `check_reached`,
    `unsaved_seconds`) and `suspect`
    are for any thread, all else is for one. Raises what CommitLog raises, and DatabaseError when the file itself cannot
    be used.
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
        paging: Paging | None = None,
    ) -> None:
        """`lasting`: the file outlives this process. `busy_timeout`: seconds to wait for other programs. `swap` runs
        what replaces the file under the connections, at a moment when nobody is reading. `schema`: what may become a
        commit that another program has made, and what the log must hold at the start. `paging`: when a file that
        does not last is opened page by page.
        """
        self.path = path
        self.log = log
        self.visible = START  # readers see this commit at least
        self.blocked: errors.DatabaseLocked | None = None  # by a lock of another program, when last tried
        self.waits_for: errors.DatabaseLocked | None = None  # the same, while there is hope
        self._clock = clock
        self._fairness = Fairness(clock, rng or random.SystemRandom())
        self._swap = swap
        self._unsettled = 0  # the TXID of the last write whose outcome is unknown: somebody must take it
        self._condition = Condition.UNSETTLED
        self._unsaved_since: float | None = None  # by the clock: others have, perhaps, committed what is not stored
        self._healed = float("-inf")  # by the clock: when SQLite's word that it is damaged was last looked into
        schema = schema or AnySchema()
        self.has_looked_past = True  # whether the file has been at the log's head since it was opened
        self.at_rest = LocalFile(
            path, log, clock, lasting=lasting, busy_timeout=busy_timeout, schema=schema, paging=paging
        )
        self._pages = self.at_rest.pages
        self.committer = Committer(log, self.at_rest.position_file, clock, self._fairness)
        self.file = OpenFile(path, clock, self.committer, schema, lasting=lasting, vfs=self.at_rest.vfs)

    @property
    def reader(self) -> peewee.Database:
        """The connection that reads. Raises DatabaseUnavailable while the file is not what `visible` says."""
        if self._condition is not Condition.SERVED:
            raise errors.DatabaseUnavailable(f"{self.path} is being brought in order; try again.")
        return self.file.reader

    @property
    def stored(self) -> Position:
        """The newest commit that readers may see: SQLite shows one before `visible` has moved, never before this."""
        return self.committer.position

    @property
    def snapshot(self) -> LogObject | None:
        """The snapshot that the file is read from page by page, if it is."""
        return self._pages.snapshot if self._pages else None

    def open(self) -> None:
        """Bring the file to the log's head and connect to it. Raises NotServed or LogInUse when the log is not for
        this service. A paged file is at its snapshot then: whoever reads or writes first looks for what has followed.
        """
        try:
            self._open()
        except errors.SnapshotGone as error:  # deleted meanwhile, or its sidecar is that of another one
            logger.info("%s; another way to open it is tried", error)
            self.lose_pages()
            self._open()

    def _open(self) -> None:
        asked = self._clock.now()
        self._settle()
        self.has_looked_past = self.snapshot is None
        if self.has_looked_past:
            self.refresh(asked)
        try:
            self.at_rest.check_log_served(self.file.writer.connection())
        except errors.NotServed:
            if self.has_looked_past:
                raise
            self.look_past_snapshot()  # perhaps what has followed is for this release
        self.log.head.check_written_here(self.visible)

    def close(self, deadline: float = 0.0) -> None:
        """Store what other programs have committed, until `deadline`, move the WAL into the file and note that it is
        whole. Safe to call twice.
        """
        whole = self._condition is Condition.SERVED
        overwritten = self._condition is Condition.OVERWRITTEN
        if self._is_connected:
            try:
                self.file.look()
                if whole:
                    self._ship_others(deadline)
            except (errors.DatabaseError, errors.StoreError, errors.CommitError) as error:
                whole, overwritten = False, self.file.is_overwritten()
                logger.warning("%s has changes that the next start looks into: %s", self.path, error)
        known = self.file.known
        self._condition = Condition.UNSETTLED
        self.file.close()
        if overwritten:
            with suppress(errors.DatabaseError):
                self.at_rest.discard_wal(self.stored, known)
        self.at_rest.close(self.stored if whole else None, known)

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
                return self._until_stored(writes, self._clock.now() + seconds)
            except Aborted as aborted:
                culprit = aborted.write
            except FAULTS_OF_ONE:
                pass  # nothing was stored
            except Exception as error:
                return fail_together(writes, error)
        deadline = self._clock.now() + seconds
        waiting = sorted(writes, key=lambda write: write is culprit)
        while waiting:
            write = waiting.pop(0)
            self._write_alone(write, deadline)
            if isinstance(write.error, errors.CommitNotStored | errors.CommitOutcomeUnknown):
                fail_together(waiting, errors.CommitNotStored(str(write.error)))  # the store is away, for them as well
                return

    def run_alone(self, use_case: UseCase[T], deadline: float) -> T:
        """Run outside of any transaction, each statement a commit of its own: what SQLite allows nowhere else, as
        VACUUM. A conflict runs all of it again. Raises CommitOutcomeUnknown for any error after its first commit.
        """
        write = Write(use_case)

        def run() -> None:
            self.file.run_until = float("inf")
            with self.file.autocommit():
                write.result = write.use_case(self.file.writer)

        self._until_stored([write], deadline, run)
        result: T = write.outcome()
        return result

    def watch(self, deadline: float) -> None:
        """Called every now and then while nobody writes: store what other programs have committed, and do not keep
        their checkpoints waiting. Raises StoreError or CommitError when that cannot be stored now.
        """
        try:
            if self._condition is Condition.SERVED:
                self.file.look()
                self._ship_others(deadline)
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
        if self.blocked:
            with suppress(errors.DatabaseLocked):
                self.file.try_lock()
                self.blocked = None

    def settle_unknown(self, deadline: float) -> None:
        """After an unknown outcome, see to it that its number is taken: then what is still on its way can never land,
        and whoever finds the log at that number knows. Raises StoreError or CommitError when that is not to be had now.
        """
        if self.stored.txid < self._unsettled:
            self.catch_up()
        if self.stored.txid < self._unsettled:
            self.write(self._take_the_number, deadline, float("-inf"))

    def refresh(self, not_before: float, txid: int = 0) -> bool:
        """See to it that the log's head was known after `not_before`; returns whether there was anything new.

        Raises TxidNotReached when the log does not reach as far as `txid`.
        """
        moved = not self.is_fresh(not_before, txid) and self.catch_up()
        self.check_reached(txid)
        return moved

    def check_reached(self, txid: int) -> None:
        """Raise TxidNotReached when readers do not see this commit yet."""
        if self.visible.txid < txid:
            raise self._not_reached(txid)

    def is_fresh(self, not_before: float, txid: int = 0) -> bool:
        """Ask whether readers see what was the newest state at `not_before` (by the clock) or later, and commit
        `txid`.
        """
        shown = self.visible.txid
        is_served = self._condition is Condition.SERVED and self.has_looked_past
        return is_served and self.log.head.seen_at(shown) >= not_before and shown >= txid

    def is_current(self) -> bool:
        """Ask the store whether what readers see is the newest; any thread may, while another one writes."""
        return self._condition is Condition.SERVED and self.log.head.is_still_at(self.visible)

    def check(self) -> None:
        """Raise DatabaseUnavailable when the file is not the one that was opened; any thread may ask."""
        if self._is_connected:
            self.file.check_in_place()

    def suspect(self) -> bool:
        """Say that SQLite has found the file damaged: nobody is answered from it until it has been compared with the
        log, and written anew if it is not what the log has. Any thread may. Returns False, and changes nothing, when
        that was done within the last minute, or the file is not served now.
        """
        if self._condition is Condition.SERVED and self._clock.now() >= self._healed + _HEAL_SECONDS:
            self._condition = Condition.SUSPECT
        return self._condition is Condition.SUSPECT

    def lose_pages(self) -> None:
        """Say that the snapshot whose pages are read was deleted: nobody is answered from the file until it was opened
        on a newer one. Any thread may. Changes nothing when the file is not served now: it is brought in order anyway.
        """
        if self._condition is Condition.SERVED:
            self._condition = Condition.PAGES_GONE

    def unsaved_seconds(self) -> float:
        """Say how long other programs' commits have been in the file and not in the log, as far as was seen; any thread
        may ask.
        """
        since = self._unsaved_since
        return 0.0 if since is None else self._clock.now() - since

    def read_ahead(self) -> Iterator[None]:
        """Fetch what is likely to be asked for next of a paged file, a block at each step; of any other it is there.
        Any thread may. Raises what reading the store raises.
        """
        return self._pages.read_ahead() if self._pages else iter(())

    def catch_up(self, limit: int | None = None) -> bool:
        """Apply what is new in the log, up to `limit` objects of it; returns whether there was anything."""
        if self._pages and self._pages.has_outgrown_its_snapshot():
            self.lose_pages()
        for tries_left in reversed(range(_SNAPSHOTS)):
            try:
                moved = self._catch_up(limit)
                if not self.has_looked_past and limit is None:
                    self._check_head_is_served()
                return moved
            except errors.SnapshotGone:
                if not tries_left:
                    raise
                self.lose_pages()
        raise AssertionError("unreachable")

    def look_past_snapshot(self) -> None:
        """See to it that a file that was opened page by page is at the log's head, which nobody has looked for yet."""
        if not self.has_looked_past:
            self.catch_up()

    def _check_head_is_served(self) -> None:
        """As `open` does with a file that is at the head. Until it is, nobody is answered from this one."""
        try:
            self.at_rest.check_log_served(self.file.writer.connection())
            self.log.head.check_written_here(self.visible)
        except BaseException:
            self._condition = Condition.UNSETTLED
            raise
        self.has_looked_past = True

    def _catch_up(self, limit: int | None) -> bool:
        if self._condition is not Condition.SERVED:
            self._settle()
            return True
        is_paged = self.snapshot is not None
        most = _MOST_BEHIND if is_paged else None
        changes = self.log.changes(self.stored, limit, most=most, is_new=is_paged and not self.has_looked_past)
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
            self._until_stored([write], deadline)
        except Exception as error:
            write.error = error

    def _until_stored(self, writes: Sequence[Write], deadline: float, work: Callable[[], None] | None = None) -> None:
        """Do the work that sets the outcome of these writes until what it commits is in the log; without any, they
        share a transaction.
        """
        work = work or partial(run_together, writes, self.file, self._clock, deadline, self.log.observer)
        self._fairness.before_first_attempt()
        given_up = set[LogObject | None]()  # snapshots whose pages were gone
        for conflicts in count(1):
            try:
                committed = self._patiently(partial(self._attempt, work, deadline))
            except Aborted as aborted:
                if self._can_be_opened_anew(aborted.write.error, given_up):
                    continue
                if len(writes) > 1:
                    raise
                committed = False
            except (errors.DatabaseDamaged, errors.SnapshotGone) as error:
                if not self._can_be_opened_anew(error, given_up):
                    raise
                continue
            except errors.CommitOutcomeUnknown as error:
                self._unsettled = error.txid
                self.log.observer.outcome_unknown()
                raise
            except errors.CommitConflict as error:
                self.log.observer.commit_conflicted()
                if self._clock.now() >= deadline:
                    raise errors.CommitNotStored("Other instances were faster every time.") from error
                # The commit that was lost to is all that is known to be new; asking for more would take another turn
                self.catch_up(None if conflicts % _LOOK_FURTHER == 0 or not self.has_looked_past else 1)
                self._fairness.lost(conflicts)
                continue
            except FileChanged as error:
                self._settle()
                if self._clock.now() >= deadline:
                    raise errors.DatabaseLocked("Another program kept changing the database.") from error
                continue
            except errors.TransactionTooLarge:
                if self.file.has_unshipped():  # another program's transaction was in the way
                    continue
                raise
            # What commits nothing was a read
            if not committed and self._is_outdated(writes):
                continue
            if committed:
                self.log.observer.commit_shared(self.stored.txid, sum(not write.error for write in writes))
            for write in writes:
                write.shown = self.visible.txid
                if write.txid > write.shown and (write.error or not committed):
                    write.error = self._not_reached(write.txid)
            return
        raise AssertionError("unreachable")

    def _can_be_opened_anew(self, error: Exception | None, given_up: set[LogObject | None]) -> bool:
        """Whether a file that ends a transaction like that is no longer served, and the next attempt opens it anew.
        `given_up`: the snapshots that this was done for; one that is still listed, and gone, would be so again.
        """
        match error:
            case errors.DatabaseDamaged():
                return self.suspect()
            case errors.SnapshotGone():
                is_new = self.snapshot not in given_up
                given_up.add(self.snapshot)
                if is_new:
                    self.lose_pages()
                return is_new
        return False

    def _attempt(self, work: Callable[[], None], deadline: float) -> bool:
        """Returns whether anything was committed."""
        if self._pages and self._pages.has_outgrown_its_snapshot():
            self.lose_pages()
        if self._condition is not Condition.SERVED:
            self._settle()
        self.file.check_in_place()
        if self.file.look():
            self._ship_others(deadline)
        self.committer.deadline = deadline
        before = self.stored
        try:
            with translated_errors(self.path):
                work()
        except Exception as error:
            if self.stored == before:
                raise
            self._condition = Condition.UNSETTLED
            raise errors.CommitOutcomeUnknown(
                f"The commit is stored, but {self.path} could not take it: {error}", self.stored.txid
            ) from error
        if self.file.went_unshipped:
            self._condition = Condition.UNSETTLED
            raise errors.CommitOutcomeUnknown(
                "A transaction was committed without being stored (was PRAGMA synchronous changed?).",
                self.stored.txid + 1,
            )
        self.visible = self.stored
        self.blocked = None
        if self.stored == before:
            return False
        self.has_looked_past = True  # or the number would have been taken
        return True

    def _take_the_number(self, db: peewee.Database) -> None:
        """By a commit that changes nothing: to set what stands there already writes the first page anew."""
        if self.stored.txid < self._unsettled:
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
        begun, waited = self._clock.now(), 0.0
        until = begun + self.at_rest.busy_timeout
        try:
            while True:
                try:
                    return attempt()
                except errors.DatabaseLocked as error:
                    now = self._clock.now()
                    waited = now - begun
                    if error.__cause__:  # SQLite's word, and not our own care
                        self.log.observer.lock_met()
                    if now >= until:
                        self.blocked = error
                        raise
                    self.waits_for = error
                    self._clock.sleep(_BUSY_POLL_SECONDS)
                    with suppress(errors.DatabaseLocked):
                        if self._is_connected:
                            self._ship_others(until)
        finally:
            self.waits_for = None
            if waited:
                self.log.observer.lock_waited(waited)

    def _ship_others(self, deadline: float) -> None:
        """Store what other programs have committed to the file."""
        self.committer.deadline = deadline
        self._note_unsaved(True)
        try:
            shipped = self.file.ship_others()
        finally:
            self.visible = self.stored  # the first of several may be stored, and what they changed is shown already
        self._note_unsaved(bool(self.at_rest.waiting))
        if shipped:
            logger.info("another program's changes of %s are commit %016x", self.path, self.stored.txid)

    def _redo(self) -> None:
        """Commit what other programs had changed on top of a state that was not the newest any more."""
        for path in list(self.at_rest.waiting):
            self._note_unsaved(True)
            changeset = path.read_bytes()

            def use_case(db: peewee.Database, changeset: bytes = changeset) -> None:
                apply_changes(changeset, db.connection())

            try:
                self.write(use_case, self._clock.now() + _REDO_SECONDS, float("-inf"))
            except (DoesNotFit, errors.WriteRefused, errors.NotServed) as error:
                self.at_rest.waiting.remove(path)
                logger.error(
                    "%s: another program's changes do not fit the state that the log has since: %s. They are kept; "
                    "`python -m infra changes %s` shows them as SQL, and the next start tries them again",
                    path,
                    error,
                    path,
                )
            else:
                self.at_rest.remove_changes(path)
                txid = self.stored.txid
                logger.info("another program's changes of %s, done again, are commit %016x", self.path, txid)
            self._note_unsaved(bool(self.at_rest.waiting))

    def _note_unsaved(self, is_there: bool) -> None:
        if not is_there:
            self._unsaved_since = None
        elif self._unsaved_since is None:
            self._unsaved_since = self._clock.now()

    # Replacing the file

    def _take(self, changes: list[Change]) -> None:
        self.file.look()
        self._swap(partial(self._apply, changes))

    def _apply(self, changes: list[Change]) -> None:
        known = self.file.known
        self._disconnect(Condition.UNSETTLED)
        try:
            position = self.at_rest.apply(changes, self.stored, known)
        except errors.DatabaseLocked:
            self._connect(self.stored, known)  # reads go on
            raise
        self.at_rest.position_file.checkpointed = position.txid
        self._connect(position, self.at_rest.known)

    @property
    def _is_connected(self) -> bool:
        return self._condition in (Condition.SERVED, Condition.SUSPECT, Condition.PAGES_GONE)

    def _settle(self) -> None:
        """Bring the file in order, whatever it is and whoever has changed it."""
        if self._condition is Condition.SUSPECT:
            with suppress(FileChanged, errors.DatabaseDamaged):
                self.file.look()  # it may be a copy that was put over the file
            logger.error("SQLite has found %s damaged while the service runs; it becomes what the log has", self.path)
            self._healed = self._clock.now()
        condition = self._condition if self._condition is Condition.OVERWRITTEN else Condition.UNSETTLED
        if self._is_connected and self.file.is_overwritten():
            logger.warning("%s was overwritten while the service runs", self.path)
            condition = Condition.OVERWRITTEN
        if self._is_connected and self.file.has_backfilled_everything():  # by another program; the note cannot know
            self.committer.note_checkpoint()
            self.at_rest.position_file.note(self.stored)
        if self._is_connected and condition is not Condition.OVERWRITTEN:
            self.at_rest.hold()
        self._swap(partial(self._disconnect, condition))
        if condition is Condition.OVERWRITTEN:
            with suppress(FileChanged):  # a shell has mixed the two by now: then the log decides
                self.at_rest.discard_wal(self.stored, self.file.known)
            self._condition = Condition.UNSETTLED
        for tries_left in reversed(range(_SETTLINGS)):
            try:
                with translated_errors(self.path):
                    position = self.at_rest.settle()
                self.blocked = self.at_rest.blocked
                if not self.at_rest.known.shipped.frames:
                    self.at_rest.position_file.checkpointed = position.txid
                return self._swap(partial(self._connect, position, self.at_rest.known))
            except FileChanged:
                if not tries_left:
                    raise

    def _connect(self, position: Position, known: Known) -> None:
        self.file.connect(known)
        self.committer.position = self.visible = position
        if not known.shipped.frames:  # or the note says already where the WAL has this commit
            self.at_rest.position_file.note(position)
        self.at_rest.keep_hold_of_wal()
        self._condition = Condition.SERVED
        self._note_unsaved(bool(self.at_rest.waiting))

    def _disconnect(self, condition: Condition) -> None:
        self._condition = condition
        self.file.disconnect()
