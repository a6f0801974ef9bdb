"""The way back: PostgreSQL's data as the first state of a new log, while others read.

What is put into the log has a write stop of its own (see write_stop.py) until PostgreSQL has one for good: so at no
time can anybody write to both. The commit of the latter is the moment of the move; then the log's is lifted.
"""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import apsw
import peewee
from playhouse.apsw_ext import APSWDatabase

from core.errors import MoveFailed, MoveRefused
from core.migrations import migrate
from infra.clock import Clock
from infra.commitlog import CommitLog, Replica, opened_image, publish_file
from infra.moving import write_stop
from infra.moving.rows import Lines, Moved, Sum, Table, batches, selected, tables, values_of
from infra.moving.source import Source
from infra.moving.write_stop import Reason, Stop
from infra.operators.sql import private_copy
from infra.progress import Progress

Say = Callable[[str], None]

_COMMIT_SECONDS = 60.0
_PAGE_SIZE = 1024  # as a log has that begins without a file


class MoveBack:
    """Of a PostgreSQL, into a log that has nothing; `scratch`: a directory for copies; `say`: whom to tell each step.

    Raises MoveRefused for what must be mended first, and any other ServiceError when it may be run again.
    """

    def __init__(self, log: CommitLog, source: Source, scratch: Path, progress: Progress, say: Say) -> None:
        self._log = log
        self._clock = Clock()
        self._source = source
        self._image = scratch / "app.db"
        self._progress = progress
        self._say = say
        self._tables = tables()
        self._sums = {table.name: Sum() for table in self._tables}

    def rehearse(self) -> None:
        """Copy everything, and put it nowhere."""
        self._source.check(self._tables)
        self._check_is_free(self._stop_in_log())
        self._begin()
        with self._source.one_state():
            self._copy_all()

    def run(self) -> Moved | None:
        """Returns None when it was moved there before."""
        begun = time.monotonic()
        self._source.check(self._tables)
        there_is, stop = self._stop_in_log(), self._source.stop()
        if stop and stop.place != self._log.url:
            raise MoveRefused(f"writes are stopped in {self._source.place}: {stop}")
        if stop and (not there_is or there_is.move != stop.move):
            return None
        if not stop:
            move = self._check_is_free(there_is) or secrets.token_hex(8)
            stop = Stop(Reason.MOVED, self._log.url, move)
            self._begin()
            with self._source.stopped(replace(stop, reason=Reason.MOVING), self._tables):
                begun = time.monotonic()
                self._say(f"writes are stopped in {self._source.place}")
                self._copy_all()
                self._publish(Stop(Reason.COMING, self._source.place, move))
                self._source.stop_for_good(stop, self._tables)
        self._say(f"{self._source.place} takes no writes any more")
        self._lift(stop)
        return Moved(self._log.url, time.monotonic() - begun, self._sums)

    def _stop_in_log(self) -> Stop | None:
        if not self._log.objects.everything():
            return None
        with self._private_copy("found") as replica:
            return write_stop.found_in(replica.reader.connection())

    @contextmanager
    def _private_copy(self, name: str) -> Iterator[Replica]:
        directory = self._image.with_name(name)
        directory.mkdir()
        with private_copy(self._log, self._clock, directory / "app.db") as replica:
            yield replica

    def _check_is_free(self, stop: Stop | None) -> str:
        """Returns the id of the move that has left a state in the log; empty if the log has nothing."""
        if stop and stop.reason is Reason.COMING and stop.place == self._source.place:
            return stop.move
        if self._log.objects.everything():
            said = f" ({stop})" if stop else ""
            raise MoveRefused(f"{self._log.url} has a log already: set REPLICA_URL to a place that has nothing{said}")
        return ""

    def _begin(self) -> None:
        with self._opened() as db:
            migrate(db)

    def _opened(self) -> "closing[peewee.Database]":
        db = APSWDatabase(str(self._image), pragmas={"page_size": _PAGE_SIZE, "synchronous": 0}, thread_safe=False)
        db.connect()
        db.connection().config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
        return closing(db)

    def _copy_all(self) -> None:
        done, total = 0, self._source.size(self._tables)
        with self._opened() as db:
            connection: apsw.Connection = db.connection()
            for table in self._tables:
                with connection:
                    for batch in batches(self._source.lines(table), len):
                        for line in batch:
                            _insert(connection, table, line)
                            self._sums[table.name].add(line)
                        done += sum(map(len, batch))
                        self._progress("copy", min(done, total - 1), total)
                    if table.id:
                        _set_sequence(connection, table, self._source.highest_id(table))
                self._check_same(connection, table)
        self._progress("copy", total, total)

    def _check_same(self, connection: apsw.Connection, table: Table) -> None:
        lines, here = Lines(table, "UTF-8"), Sum()
        for row in connection.execute(f"SELECT {selected(table)} FROM {table.rows()}"):  # noqa: S608
            here.add(lines.line(row))
        if here != (there := self._sums[table.name]):
            raise MoveFailed(
                f"table {table.name} is not the same on both sides: {there} in {self._source.place}, {here} in the copy"
            )

    def _publish(self, stop: Stop) -> None:
        def keep(path: Path, newest: Path) -> None:
            with opened_image(newest) as connection:
                if (there_is := write_stop.found_in(connection)) != stop:
                    raise MoveRefused(f"{self._log.url} has been begun by somebody else ({there_is})")

        with self._opened() as db, db.atomic():
            write_stop.put(db, stop, [table.name for table in self._tables])
        _, after = publish_file(self._image, self._log, self._clock, keep)
        self._say(f"TXID {after.txid:016x} of {self._log.url} has all of it")

    def _lift(self, stop: Stop) -> None:
        """From now on the log takes writes."""

        def use_case(db: peewee.Database) -> None:
            if (there_is := write_stop.found_in(db.connection())) and there_is.move == stop.move:
                write_stop.lift(db)

        with self._private_copy("newest") as replica:
            replica.write(use_case, self._clock.now() + _COMMIT_SECONDS, float("-inf"))


def _insert(connection: apsw.Connection, table: Table, line: bytes) -> None:
    values = values_of(table, line)
    places = ", ".join("?" for _ in values)
    try:
        connection.execute(f"INSERT INTO {table.quoted} ({table.names}) VALUES ({places})", values)  # noqa: S608
    except apsw.ConstraintError as error:
        raise MoveRefused(f"{table.named(values)}: {error}; nothing has changed for anybody") from error


def _set_sequence(connection: apsw.Connection, table: Table, highest: int) -> None:
    """Only a table whose ids are never used twice has one."""
    [(counts,)] = connection.execute(
        "SELECT sql LIKE '%AUTOINCREMENT%' FROM sqlite_schema WHERE name = ?", (table.name,)
    )
    if counts and highest > 0:
        connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (table.name,))
        connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (table.name, highest))
