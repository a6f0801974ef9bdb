"""The way of a log's data into PostgreSQL, while everybody goes on writing until the last moment.

The state of one commit is copied, then what the commits since have changed, again and again until that is little. Then
a write stop is committed (see write_stop.py), what is left is copied, and the same stop is committed without an end:
directly behind the commit whose state was copied, or one more round is due. That commit is the moment of the move.
Until then nothing has changed for anybody, and whatever was killed is run again.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import apsw
import peewee

from core.errors import (
    CommitOutcomeUnknown,
    MoveFailed,
    MoveRefused,
    ServiceError,
)
from infra.clock import Clock
from infra.commitlog import CommitLog, Position, Replica
from infra.moving import write_stop
from infra.moving.differences import attached, come, gone
from infra.moving.odd import Survey, check_schema, highest_id, survey
from infra.moving.rows import Lines, Sum, Table, selected, tables
from infra.moving.target import Target
from infra.moving.write_stop import Reason, Stop
from infra.operators.sql import private_copy
from infra.progress import Progress
from infra.settings import Settings

Say = Callable[[str], None]

_LITTLE = 500  # rows: what is copied under the write stop
_MOST_ROUNDS = 20  # before it
_MOST_STOPS = 5
_STOP_SECONDS = 60  # the longest, if whoever has made it is killed; and no more than so often what a round took
_TIMES_A_ROUND = 10
_COMMIT_SECONDS = 60.0


@dataclass(slots=True)
class Moved:
    """What has become of it."""

    place: str
    txid: int  # the last commit that was copied
    before: int  # the one before the write stop
    stopped_seconds: float  # how long nobody could write
    sums: dict[str, Sum] = field(default_factory=dict)
    left_behind: list[str] = field(default_factory=list)
    was_moved: bool = False  # before, by a run that did not come to its end


def move(
    log: CommitLog,
    settings: Settings,
    scratch: Path,
    progress: Progress,
    say: Say,
    *,
    dry_run: bool = False,
) -> Moved | None:
    """Move the log's newest state; None for a rehearsal. `settings`: of the PostgreSQL. `say`: whom to tell each step.

    Raises MoveRefused for what must be mended first, and any other ServiceError when it may be run again; unless it
    says otherwise, nothing has changed for anybody.
    """
    with closing(Target(settings)) as target:
        unfinished = target.unfinished()
        say(f"a private copy of the newest state of {log.url} is being made")
        with private_copy(log, Clock(), scratch / "app.db") as replica:
            it = _Move(replica, target, scratch, progress, say)
            if dry_run:
                return it.rehearse(unfinished)
            return it.run(unfinished)


def cancel(log: CommitLog, settings: Settings, scratch: Path) -> str:
    """Undo a move that has not come to its end; returns what was done. Raises MoveRefused for one that has."""
    with closing(Target(settings)) as target, private_copy(log, Clock(), scratch / "app.db") as replica:
        it = _Move(replica, target, scratch, lambda phase, done, total: None, lambda text: None)
        return it.cancel()


class _Move:
    def __init__(self, replica: Replica, target: Target, scratch: Path, progress: Progress, say: Say) -> None:
        self._replica = replica
        self._target = target
        self._copied = scratch / "copied.db"  # the state that the target has
        self._progress = progress
        self._say = say
        self._tables = tables()
        self._log = f"{replica.stored.log_id:016x}"
        self._id = ""
        self._sums: dict[str, Sum] = {}  # of the log's rows
        self._there: dict[str, Sum] = {}  # of the target's
        self._at = replica.stored  # whose state the target has

    # The three commands

    def rehearse(self, unfinished: tuple[str, str] | None) -> None:
        """Copy everything in a transaction that is undone at its end."""
        self._check_may_begin(unfinished)
        found = self._look_at_all()
        with self._target.rehearsal():
            self._target.begin()
            self._copy_all(found)
        self._say(f"all of it can be moved to {self._target.place}; nothing was changed anywhere")

    def run(self, unfinished: tuple[str, str] | None) -> Moved:
        stop = write_stop.found_in(self._connection)
        if stop and stop.reason is Reason.MOVED:
            return self._finish(stop, unfinished)
        self._id = self._check_may_begin(unfinished) or secrets.token_hex(8)
        found = self._look_at_all()
        self._target.claim(self._id, self._log)
        self._target.begin()
        self._copy_all(found)
        self._catch_up()
        self._compare()
        moved = self._stopped()
        self._target.release()
        return replace(moved, left_behind=found.left_behind)

    def cancel(self) -> str:
        stop = write_stop.found_in(self._connection)
        if stop and stop.reason is not Reason.MOVING:
            raise MoveRefused(f"there is nothing to cancel: {stop}")
        unfinished = self._target.unfinished()
        if unfinished:
            self._check_is_ours(unfinished)
            self._target.claim(*unfinished)  # so that nobody goes on with it
        done = []
        if stop:
            self._replica.write(write_stop.lift, time_limit(), float("-inf"))
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

    def _check_may_begin(self, unfinished: tuple[str, str] | None) -> str:
        """Returns the id of the move that is to be begun anew, if there is one."""
        stop = write_stop.found_in(self._connection)
        if stop and stop.reason is not Reason.MOVING:
            raise MoveRefused(f"{stop}: there is nothing to move")
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
        self._keep_copied()
        found = survey(self._copied, self._tables, self._progress)
        self._sums = found.sums
        for name in found.left_behind:
            self._say(f"not of this release, and so left behind: {name}")
        return found

    def _keep_copied(self) -> None:
        """Keep the state that is here now, to compare later ones with."""
        self._copied.unlink(missing_ok=True)
        with (
            closing(apsw.Connection(str(self._copied))) as copied,
            copied.backup("main", self._connection, "main") as backup,
        ):
            backup.step()
        self._at = self._replica.stored

    # Copying

    def _copy_all(self, found: Survey) -> None:
        self._say(f"TXID {self._at.txid:016x} is being copied to {self._target.place}")
        done = 0

        def counted(rows: Iterator[tuple[object, ...]], lines: Lines) -> Iterator[bytes]:
            nonlocal done
            for row in rows:
                line = lines.line(row)
                done += len(line)
                self._progress("copy", done, max(found.bytes, done))
                yield line

        with closing(apsw.Connection(str(self._copied))) as connection:
            for table in self._tables:
                rows = connection.execute(f"SELECT {selected(table)} FROM {table.quoted} NOT INDEXED")  # noqa: S608
                self._target.copy(table, counted(rows, self._lines(table)))

    def _catch_up(self) -> None:
        """Copy what was committed meanwhile until there is little of it."""
        for _ in range(_MOST_ROUNDS):
            self._replica.catch_up()
            if self._copy_changes() < _LITTLE:
                return

    def _copy_changes(self) -> int:
        """Bring the target from the state that it has to the one that is here; returns how many rows that was."""
        before, rows = self._at, 0
        if self._replica.stored == before:
            return 0
        check_schema(self._connection)
        with attached(self._connection, self._copied):
            for table in reversed(self._tables):
                rows += self._remove(table)
            for table in self._tables:
                rows += self._add(table)
        self._keep_copied()
        self._say(f"{rows:,} rows that changed between TXID {before.txid:016x} and {self._at.txid:016x} are copied")
        return rows

    def _remove(self, table: Table) -> int:
        lines, rows = self._lines(table), 0
        there = self._there.setdefault(table.name, Sum())
        for line in self._target.lines_of(table, map(lines.key, gone(self._connection, table))):
            there.take(line)
        for row in gone(self._connection, table):
            self._sums[table.name].take(lines.line(row))
            rows += 1
        self._target.delete(table, map(lines.key, gone(self._connection, table)))
        return rows

    def _add(self, table: Table) -> int:
        lines, rows = self._lines(table), 0
        here, there = self._sums[table.name], self._there.setdefault(table.name, Sum())

        def added() -> Iterator[bytes]:
            nonlocal rows
            for row in come(self._connection, table):
                here.add(line := lines.line(row))
                rows += 1
                yield line

        self._target.copy(table, added())
        for line in self._target.lines_of(table, map(lines.key, come(self._connection, table))):
            there.add(line)
        return rows

    def _lines(self, table: Table) -> Lines:
        return Lines(table, str(self._connection.pragma("encoding")))

    # Comparing

    def _compare(self) -> None:
        """Read all that the target has."""
        self._there = {table.name: Sum() for table in self._tables}
        total, done = sum(it.rows for it in self._sums.values()), 0
        for table in self._tables:
            there = self._there[table.name]
            for line in self._target.lines(table):
                there.add(line)
                done += 1
                if not done % 1000:
                    self._progress("compare", done, max(total, done + 1))
        self._progress("compare", total, total)
        self._check_same()

    def _check_same(self) -> None:
        for table in self._tables:
            here, there = self._sums[table.name], self._there[table.name]
            if here != there:
                raise MoveFailed(
                    f"table {table.name} is not the same on both sides: {here} in the log, {there} in "
                    f"{self._target.place}. Has somebody else written there?"
                )

    # The write stop

    def _stopped(self) -> Moved:
        before, begun, seconds = self._replica.stored, 0.0, float(_STOP_SECONDS)
        try:
            for _ in range(_MOST_STOPS):
                before = self._stop(seconds)
                begun = begun or time.monotonic()
                round_begun = time.monotonic()
                self._target.until(seconds)
                self._copy_changes()
                self._check_same()
                self._target.complete({table: highest_id(self._connection, table) for table in self._tables if table.id})
                self._target.check_claimed()
                if self._make_it_last():
                    stopped = time.monotonic() - begun
                    return Moved(self._target.place, self._at.txid, before.txid, stopped, self._sums)
                seconds = max(seconds, _TIMES_A_ROUND * (time.monotonic() - round_begun))
                self._target.incomplete()
            raise MoveFailed(
                f"somebody has written {_MOST_STOPS} times although writes are stopped: does this machine's clock say "
                "the right time?"
            )
        except BaseException:
            self._lift()
            raise
