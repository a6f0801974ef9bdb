"""Statements that take long, in the log: their text without values, and the plan that SQLite has for them."""

import logging
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import apsw
import peewee

from core.statements import without_values

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

_LONGEST = 1000  # characters of one in the log


class SlowStatements:
    """Warns of each statement of a use case that takes longer than `milliseconds`; 0 is never.

    A statement lasts until the next one begins, or the use case ends: its rows are fetched meanwhile.
    """

    def __init__(self, milliseconds: int) -> None:
        self._seconds = milliseconds / 1000

    def watched(self, use_case: UseCase[T]) -> UseCase[T]:
        """The same use case, with an eye on its statements."""
        return partial(self.watch, use_case)

    def watch(self, use_case: UseCase[T], db: peewee.Database) -> T:
        """Run it, with an eye on its statements."""
        if not self._seconds:
            return use_case(db)
        connection: apsw.Connection = db.connection()
        watch = _Watch(self._seconds)
        connection.exec_trace = watch.begins
        try:
            return use_case(db)
        finally:
            connection.exec_trace = None
            watch.ends()
            for sql, bindings, seconds in watch.slow:
                _warn(sql, _plan(connection, sql, bindings), seconds)


class _Watch:
    __slots__ = ("_began", "_bindings", "_seconds", "_sql", "slow")

    def __init__(self, seconds: float) -> None:
        self.slow: list[tuple[str, Any, float]] = []
        self._seconds = seconds
        self._sql, self._bindings, self._began = "", None, 0.0

    def begins(self, cursor: apsw.Cursor, sql: str, bindings: Any) -> bool:
        """APSW calls it before each statement, and asks whether to go on."""
        self.ends()
        self._sql, self._bindings, self._began = sql, bindings, perf_counter()
        return True

    def ends(self) -> None:
        if self._sql and (took := perf_counter() - self._began) > self._seconds:
            self.slow.append((self._sql, self._bindings, took))


def _plan(connection: apsw.Connection, sql: str, bindings: Any) -> str | None:
    """Its first line, if there is one."""
    try:
        rows = connection.execute(sql, bindings, can_cache=False, explain=2).fetchall()
    except apsw.Error:  # perhaps it was slow to make what it needs no more
        return None
    return str(rows[0][3]) if rows else None


def _warn(sql: str, plan: str | None, seconds: float) -> None:
    milliseconds, text = round(seconds * 1000, 3), without_values(sql)[:_LONGEST]
    fields = {"duration_ms": milliseconds, "sql": text, "plan": plan}
    logger.warning("a statement took %d ms: %s", milliseconds, text, extra=fields)
