"""Keyset pages of a table, by `created_at` and id."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from peewee import SQL, Database, ModelSelect, Select, Tuple, Value, fn

from core.cursor import Cursor, View
from core.errors import NotFound
from core.schemas import PageQuery
from core.stored import Stored

V = TypeVar("V", bound=View)

_AT_A_TIME = 500
_MOST_LOOKED_AT = 10_000  # rows for one page, a few milliseconds
_MOST_COUNTED = 100_000


def page_of(db: Database, table: Stored[V], query: PageQuery, *conditions: Any) -> tuple[list[V], str | None]:
    """The views of one page, and the cursor of the next if there is one.

    With conditions, a page ends after so many rows that were looked at, whether they meet them or not: it may have
    fewer views than are asked for, even none, and there is a next one all the same. Raises InvalidInput for a cursor
    that is none, NotFound for one that leads nowhere any more.
    """
    if not conditions:
        return _page(db, table, query)
    with db.atomic():  # one state for all of the statements
        end = _end_of_look(db, table, query)
        views, cursor = _page(db, table, query, *conditions, *_up_to(table, query, end))
        if cursor is None and end is not None:
            [row] = table.model.select(table.columns).where(table.model.id == end).dicts().execute(db)
            [view] = table.views_of([row])
            cursor = Cursor.at(view, row["as_expected"]).encode()
        return views, cursor


def count_of(db: Database, table: Stored[V], *conditions: Any) -> int | None:
    """How many rows meet the conditions; None if there are more than may be looked at for that."""
    if not conditions:
        return int(table.model.select().count(db))
    met = table.model.select(*(condition.alias("met") for condition in conditions)).limit(_MOST_COUNTED + 1)
    [(looked_at, count)] = Select([met], [fn.COUNT(SQL("*")), fn.SUM(met.c.met)]).tuples().execute(db)
    return None if looked_at > _MOST_COUNTED else count or 0


def all_of(db: Database, table: Stored[V], order: str, *conditions: Any) -> Iterator[V]:
    """The views of all rows, a few at a time."""
    select = _selected(table, order, conditions)
    rows = select.dicts().execute(db).iterator()
    while some := list(islice(rows, _AT_A_TIME)):
        yield from table.views_of(some)


def _page(db: Database, table: Stored[V], query: PageQuery, *conditions: Any) -> tuple[list[V], str | None]:
    """It asks for one row more, which tells whether there is a next page."""
    select = _selected(table, query.order, (*conditions, *_after_cursor(db, table, query)))
    rows = list(select.limit(query.limit + 1).dicts().execute(db))
    more, rows = len(rows) > query.limit, rows[: query.limit]
    views = table.views_of(rows)
    return views, Cursor.at(views[-1], rows[-1]["as_expected"]).encode() if more else None


def _end_of_look(db: Database, table: Stored[V], query: PageQuery) -> int | None:
    """The id of the last row to look at for this page, if it is not the last of all. The index alone is read."""
    select = _selected(table, query.order, _after_cursor(db, table, query), table.model.id)
    found = list(select.limit(2).offset(_MOST_LOOKED_AT - 1).tuples().execute(db))
    return found[0][0] if len(found) == 2 else None


def _after_cursor(db: Database, table: Stored[V], query: PageQuery) -> tuple[Any, ...]:
    if query.cursor is None:
        return ()
    end = Cursor.decode(query.cursor)
    here, there = Tuple(*_key(table)), _place(_created_at(db, table, end), end.row_id)
    return (here < there if query.order.startswith("-") else here > there,)


def _up_to(table: Stored[V], query: PageQuery, row_id: int | None) -> tuple[Any, ...]:
    if row_id is None:
        return ()
    here, there = Tuple(*_key(table)), _place(_created_at_of(table, row_id), row_id)
    return (here >= there if query.order.startswith("-") else here <= there,)


def _selected(table: Stored[V], order: str, conditions: tuple[Any, ...], *columns: Any) -> "ModelSelect[Any]":
    by = (column.desc() if order.startswith("-") else column.asc() for column in _key(table))
    select: ModelSelect[Any] = table.model.select(*(columns or (table.columns,))).order_by(*by)
    return select.where(*conditions) if conditions else select


def _place(created_at: Any, row_id: int) -> Tuple:
    """SQLite looks up the id in the index as well only if it has a collation: else it goes through all rows that have
    the same `created_at`.
    """
    return Tuple(created_at, Value(row_id).collate("BINARY"))


def _key(table: Stored[V]) -> tuple[Any, Any]:
    return table.model.created_at, table.model.id


def _created_at(db: Database, table: Stored[V], end: Cursor) -> Any:
    if end.created_at is not None:
        return end.created_at
    if not table.has(db, end.row_id):
        raise NotFound("The row that the cursor leads on from is gone; begin again without it.")
    return _created_at_of(table, end.row_id)


def _created_at_of(table: Stored[V], row_id: int) -> Any:
    return table.model.select(table.model.created_at).where(table.model.id == row_id)
