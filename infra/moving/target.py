"""The PostgreSQL that a log is moved into.

From the first thing that is made there until the move is over it has the table `unfinished_move`: what is beside it is
nobody's but the move's, and no service serves it. Whoever moves holds a lock on its row, so there is one at a time.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg
from psycopg import sql

from core.errors import MoveFailed, MoveRefused, StatementRefused
from core.migrations.postgresql import UNFINISHED_MOVE as MARKER
from core.migrations.postgresql import listed, migrate
from infra.moving.rows import Table, values_of
from infra.moving.side import Side
from infra.postgresql.connections import PeeweeConnection
from infra.postgresql.errors import translated_errors
from infra.settings import Settings

Key = tuple[Any, ...]

_MOST_NAMED = 20
_MARKED = f"CREATE TABLE IF NOT EXISTS {MARKER} (place integer PRIMARY KEY, move text NOT NULL, log text NOT NULL)"
_MARK = f"INSERT INTO {MARKER} (place, move, log) VALUES (1, %s, %s) ON CONFLICT DO NOTHING"  # noqa: S608
_FOREIGN_KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(pg_constraint.oid)
FROM pg_constraint JOIN pg_namespace ON pg_namespace.oid = connamespace
WHERE nspname = current_schema() AND contype = 'f'
"""


class Target(Side):
    """One move's. Raises MoveRefused for a place that it cannot go to."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._guard: PeeweeConnection | None = None  # in the transaction that has the lock
        self._foreign_keys: list[tuple[str, str, str]] = []

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        super().close()
        if self._guard:
            self._guard.driver.close()

    def until(self, seconds: float) -> None:
        """Give up on an answer that is not there by then: whoever waits for the move cannot wait for longer."""
        self._db.driver.deadline = monotonic() + seconds

    # Whose it is

    def has_marker(self) -> bool:
        """Whether a move into it has not come to its end."""
        with translated_errors():
            return MARKER in self._relations()

    def unfinished(self) -> tuple[str, str] | None:
        """The id of the move that has begun to fill it, and the log's; None if it is empty. Raises MoveRefused."""
        with translated_errors():
            self._check_usable()
            found = self._relations()
            if MARKER in found:
                rows = self._db.driver.execute(f"SELECT move, log FROM {MARKER}").fetchall()  # noqa: S608
                return rows[0] if rows else None  # it was killed in between
        if found:
            raise MoveRefused(
                f"{self.place} is not empty: it has {listed(found)}. Name a database that has nothing in it"
            )
        return None

    def _check_usable(self) -> None:
        said = self._db.driver.info.parameter_status
        if not self._db.driver.takes_writes:
            raise MoveRefused(f"{self.place} is a standby, or set to be only read")
        if said("server_encoding") not in ("UTF8", None):
            raise MoveRefused(
                f"{self.place} keeps its text as {said('server_encoding')}: create one with ENCODING 'UTF8'"
            )
        [(schema, may_create)] = self._db.driver.execute(
            "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
        )
        if not (schema and may_create):
            raise MoveRefused(f"the user of {self.place} may create no table there: GRANT CREATE ON SCHEMA public")

    def claim(self, move: str, log: str) -> None:
        """Mark it as this move's and keep others out, for as long as the connection lasts. Raises MoveFailed while
        another process moves something into it.
        """
        self._guard = guard = self._connected()
        with translated_errors():
            try:
                guard.driver.execute(_MARKED)
                guard.driver.execute(_MARK, (move, log))
                guard.driver.execute("BEGIN")
                found = guard.driver.execute(f"SELECT move FROM {MARKER} FOR UPDATE").fetchall()  # noqa: S608
            except (psycopg.errors.LockNotAvailable, psycopg.errors.UniqueViolation) as error:
                raise MoveFailed(f"another process is moving something into {self.place} now") from error
        if found != [(move,)]:
            raise MoveFailed(f"another process has begun to move something into {self.place}")

    def check_claimed(self) -> None:
        """Raises DatabaseUnavailable when the lock was lost, with the connection."""
        with translated_errors():
            if self._guard:
                self._guard.driver.execute("SELECT 1")

    def release(self) -> None:
        """Say that the move is over: from now on it may be served."""
        with translated_errors():
            assert self._guard
            self._guard.driver.execute(f"DROP TABLE {MARKER}")
            self._guard.driver.execute("COMMIT")

    # Its schema

    def begin(self) -> None:
        """Make the tables anew."""
        with translated_errors():
            self.clear()
            try:
                migrate(self._db, is_dsql=self._is_dsql, for_move=True)
            except StatementRefused as error:
                raise MoveRefused(str(error)) from error
            self.loosen()

    def loosen(self) -> None:
        """Let rows come in any order: what stands against that is put back by `complete`."""
        if self._is_dsql:  # which has neither foreign keys nor triggers
            return
        with translated_errors():
            self._foreign_keys = self._db.driver.execute(_FOREIGN_KEYS).fetchall()
            for table, name, _ in self._foreign_keys:
                self._run("ALTER TABLE {} DROP CONSTRAINT {}", table, name)
            self._triggers("DISABLE")

    def analyze(self) -> None:
        """Let the engine know what it has, before anybody asks for it."""
        with translated_errors():
            self._db.driver.execute("ANALYZE")

    def complete(self, highest: dict[Table, int]) -> None:
        """Let the database look after itself again. `highest`: the highest id that each table ever had."""
        with translated_errors():
            for table, name, definition in self._foreign_keys:
                self._run(f"ALTER TABLE {{}} ADD CONSTRAINT {{}} {definition}", table, name)
            if not self._is_dsql:
                self._triggers("ENABLE")
            for counted, number in highest.items():
                [(sequence,)] = self._db.driver.execute(
                    "SELECT pg_get_serial_sequence(%s, %s)", (counted.quoted, counted.id)
                )
                if sequence and number > 0:
                    self._db.driver.execute("SELECT setval(%s, %s)", (sequence, number))

    def clear(self) -> None:
        """Remove whatever an unfinished move has made."""
        with translated_errors():
            for name in self._tables():
                self._run("DROP TABLE {} CASCADE", name)

    def _tables(self) -> list[str]:
        return [name for name in self._relations() if name != MARKER]

    def _triggers(self, verb: str) -> None:
        for name in self._tables():
            self._run(f"ALTER TABLE {{}} {verb} TRIGGER USER", name)

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """All that is done in it is undone at its end."""
        with translated_errors(), self._db.driver.transaction(force_rollback=True):
            yield

    # Its rows

    def copy(self, table: Table, batch: list[bytes]) -> None:
        """Add rows, in one transaction. Raises MoveRefused, which names those that it does not take."""
        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), self._columns(table))
        with translated_errors():
            try:
                self._copy_batch(statement, batch)
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                raise self._refusal(table, statement, batch) from error

    def _copy_batch(self, statement: sql.Composed, lines: list[bytes]) -> None:
        with self._db.driver.transaction(), self._db.driver.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(b"".join(lines))

    def _refusal(self, table: Table, statement: sql.Composed, batch: list[bytes]) -> MoveRefused:
        named: list[str] = []
        more = 0
        for line in batch:
            try:
                self._copy_batch(statement, [line])
            except (psycopg.DataError, psycopg.IntegrityError) as error:
                if len(named) < _MOST_NAMED:
                    named.append(f"{table.named(values_of(table, line))}: {error.diag.message_primary}")
                else:
                    more += 1
        return MoveRefused(
            "\n  ".join([f"{self.place} does not take these; nothing has changed for anybody:", *named])
            + (f"\n  and {more:,} more" if more else "")
        )

    def delete(self, table: Table, batch: list[Key]) -> None:
        """Remove rows, in one transaction. Raises MoveFailed when they are not there."""
        condition = sql.SQL(" AND ").join(sql.SQL("{} = %s").format(sql.Identifier(name)) for name in table.key)
        statement = sql.SQL("DELETE FROM {} WHERE {}").format(sql.Identifier(table.name), condition)
        with translated_errors(), self._db.driver.transaction(), self._db.driver.cursor() as cursor:
            cursor.executemany(statement, batch)
            if cursor.rowcount != len(batch):
                raise MoveFailed(f"{self.place} has been changed by somebody else: rows are not there any more")

    def lines_of(self, table: Table, batch: list[Key]) -> Iterator[bytes]:
        """Those of the rows with these keys that are there."""
        keys = (sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, key))) for key in batch)
        names = sql.SQL(", ").join(map(sql.Identifier, table.key))
        return self._lines(
            sql.SQL("COPY (SELECT {} FROM {} WHERE ({}) IN ({})) TO STDOUT").format(
                self._columns(table), sql.Identifier(table.name), names, sql.SQL(", ").join(keys)
            )
        )
