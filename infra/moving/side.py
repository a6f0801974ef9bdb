"""A PostgreSQL as a move sees it: its tables, and its rows as the lines of COPY."""

from collections.abc import Iterator

from psycopg import sql

from core.errors import DatabaseRefused, MoveRefused
from infra.moving.rows import Table
from infra.postgresql.connections import Connector, PeeweeConnection
from infra.postgresql.errors import translated_errors
from infra.settings import Settings

_RELATIONS = """
SELECT relname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = current_schema() AND relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY relname
"""
_SESSION = (
    "SET statement_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET default_transaction_isolation = 'read committed'",
    "SET client_encoding = 'UTF8'",
)


class Side:
    """Raises MoveRefused for a place that cannot be used, DatabaseUnavailable while it is away."""

    def __init__(self, settings: Settings) -> None:
        self._connector = Connector(settings)
        self.place = self._connector.target.shown  # without the password
        self._is_dsql = self._connector.is_dsql
        self._db = self._connected()

    def _connected(self) -> PeeweeConnection:
        try:
            db = self._connector.connect()
        except DatabaseRefused as error:
            raise MoveRefused(str(error)) from error
        db.driver.deadline = float("inf")
        if not self._is_dsql:
            for statement in _SESSION:
                db.driver.execute(statement)
        return db

    def close(self) -> None:
        """Let go of it. Safe to call twice."""
        self._db.driver.close()

    def lines(self, table: Table) -> Iterator[bytes]:
        """All rows."""
        return self._lines(sql.SQL("COPY {} ({}) TO STDOUT").format(sql.Identifier(table.name), self._columns(table)))

    def _lines(self, statement: sql.Composed) -> Iterator[bytes]:
        rest = b""
        with translated_errors(), self._db.driver.cursor() as cursor, cursor.copy(statement) as copy:
            for block in copy:
                *whole, rest = (rest + bytes(block)).split(b"\n")
                for line in whole:
                    yield line + b"\n"

    def _columns(self, table: Table) -> sql.Composed:
        return sql.SQL(", ").join(sql.Identifier(column.name) for column in table.columns)

    def _relations(self) -> list[str]:
        return [str(name) for (name,) in self._db.driver.execute(_RELATIONS).fetchall()]

    def _run(self, statement: str, *names: str) -> None:
        self._db.driver.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))
