"""One state to be read at leisure: a transaction of its own, on a connection of its own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import psycopg

from core.errors import TooManyCopies
from infra.database import Copy
from infra.postgresql.connections import Connector, PeeweeConnection
from infra.postgresql.errors import translated_errors

MOST_AT_ONCE = 4
_LONGEST_SECONDS = 3600.0
_IDLE_SECONDS = 60  # longer than a slow client is waited for


class Copies:
    """Any thread may call it."""

    def __init__(self, connector: Connector, most_at_once: int = MOST_AT_ONCE) -> None:
        self._connector = connector
        self._most = most_at_once
        self._free = threading.BoundedSemaphore(most_at_once)

    @contextmanager
    def newest(self) -> Iterator[Copy]:
        """One for as long as the context lasts. Raises TooManyCopies, DatabaseUnavailable."""
        if not self._free.acquire(blocking=False):
            raise TooManyCopies(f"{self._most} copies of the database are being read already.")
        try:
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
        finally:
            self._free.release()


class _Read(PeeweeConnection):
    """Whoever reads meets our errors."""

    def __init__(self, db: PeeweeConnection) -> None:
        super().__init__(db.driver)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        with translated_errors():
            return super().execute_sql(sql, params)
