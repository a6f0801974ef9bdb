"""The PostgreSQL that data is moved back from, and the write stop there.

A trigger on each table asks for a share of a lock that whoever moves has for himself: so nobody waits, writes go on by
themselves when that connection ends, and no clock is asked. Who has begun to write before has a share until the end of
his transaction, and is waited for. The last step makes the same trigger refuse for good, under a lock of the tables:
whoever has come by the trigger as it was has ended before that, and whoever comes later meets it as it is then.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import psycopg
from psycopg import sql

from core.errors import MoveFailed, MoveRefused, NotServed
from core.migrations import scripts
from core.migrations.postgresql import check_whole, schema_version
from infra.moving.rows import Table
from infra.moving.side import Side
from infra.moving.write_stop import Reason, Stop
from infra.postgresql.errors import WRITES_STOPPED, translated_errors
from infra.sqlite_errors import WRITES_ARE_STOPPED

_PATIENCE_SECONDS = 60.0  # with those who write
_LOCK_ATTEMPT = "2s"  # others who write wait behind it
_PAUSE_SECONDS = 0.5
_NAME = "write_stop"  # of the function, and of its trigger on each table
_LOCK = 0x636E7063  # the number of the lock, as the application_id of SQLite: "cnpc"
_UNLESS_MOVING = f"IF pg_try_advisory_xact_lock_shared({_LOCK}) THEN RETURN NULL; END IF; "
_STOPPED = "SELECT prosrc FROM pg_proc WHERE proname = %s AND pronamespace = to_regnamespace(current_schema())"
_COLUMNS = """
SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = %s
"""
# Should the machine that moves be cut off, writes go on all the same
_SESSION = (
    "SET idle_in_transaction_session_timeout = '10min'; SET tcp_keepalives_idle = 10; SET tcp_keepalives_count = 3"
)


class Source(Side):
    """Raises MoveRefused for what cannot be moved."""

    def check(self, tables: list[Table]) -> None:
        """Raises MoveRefused unless it is a database of this release, and has nothing that would be lost."""
        if self._is_dsql:
            raise MoveRefused(
                "Aurora DSQL has neither LOCK TABLE nor triggers, so nobody's writes can be stopped there"
            )
        with translated_errors():
            if not self._db.driver.takes_writes:
                raise MoveRefused(f"{self.place} is a standby, or set to be only read")
            try:
                version = schema_version(self._db)
                if version != len(scripts()):
                    raise NotServed(f"it has schema version {version}, and this release has {len(scripts())}")
                check_whole(self._db, version)
            except NotServed as error:
                raise MoveRefused(f"{self.place}: {error}") from error
            problems = [*self._not_of_the_release(tables)]
        if problems:
            raise MoveRefused("\n  ".join(["these cannot be moved; nothing has changed:", *problems]))

    def _not_of_the_release(self, tables: list[Table]) -> Iterator[str]:
        for name in self._relations():
            if name not in {"schema_migrations", *(table.name for table in tables)} and self._has_rows("{}", name):
                yield f"table {name}: it has rows, and no migration makes it"
        for table in tables:
            ours = {column.name for column in table.columns}
            for (column,) in self._db.driver.execute(_COLUMNS, (table.name,)).fetchall():
                if column not in ours and self._has_rows("{} WHERE {} IS NOT NULL", table.name, column):
                    yield f"column {column} of table {table.name}: it has values, and no migration makes it"

    def _has_rows(self, what: str, *names: str) -> bool:
        statement = sql.SQL(f"SELECT 1 FROM {what} LIMIT 1")  # noqa: S608 (of this module)
        return bool(self._db.driver.execute(statement.format(*map(sql.Identifier, names))).fetchall())

    def stop(self) -> Stop | None:
        """What writes are stopped for, for good; None if they are not."""
        with translated_errors():
            found = self._db.driver.execute(_STOPPED, (_NAME,)).fetchall()
        stop = Stop.said_in(found[0][0]) if found else None
        return stop if stop and stop.reason is Reason.MOVED else None

    def size(self, tables: list[Table]) -> int:
        """In bytes, about."""
        with translated_errors():
            return sum(
                self._db.driver.execute("SELECT pg_table_size(%s::regclass)", (table.quoted,)).fetchall()[0][0]
                for table in tables
            )

    def highest_id(self, table: Table) -> int:
        """That a row has, or ever had; 0 if none."""
        with translated_errors():
            [(sequence,)] = self._db.driver.execute("SELECT pg_get_serial_sequence(%s, %s)", (table.quoted, table.id))
            statement = sql.SQL("SELECT coalesce(max({}), 0) FROM {}").format(
                sql.Identifier(str(table.id)), sql.Identifier(table.name)
            )
            [(highest,)] = self._db.driver.execute(statement)
            if not sequence:
                return int(highest)
            [(last,)] = self._db.driver.execute(f"SELECT last_value - (NOT is_called)::int FROM {sequence}")  # noqa: S608
            return max(int(highest), int(last))

    @contextmanager
    def one_state(self) -> Iterator[None]:
        """For as long as the context lasts, while others go on."""
        with translated_errors():
            self._db.driver.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield
            finally:
                self._db.driver.execute("ROLLBACK")

    @contextmanager
    def stopped(self, stop: Stop, tables: list[Table]) -> Iterator[None]:
        """Let nobody write for as long as the context lasts, nor afterwards if `stop_for_good` was called in it. Raises
        MoveFailed when others go on writing, or somebody else has moved it.
        """
        with translated_errors():
            self._db.driver.execute(f"SET lock_timeout = '{_LOCK_ATTEMPT}'; {_SESSION}")
            self._patiently(lambda: self._put_triggers(stop, tables))
            self._patiently(lambda: self._db.driver.execute(f"BEGIN; SELECT pg_advisory_xact_lock({_LOCK})"))
            try:
                self._check_not_moved()
                yield
            except BaseException:
                if not self._db.driver.closed:
                    self._db.driver.execute("ROLLBACK")
                raise
            self._db.driver.execute("COMMIT")

    def stop_for_good(self, stop: Stop, tables: list[Table]) -> None:
        """From the end of the transaction on."""
        with translated_errors():
            self._db.driver.execute("SET LOCAL lock_timeout = 0")  # they are all refused now
            self._lock(tables, "EXCLUSIVE")
            self._put_function("", stop)

    def _put_triggers(self, stop: Stop, tables: list[Table]) -> None:
        with self._db.driver.transaction():
            self._lock(tables, "SHARE ROW EXCLUSIVE")
            self._check_not_moved()
            self._put_function(_UNLESS_MOVING, stop)
            for table in tables:
                self._run(
                    "CREATE OR REPLACE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
                    "FOR EACH STATEMENT EXECUTE FUNCTION {}()",
                    _NAME,
                    table.name,
                    _NAME,
                )

    def _put_function(self, condition: str, stop: Stop) -> None:
        message, code = sql.Literal(f"{WRITES_ARE_STOPPED}{stop}"), sql.Literal(WRITES_STOPPED)
        refuse = sql.SQL("RAISE EXCEPTION USING MESSAGE = {}, ERRCODE = {};").format(message, code)
        body = f"BEGIN {condition}{refuse.as_string(self._db.driver)} END"
        self._db.driver.execute(
            sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
                sql.Identifier(_NAME), sql.Literal(body)
            )
        )

    def _lock(self, tables: list[Table], mode: str) -> None:
        names = sql.SQL(", ").join(sql.Identifier(table.name) for table in tables)
        self._db.driver.execute(sql.SQL(f"LOCK TABLE {{}} IN {mode} MODE").format(names))

    def _check_not_moved(self) -> None:
        if self.stop():
            raise MoveFailed(f"another process has moved {self.place} meanwhile")

    def _patiently(self, attempt: Callable[[], object]) -> None:
        given_up = monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                attempt()
                return
            except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                self._db.driver.execute("ROLLBACK")
                if monotonic() > given_up:
                    raise MoveFailed(f"others go on writing to {self.place}: try again ({error})") from error
                sleep(_PAUSE_SECONDS)
