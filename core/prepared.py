"""SQL that Peewee has built once, to be run again with other values.

To build a query takes Peewee many times as long as SQLite needs to find a row by its key.
"""

from collections.abc import Callable, Hashable
from typing import Any

from peewee import Database, Value

Row = tuple[Any, ...]
Text = tuple[str, list[Any]]


class _Name(str):
    """Of a value that comes when the query is run."""

    __slots__ = ()


def value(name: str) -> Any:
    """Stand in a query for the value of this name, which SQLite gets as it is: no field converts it."""
    return Value(_Name(name), converter=False)


class Prepared:
    """A query that is built once for each shape it has, of which there must be few."""

    def __init__(self, build: Callable[..., Any]) -> None:
        """`build` makes a Peewee query of a shape, with `value(...)` for what differs from one run to the next."""
        self._build = build
        self._texts: dict[Hashable, Text] = {}

    def rows(self, db: Database, values: dict[str, Any], *shape: Hashable) -> list[Row]:
        """Run it; an error is what Peewee makes of it."""
        text = self._texts.get((type(db), *shape))
        if text is None:
            text = self._texts[type(db), *shape] = text_of(db, self._build(*shape))
        return _rows(db, text, values)


def rows(db: Database, query: Any, values: dict[str, Any]) -> list[Row]:
    """Run a query that is built for this time alone, as one is that holds values of its own."""
    return _rows(db, text_of(db, query), values)


def text_of(db: Database, query: Any) -> Text:
    """What the database is told: SQL, and in the order of its placeholders values, or their names."""
    sql, parameters = db.get_sql_context().parse(query)
    return sql, parameters


def _rows(db: Database, text: Text, values: dict[str, Any]) -> list[Row]:
    sql, parameters = text
    found: list[Row] = db.execute_sql(
        sql, [values[each] if type(each) is _Name else each for each in parameters]
    ).fetchall()
    return found
