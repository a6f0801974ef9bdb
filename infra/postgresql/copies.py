"""One state to be read at leisure: a transaction of its own, on a connection of its own."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import psycopg

from infra.database import Copy, CopyLimit
from infra.postgresql.connections import Connector, PeeweeConnection
from infra.postgresql.errors import translated_errors

_LONGEST_SECONDS = 3600.0
_IDLE_SECONDS = 60  # longer than a slow client is waited for


class Copies:
    """Any thread may call it."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._limit = CopyLimit()

    @contextmanager
    def newest(self) -> Iterator[Copy]:
        """One for as long as the context lasts. Raises TooManyCopies, DatabaseUnavailable."""
        with self._limit.one():
            db = self._connector.connect()
            try:
                with translated_errors():
                    db.driver.deadline = monotonic() + _LONGEST_SECONDS
                    db.driver.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                    db.driver.execute(f"SET LOCAL idle_in_transaction_session_timeout = '{_IDLE_SECONDS}s'")
                yield Copy(_Read(db), 0)
            finally:
                with suppress(psycopg.Error):
                    db.rollback()
                db.driver.close()


class _Read(PeeweeConnection):
    """Whoever reads meets our errors."""

    def __init__(self, db: PeeweeConnection) -> None:
        super().__init__(db.driver)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        with translated_errors():
            return super().execute_sql(sql, params)
