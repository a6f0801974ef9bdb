"""The PostgreSQL that data is moved back from."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import psycopg
from psycopg import sql

from core.errors import MoveFailed, MoveRefused, NotServed
from core.migrations import scripts
from core.migrations.postgresql import check_whole, schema_version
from infra.moving.rows import Table
from infra.moving.side import Side
from infra.moving.write_stop import Stop
from infra.postgresql.errors import WRITES_STOPPED, translated_errors
from infra.sqlite_errors import WRITES_ARE_STOPPED

_LOCK_SECONDS = 60.0  # to wait for those who write
_LOCK_ATTEMPT = "2s"  # others who write wait behind it
_PAUSE_SECONDS = 0.5
_NAME = "write_stop"  # of the function, and of its trigger on each table
_STOPPED = "SELECT prosrc FROM pg_proc WHERE proname = %s AND pronamespace = to_regnamespace(current_schema())"
_COLUMNS = (
    "SELECT column_name FROM information_schema.columns WHERE table_schema = current_schema() AND table_name = %s"
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
        """What writes are stopped for; None if they are not."""
        with translated_errors():
            found = self._db.driver.execute(_STOPPED, (_NAME,)).fetchall()
        return Stop.said_in(found[0][0]) if found else None

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
    def locked(self, tables: list[Table]) -> Iterator[None]:
        """Others read, and wait to write, for as long as the context lasts; what is done in it, is done at its end."""
        names = sql.SQL(", ").join(sql.Identifier(table.name) for table in tables)
        with translated_errors():
            self._db.driver.execute(f"SET lock_timeout = '{_LOCK_ATTEMPT}'")
            given_up = monotonic() + _LOCK_SECONDS
            while True:
                self._db.driver.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
                try:
                    self._db.driver.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(names))
                    break
                except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
                    self._db.driver.execute("ROLLBACK")
                    if monotonic() > given_up:
                        raise MoveFailed(
                            f"others hold what {self.place} has for {_LOCK_SECONDS:.0f} s: try again"
                        ) from error
                    sleep(_PAUSE_SECONDS)
            try:
                yield
            except BaseException:
                if not self._db.driver.closed:
                    self._db.driver.execute("ROLLBACK")
                raise
            self._db.driver.execute("COMMIT")

    def stop_writes(self, stop: Stop, tables: list[Table]) -> None:
        """For good, when the transaction is committed."""
        message = sql.Literal(f"{WRITES_ARE_STOPPED}{stop}")
        body = sql.SQL("BEGIN RAISE EXCEPTION USING MESSAGE = {}, ERRCODE = {}; END").format(
            message, sql.Literal(WRITES_STOPPED)
        )
        with translated_errors():
            self._db.driver.execute(
                sql.SQL("CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {}").format(
                    sql.Identifier(_NAME), sql.Literal(body.as_string(self._db.driver))
                )
            )
            for table in tables:
                self._run(
                    "CREATE TRIGGER {} BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON {} "
                    "FOR EACH STATEMENT EXECUTE FUNCTION {}()",
                    _NAME,
                    table.name,
                    _NAME,
                )
