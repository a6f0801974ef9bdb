"""One state to be read at leisure: a transaction of its own, on a connection of its own, a few rows at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from core.errors import TooManyCopies
from infra.database import Copy
from infra.postgresql.connections import Connector, PeeweeConnection
from infra.postgresql.errors import translated_errors

MOST_AT_ONCE = 4
_AT_A_TIME = 500  # rows
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
                yield Copy(_Streamed(db), 0)
            finally:
                db.driver.close()
        finally:
            self._free.release()


class _Streamed(PeeweeConnection):
    """Whatever it is asked for comes a few rows at a time."""

    def __init__(self, db: PeeweeConnection) -> None:
        super().__init__(db.driver)

    def execute_sql(self, sql: str, params: Any = None) -> Any:
        with translated_errors():
            cursor = self.driver.cursor("copy")
            cursor.itersize = _AT_A_TIME
            cursor.execute(sql, params or ())
            return _Rows(cursor)


class _Rows:
    """Peewee asks for each row by itself, and that would be a question to the server."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor
        self._rows = iter(cursor)
        self.description = cursor.description

    def fetchone(self) -> Any:
        with translated_errors():
            return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        with translated_errors():
            return list(self._rows)

    def close(self) -> None:
        self._cursor.close()
