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
        slow: list[tuple[str, Any, float]] = []
        under_way: tuple[float, str, Any] = float("inf"), "", None  # since when, its text and its values

        def begins(cursor: apsw.Cursor | None, sql: str, bindings: Any) -> bool:
            """APSW calls it before each statement, and asks whether to go on."""
            nonlocal under_way
            moment = perf_counter()
            if moment - under_way[0] > self._seconds:
                slow.append((*under_way[1:], moment - under_way[0]))
            under_way = moment, sql, bindings
            return True

        connection.exec_trace = begins
        try:
            return use_case(db)
        finally:
            connection.exec_trace = None
            begins(None, "", None)
            for sql, bindings, seconds in slow:
                _warn(sql, _plan(connection, sql, bindings), seconds)


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
