"""The way of a log's data into PostgreSQL, while everybody goes on writing until the last moment.

The state of one commit is copied, then what the commits since have changed, again and again until that is little. Then
a write stop is committed (see write_stop.py), what is left is copied, and the same stop is committed without an end:
directly behind the commit whose state was copied, or one more round is due. That commit is the moment of the move.
Until then nothing has changed for anybody, and whatever was killed is run again.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import peewee

from core.errors import CommitOutcomeUnknown, MoveFailed, MoveRefused, ServiceError
from infra.clock import Clock
from infra.commitlog import Replica
from infra.moving import write_stop
from infra.moving.differences import attach, come, gone
from infra.moving.odd import Survey, check_schema, highest_id, survey
from infra.moving.rows import Lines, Moved, Row, Sum, Table, batches, selected, tables
from infra.moving.target import Target
from infra.moving.write_stop import Reason, Stop
from infra.progress import Progress

Say = Callable[[str], None]

_LITTLE = 500  # rows: what is copied under the write stop
_MOST_ROUNDS = 20  # before it
_MOST_STOPS = 5
_STOP_SECONDS = 60  # the longest, if whoever has made it is killed; and no more than so often what a round took
_TIMES_A_ROUND = 10
_COMMIT_SECONDS = 60.0


class OneMoreRound(Exception):
    """Somebody has written since the state that was copied."""


class Move:
    """Of a log, into a PostgreSQL; `scratch`: a directory for copies; `say`: whom to tell each step.

    Raises MoveRefused for what must be mended first, and any other ServiceError when it may be run again. Unless that
    says otherwise, nothing has changed for anybody.
    """

    def __init__(
        self, replica: Replica, target: Target, scratch: Path, keep_hours: int, progress: Progress, say: Say
    ) -> None:
        """`replica`: a private copy of the log's newest state. `keep_hours`: for how long an Idempotency-Key counts."""
        self._clock = Clock()
        self._replica = replica
        self._target = target
        self._copied = scratch / "copied.db"  # the state that the target has
        self._newest = scratch / "newest.db"
        self._progress = progress
        self._say = say
        self._tables = tables(keep_hours)
        self._log = f"{replica.stored.log_id:016x}"
        self._id = ""
        self._here = {table.name: Sum() for table in self._tables}  # of the log's rows
        self._there = {table.name: Sum() for table in self._tables}  # of the target's
        self._at = replica.stored  # whose state the target has

    # The three commands

    def rehearse(self) -> None:
        """Copy everything in a transaction that is undone at its end."""
        self._check_may_begin()
        found = self._look_at_all()
        with self._target.rehearsal():
            self._target.begin()
            self._copy_all(found)

    def run(self) -> Moved | None:
        """Returns None when it was moved before."""
        stop = self._stop_now()
        if stop and stop.reason is Reason.MOVED and stop.place == self._target.place:
            self._finish(stop)
            return None
        self._id = self._check_may_begin() or secrets.token_hex(8)
        found = self._look_at_all()
        self._target.claim(self._id, self._log)
        try:
            self._target.begin()
            self._copy_all(found)
            self._catch_up()
            self._compare(found)
            self._target.analyze()
            moved = self._stopped()
        except MoveRefused:  # somebody must mend something first
            self._target.clear()
            self._target.release()
            raise
        self._target.release()
        return moved

    def _finish(self, stop: Stop) -> None:
        """A run that was killed behind the last step had compared everything before that."""
        if self._target.has_marker():
            self._target.claim(stop.move, self._log)
            self._target.release()

    def cancel(self) -> str:
        """Undo a move that has not come to its end; returns what was done."""
        stop = self._stop_now()
        if stop and (stop.reason is not Reason.MOVING or stop.place != self._target.place):
            raise MoveRefused(f"there is nothing to cancel: {stop}")
        unfinished = self._target.unfinished()
        if unfinished:
            self._check_is_ours(unfinished)
            self._target.claim(*unfinished)  # so that nobody goes on with it
        done = []
        if stop:
            self._write(write_stop.lift)
            done.append("writes are not stopped any more")
        if unfinished:
            self._target.clear()
            self._target.release()
            done.append(f"{self._target.place} is empty again")
        return "; ".join(done) or "there was nothing to cancel"

    # Before anything is changed

    @property
    def _connection(self) -> apsw.Connection:
        """Of the private copy, at the newest state that is known."""
        connection: apsw.Connection = self._replica.reader.connection()
        return connection

    def _stop_now(self) -> Stop | None:
        return write_stop.found_in(self._connection)

    def _write(self, use_case: Callable[[peewee.Database], None]) -> None:
        self._replica.write(use_case, self._clock.now() + _COMMIT_SECONDS, float("-inf"))

    def _check_may_begin(self) -> str:
        """Returns the id of the move that is to be begun anew, if there is one."""
        stop = self._stop_now()
        if stop and stop.reason is not Reason.MOVING:
            raise MoveRefused(f"writes are stopped: {stop}")
        unfinished = self._target.unfinished()
        if unfinished:
            self._check_is_ours(unfinished)
            return unfinished[0]
        return ""

    def _check_is_ours(self, unfinished: tuple[str, str]) -> None:
        if unfinished[1] != self._log:
            raise MoveRefused(
                f"{self._target.place} has the unfinished move of another log: name another database, or "
                "`move --cancel` with that log"
            )

    def _look_at_all(self) -> Survey:
        self._keep_newest()
        self._newest.replace(self._copied)
        self._at = self._replica.stored
        found = survey(self._copied, self._tables, self._progress)
        self._here = found.sums
        for name in found.left_behind:
            self._say(f"not of this release, and so left behind: {name}")
        return found

    def _keep_newest(self) -> None:
        """In a file of its own, so that the private copy can go on."""
        with (
            closing(apsw.Connection(str(self._newest))) as newest,
            newest.backup("main", self._connection, "main") as backup,
        ):
            backup.step()

    # Copying

    def _copy_all(self, found: Survey) -> None:
        self._say(f"TXID {self._at.txid:016x} is being copied to {self._target.place}")
        done = 0
        with closing(apsw.Connection(str(self._copied))) as connection:
            for table in self._tables:
                lines = _lines(connection, table)
                rows = connection.execute(f"SELECT {selected(table)} FROM {table.rows()}")  # noqa: S608
                for batch in batches(map(lines.line, rows), len):
                    self._target.copy(table, batch)
                    done += sum(map(len, batch))
                    self._progress("copy", min(done, found.bytes - 1), found.bytes)
        self._progress("copy", found.bytes, found.bytes)

    def _catch_up(self) -> None:
        """Copy what was committed meanwhile until there is little of it."""
        for _ in range(_MOST_ROUNDS):
            self._replica.catch_up()
            if self._copy_changes() < _LITTLE:
                return

    def _copy_changes(self) -> int:
        """Bring the target from the state that it has to the one that is here; returns how many rows that was."""
        newest, rows = self._replica.stored, 0
        if newest == self._at:
            return 0
        self._keep_newest()
        with closing(apsw.Connection(str(self._newest))) as connection:
            attach(connection, self._copied)
            check_schema(connection)
            for table in self._tables:
                rows += self._remove(connection, table)
            for table in self._tables:
                rows += self._add(connection, table)
        self._newest.replace(self._copied)
        self._say(f"{rows:,} rows that changed from TXID {self._at.txid:016x} to {newest.txid:016x} are copied")
        self._at = newest
        return rows

    def _remove(self, connection: apsw.Connection, table: Table) -> int:
        rows = 0
        for batch in batches(self._keyed(connection, table, gone(connection, table)), _size):
            keys = [key for key, _ in batch]
            for line in self._target.lines_of(table, keys):
                self._there[table.name].take(line)
            for _, line in batch:
                self._here[table.name].take(line)
            self._target.delete(table, keys)
            rows += len(batch)
        return rows

    def _add(self, connection: apsw.Connection, table: Table) -> int:
        rows = 0
        for batch in batches(self._keyed(connection, table, come(connection, table)), _size):
            self._target.copy(table, [line for _, line in batch])
            for _, line in batch:
                self._here[table.name].add(line)
            for line in self._target.lines_of(table, [key for key, _ in batch]):
                self._there[table.name].add(line)
            rows += len(batch)
        return rows

    def _keyed(self, connection: apsw.Connection, table: Table, rows: Iterator[Row]) -> Iterator[tuple[Row, bytes]]:
        lines = _lines(connection, table)
        return ((lines.key(row), lines.line(row)) for row in rows)

    # Comparing

    def _compare(self, found: Survey) -> None:
        """Read all that the target has."""
        self._there = {table.name: Sum() for table in self._tables}
        done = 0
        for table in self._tables:
            for batch in batches(self._target.lines(table), len):
                for line in batch:
                    self._there[table.name].add(line)
                done += sum(map(len, batch))
                self._progress("compare", min(done, found.bytes - 1), found.bytes)
        self._progress("compare", found.bytes, found.bytes)
        self._check_same()

    def _check_same(self) -> None:
        for table in self._tables:
            here, there = self._here[table.name], self._there[table.name]
            if here != there:
                raise MoveFailed(
                    f"table {table.name} is not the same on both sides: {here} in the log, {there} in "
                    f"{self._target.place}. Has somebody else written there? Run it again: it begins anew"
                )

    # The write stop

    def _stopped(self) -> Moved:
        begun, seconds = 0.0, float(_STOP_SECONDS)
        try:
            for _ in range(_MOST_STOPS):
                before = self._stop(seconds)
                round_begun = time.monotonic()
                begun = begun or round_begun
                self._target.until(seconds)
                self._copy_changes()
                self._check_same()
                self._target.complete(self._highest_ids())
                self._target.check_claimed()
                if self._make_it_last():
                    return Moved(self._target.place, time.monotonic() - begun, self._here, before)
                self._target.loosen()
                seconds = max(seconds, _TIMES_A_ROUND * (time.monotonic() - round_begun))
                self._replica.catch_up()
            raise MoveFailed(
                f"{_MOST_STOPS} times somebody has written although writes were stopped: is the clock of this machine, "
                "or of one that serves, wrong?"
            )
        except BaseException:
            self._lift()
            raise

    def _stop(self, seconds: float) -> int:
        """Stop writes for so long at most; returns the TXID before."""
        before = self._replica.stored

        def use_case(db: peewee.Database) -> None:
            nonlocal before
            before = self._replica.stored
            there_is = write_stop.found_in(db.connection())
            if there_is and there_is.move != self._id and (there_is.until is None or there_is.until > time.time()):
                raise MoveFailed(f"another move has begun: {there_is}")
            stop = Stop(Reason.MOVING, self._target.place, self._id, int(time.time() + seconds) + 1)
            write_stop.put(db, stop, self._names)

        self._write(use_case)
        self._say(f"writes are stopped, for {seconds:.0f} s at most, since TXID {self._replica.stored.txid:016x}")
        return before.txid

    def _make_it_last(self) -> bool:
        """Move, unless somebody has written since the state that was copied: then it returns False."""

        def use_case(db: peewee.Database) -> None:
            if self._replica.stored != self._at:
                raise OneMoreRound
            write_stop.put(db, Stop(Reason.MOVED, self._target.place, self._id), self._names)

        try:
            self._write(use_case)
        except OneMoreRound:
            return False
        except CommitOutcomeUnknown as error:
            self._say(f"it is not known whether TXID {error.txid:016x} is the last step; the log is asked")
            self._replica.settle_unknown(self._clock.now() + _COMMIT_SECONDS)
            stop = self._stop_now()
            return bool(stop and stop.reason is Reason.MOVED and stop.move == self._id)
        return True

    def _lift(self) -> None:
        """Let others write again, unless it is moved."""

        def use_case(db: peewee.Database) -> None:
            stop = write_stop.found_in(db.connection())
            if stop and stop.reason is Reason.MOVING and stop.move == self._id:
                write_stop.lift(db)

        try:
            self._write(use_case)
        except ServiceError as error:
            self._say(f"the write stop ends by itself, for it cannot be lifted now: {error}")

    def _highest_ids(self) -> dict[Table, int]:
        return {table: highest_id(self._connection, table) for table in self._tables if table.id}

    @property
    def _names(self) -> list[str]:
        return [table.name for table in self._tables]


def _lines(connection: apsw.Connection, table: Table) -> Lines:
    return Lines(table, str(connection.pragma("encoding")))


def _size(keyed: tuple[Row, bytes]) -> int:
    return len(keyed[1])
