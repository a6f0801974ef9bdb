"""The database file while it is open: its connections, and what other programs do to it meanwhile."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from traceback import clear_frames
from typing import Any

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core import errors
from core.statements import first_word
from infra.clock import Clock
from infra.commitlog.anchor import Anchor, begin_reading, end_reading
from infra.commitlog.checkpoint import CHECKPOINT_FRAMES, NO_BACKFILL, NOTHING, Backfill, WalIndex, backfill
from infra.commitlog.commit import Committer
from infra.commitlog.defences import defend
from infra.commitlog.file_state import FileChanged, FileState, Known, Shipped, inode_of, shm_of, state_of, wal_of
from infra.commitlog.schema import Schema
from infra.commitlog.vfs import ShippingVFS
from infra.commitlog.wal import salts_in
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

_STEPS_BETWEEN_LOOKS = 100_000  # of SQLite's virtual machine, some milliseconds
_OVERWRITTEN_SECONDS = 2.0  # a copy over the file is complete when it has not changed for so long
_PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}
_WRITER_PRAGMAS = {**_PRAGMAS, "secure_delete": "fast"}  # what is zeros in a page takes no room in a commit
_SAVEPOINT = "one_of_the_requests"
# What would outlast the request that does it; asking for the value is no harm
_KEPT_PRAGMAS = {
    "foreign_keys",
    "journal_mode",
    "locking_mode",
    "query_only",
    "synchronous",
    "temp_store",
    "wal_autocheckpoint",
    "writable_schema",
}
_TEMPORARY = {
    apsw.SQLITE_CREATE_TEMP_INDEX,
    apsw.SQLITE_CREATE_TEMP_TABLE,
    apsw.SQLITE_CREATE_TEMP_TRIGGER,
    apsw.SQLITE_CREATE_TEMP_VIEW,
}
_CHANGES_ROWS = {"DELETE", "INSERT", "REPLACE", "UPDATE", "WITH"}
_vfs_numbers = count(1)


class SavepointLost(Exception):
    """The transaction has ended inside a savepoint, or something in it is left open. `cause`: the error behind that."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class OpenFile:
    """One connection that writes, one that reads, and an anchor. Raises DatabaseError."""

    def __init__(
        self, path: Path, clock: Clock, committer: Committer, schema: Schema, *, lasting: bool, vfs: str = ""
    ) -> None:
        """`schema`: what may become a commit. `lasting`: the file outlives this process. `vfs`: the one to open it
        through, if not SQLite's own.
        """
        self.path = path
        self._wal, self._shm = str(wal_of(path)), str(shm_of(path))
        self.run_until = float("inf")  # by the clock: a statement that takes longer is stopped
        self.went_unshipped = False  # whether a commit has gone by that was not shipped
        self._clock = clock
        self._committer = committer
        self._state: FileState | None = None
        self._backfilled = NO_BACKFILL
        self._backfilled_early = False  # whether a checkpoint has moved into the file what was not shipped
        self._vouched = True
        self._inodes: tuple[int, ...] = ()  # of the WAL and its index
        self._unexplained: tuple[float, FileState] | None = None  # what no checkpoint has made of it, and since when
        self._may_commit = False
        self._schema = schema
        self._checked = 0  # SQLite's data_version of the state that was last looked at, if others have made it
        self._anchor = Anchor(path, vfs)
        self._vfs = ShippingVFS(f"commitlog-{next(_vfs_numbers)}", committer, lasting, vfs)
        # Who waits, and for how long, is not decided by SQLite
        options: dict[str, Any] = {"timeout": 0, "thread_safe": False}
        self.writer = _Writer(str(path), pragmas=_WRITER_PRAGMAS, vfs=self._vfs.name, **options)
        self.reader: peewee.Database = APSWDatabase(
            str(path), pragmas={**_PRAGMAS, "query_only": 1}, vfs=vfs or None, **options
        )

    @property
    def known(self) -> Known:
        """Say what the file is, now or as it was left; without a state while it holds what is not in the log."""
        return Known(None if self._backfilled_early else self._state, self._vfs.shipped, self._vouched)

    def connect(self, known: Known) -> None:
        """Open the connections. Raises FileChanged when the file is no longer what is known of it."""
        self._vfs.expect(known.shipped)
        try:
            with translated_errors(self.path):
                self._anchor.hold()
                self.writer.connect()
                self.reader.connect()
                self._prepare(self.writer.connection())
                self._note_backfilled(self._index().backfilled)
                self._check_is(known)
                self._inodes = self._found_inodes()
                version = self.writer.connection().pragma("data_version")
                self._checked = 0 if self.has_unshipped() else version  # others may have been here before
        except BaseException:
            self.disconnect()
            raise
        self._state, self._vouched, self._unexplained = known.state, known.vouched, None

    def disconnect(self) -> None:
        """Close the connections; the WAL stays as it is."""
        self.reader.close()
        self.writer.close()
        self._anchor.release()

    def close(self) -> None:
        """Close the connections for good. Safe to call twice."""
        self.disconnect()
        self._vfs.close()

    def _prepare(self, writer: apsw.Connection) -> None:
        for each in (writer, self.reader.connection()):
            defend(each)
            each.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        writer.set_wal_hook(self._on_commit)
        writer.set_commit_hook(self._refuse_stray_commit)
        writer.set_progress_handler(self._take_too_long, _STEPS_BETWEEN_LOOKS)
        if writer.pragma("synchronous") != 2:
            raise errors.DatabaseUnavailable("SQLite must run with synchronous=FULL; a commit is stored by its sync.")
        writer.set_authorizer(_refuse_what_outlasts_a_request)

    def _check_is(self, known: Known) -> None:
        shipped = known.shipped
        same_wal = not shipped.frames or salts_in(wal_of(self.path)) == shipped.salts
        if known.state is None or state_of(self.path) != known.state or not same_wal:
            raise FileChanged(f"{self.path} is being changed by another program.")

    # Transactions

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit when the body ends well, and nowhere before; then do what Peewee was told to do after the commit."""
        callbacks: list[Callable[[], Any]] = []
        with self._work(), self.writer.atomic("IMMEDIATE"):
            self._check_schema(self.writer.connection())  # of what was committed just before, and is shipped along
            yield
            callbacks, self._callbacks[:] = list(self._callbacks), []
            self._may_commit = True
        for callback in callbacks:
            try:
                callback()
            except Exception:  # the commit is stored, whatever comes of this
                logger.exception("what was to be done after a commit has failed")

    def try_lock(self) -> None:
        """Raises DatabaseLocked while another program does not let this one write."""
        with translated_errors(self.path):
            for statement in ("BEGIN IMMEDIATE", "ROLLBACK"):
                self.writer.connection().execute(statement)

    @contextmanager
    def savepoint(self) -> Iterator[None]:
        """Undo what the body did when it raises.

        Raises SavepointLost when it has ended the transaction, left one of its own open, or a statement unfinished.
        """
        connection, callbacks = self.writer.connection(), len(self._callbacks)
        cause: Exception | None = None
        connection.execute(f"SAVEPOINT {_SAVEPOINT}")
        try:
            yield
        except Exception as error:
            cause = error
            clear_frames(error.__traceback__)  # a cursor in one of them would keep the savepoint busy
            del self._callbacks[callbacks:]
        try:
            if self.writer.transaction_depth() != 1:
                raise peewee.InterfaceError("there is a transaction inside it")
            # Some errors end the whole transaction, and what came next would be committed by itself
            if cause:
                connection.execute(f"ROLLBACK TO {_SAVEPOINT}")
            connection.execute(f"RELEASE {_SAVEPOINT}")
        except (apsw.Error, peewee.InterfaceError) as error:
            while self.writer.transaction_depth() > 1:
                self.writer.pop_transaction()
            fault = peewee.InterfaceError(f"A request has ended its transaction, or has left something open: {error}.")
            raise SavepointLost(cause or fault) from error
        if cause:
            raise cause

    @contextmanager
    def autocommit(self) -> Iterator[None]:
        """Make each statement of the body a commit."""
        with self._work():
            self._may_commit = True
            yield

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Begins without anything of what was before, and ends without a transaction."""
        self._vfs.forget()
        self.went_unshipped = False
        try:
            yield
        finally:
            self._may_commit = False
            self._end_transaction()

    def _end_transaction(self) -> None:
        """One that a use case has begun by itself."""
        while self.writer.transaction_depth():
            self.writer.pop_transaction()
        if self.writer.connection().in_transaction:
            self.writer.rollback()
            raise errors.DatabaseUnavailable("A request has left a transaction open.")

    @property
    def _callbacks(self) -> list[Callable[[], Any]]:
        """What is to be done after the commit; Peewee has no public name for it."""
        callbacks: list[Callable[[], Any]] = self.writer._state.commit_callbacks
        return callbacks

    def _refuse_stray_commit(self) -> bool:
        """SQLite asks before each commit. Inside a request, only the end of its transaction is one."""
        return not self._may_commit

    def _take_too_long(self) -> bool:
        """SQLite asks now and then during a statement."""
        return self._clock.now() > self.run_until

    def _on_commit(self, connection: apsw.Connection, name: str, frames: int) -> int:
        """SQLite calls this after each commit; the other half of the proof that nothing goes by unshipped."""
        shipped = self._vfs.shipped
        self.went_unshipped |= frames != shipped.frames
        if shipped.salts != self._backfilled.salts and state_of(self.path) == self._state:
            self._backfilled = Backfill(shipped.salts, 0)  # that this commit has begun the WAL anew explains nothing
        if frames >= CHECKPOINT_FRAMES:
            # The commit is stored; the next one tries again
            with suppress(apsw.Error, errors.DatabaseLocked, errors.StoreError, errors.LogDamaged):
                self.checkpoint()
        return apsw.SQLITE_OK

    def checkpoint(self) -> None:
        """Backfill as much of the WAL as nobody reads. Raises DatabaseLocked when something in it is not shipped."""
        self._move_anchor()  # to the end of the WAL, so that all of it can be backfilled
        try:
            is_complete = backfill(self.writer.connection())
        finally:  # what a full disk has stopped halfway has changed the file as well, by what the WAL still has
            self._state, self._backfilled = state_of(self.path), self._index().backfilled
        if is_complete:
            self._committer.note_checkpoint()
            self._move_anchor()  # off the WAL, so that it can be begun anew

    # Other programs

    def check_in_place(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened; any thread may ask.

        After `rm` or `mv` SQLite would go on writing to a file that nobody can find any more.
        """
        found, known = state_of(self.path), self._state
        if known and (found is None or found.inode != known.inode):
            raise errors.DatabaseUnavailable(
                f"{self.path} was removed or replaced while the service runs: move it back, or restart the service, "
                "which serves what the log has."
            )

    def look(self) -> bool:
        """See what other programs have done since the last look, and return whether they have committed anything that
        is not shipped.

        The file changes only by checkpoints, and those show in the WAL's index. Raises FileChanged when something else
        has written to it, DatabaseLocked while it may be a checkpoint or is going on.
        """
        if self._found_inodes() != self._inodes:
            raise FileChanged(f"the write-ahead log of {self.path}, or its index, was removed.")
        damage: errors.DatabaseDamaged | None = None
        backfilled, index = self._backfilled, NOTHING
        try:
            index = self._index()
            backfilled = index.backfilled
        except errors.DatabaseDamaged as error:  # that was no checkpoint
            damage = error
        self._check_explained(state_of(self.path), backfilled)
        if damage:
            raise damage
        return self._is_unshipped(index)

    def _check_explained(self, found: FileState | None, backfilled: Backfill) -> None:
        if found is None or found == self._state or backfilled != self._backfilled:
            # A checkpoint of somebody else may hide that the file was overwritten: the next start looks into it
            self._vouched &= found is None or found == self._state
            self._state, self._unexplained = found or self._state, None
            self._note_backfilled(backfilled)
            return
        now = self._clock.now()
        since, seen = self._unexplained or (now, found)
        self._unexplained = (since if seen == found else now), found
        if now - self._unexplained[0] < _OVERWRITTEN_SECONDS:
            raise errors.DatabaseLocked(f"{self.path} is being written by another program.")
        raise FileChanged(f"{self.path} was overwritten by another program.")

    def ship_others(self) -> int:
        """Ship what other programs have committed, and keep their checkpoints waiting no longer. Returns how many
        commits it has become. Raises what `Committer.ship` raises, DatabaseLocked while the file may have been
        overwritten.
        """
        if self._unexplained:
            raise errors.DatabaseLocked(f"{self.path} is being written by another program.")
        shipped = 0
        with translated_errors(self.path), self._anchor.moving():
            while self._is_unshipped(index := self._index()):
                with self._reading() as connection:
                    self._check_schema(connection)
                if index == self._index():  # and so the state that was looked at
                    self._vfs.ship_frames(index.frames)
                    shipped += 1
        self._backfilled_early = False
        return shipped

    def has_unshipped(self) -> bool:
        """Ask whether other programs have committed what is not shipped."""
        return self._is_unshipped(self._index())

    def has_backfilled_everything(self) -> bool:
        """Ask whether the WAL was begun anew after all that was shipped of it had been moved into the file."""
        return self._vfs.salts != self._vfs.shipped.salts

    def is_overwritten(self) -> bool:
        """Ask whether something has written to the file that was no checkpoint, and all of the WAL is shipped."""
        return self._unexplained is not None and not self.has_unshipped()

    @contextmanager
    def _reading(self) -> Iterator[apsw.Connection]:
        connection = self.writer.connection()
        begin_reading(connection)
        try:
            yield connection
        finally:
            end_reading(connection)

    def _check_schema(self, connection: apsw.Connection) -> None:
        """Raises FileChanged when another program has made of the database what may not become a commit as it is."""
        version = connection.pragma("data_version")
        if version == self._checked:
            return
        try:
            servable = self._schema.check(connection)
        except errors.NotServed as error:
            raise FileChanged(f"{self.path} was changed by another program. {error}") from error
        if not servable:
            raise FileChanged(f"{self.path} was brought to an older schema by another program.")
        self._checked = version

    def _move_anchor(self) -> None:
        with self._anchor.moving():
            if self.has_unshipped():
                raise errors.DatabaseLocked("Another program's changes are to be stored first.")

    def _index(self) -> WalIndex:
        """What the WAL's index says."""
        connection = self.writer.connection()
        with translated_errors(self.path):
            while True:
                index = WalIndex.read(connection, self._vfs.salts)
                if self._vfs.salts == index.salts:  # or another program has begun the WAL anew in between
                    return index

    def _is_unshipped(self, index: WalIndex) -> bool:
        return bool(index.frames) and Shipped(index.salts, index.frames) != self._vfs.shipped

    def _found_inodes(self) -> tuple[int, ...]:
        """0 for a file that is not there."""
        return inode_of(self._wal), inode_of(self._shm)

    def _note_backfilled(self, backfilled: Backfill) -> None:
        """Take down how far the WAL is backfilled, and whether that is further than it is shipped.

        Between two anchors nobody holds the WAL. A checkpoint may backfill then what another program has just
        committed; when the WAL is begun anew or removed, the file alone still has it.
        """
        self._backfilled = backfilled
        self._backfilled_early = backfilled.frames > self._vfs.shipped.frames


class _Writer(APSWDatabase):  # type: ignore[misc]
    def execute_sql(self, sql: str, params: Any = None) -> Any:
        """Raises WriteRefused when the statement is sound, and what the database does by itself along with it (a
        trigger, an index of an expression) fails for these values.
        """
        try:
            return super().execute_sql(sql, params)
        except (peewee.PeeweeException, apsw.SQLError) as error:
            if isinstance(getattr(error, "orig", error), apsw.SQLError) and self._is_sound(sql, params):
                raise errors.WriteRefused(f"The database refuses it: {error}") from error
            raise

    def _is_sound(self, sql: str, params: Any) -> bool:
        try:
            self.connection().execute(f"EXPLAIN {sql}", params, can_cache=False).fetchall()
        except apsw.Error:
            return False
        return first_word(sql) in _CHANGES_ROWS


def _refuse_what_outlasts_a_request(action: int, one: str | None, two: str | None, *_: str | None) -> int:
    """SQLite asks when it prepares a statement. All requests share one connection; temporary tables are in no log."""
    kept = action == apsw.SQLITE_PRAGMA and one in _KEPT_PRAGMAS and two is not None
    return apsw.SQLITE_DENY if kept or action in _TEMPORARY else apsw.SQLITE_OK
