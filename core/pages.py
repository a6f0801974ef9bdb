"""Keyset pages of a table, by `created_at` and id."""

from collections.abc import Iterator
from itertools import islice
from typing import Any, TypeVar

from peewee import Database, ModelSelect, Tuple

from core.cursor import Cursor, View
from core.errors import NotFound
from core.schemas import PageQuery
from core.stored import Stored

V = TypeVar("V", bound=View)

_AT_A_TIME = 500


def page_of(db: Database, table: Stored[V], query: PageQuery, *conditions: Any) -> tuple[list[V], str | None]:
    """The views of one page, and the cursor of the next if there is one.

    Raises InvalidInput for a cursor that is none, NotFound for one that leads nowhere any more.
    """
    rows = list(_rows(db, table, query, conditions).dicts().execute(db))
    more, rows = len(rows) > query.limit, rows[: query.limit]
    views = table.views_of(rows)
    return views, Cursor.at(views[-1], rows[-1]["as_expected"]).encode() if more else None


def all_of(db: Database, table: Stored[V], order: str, *conditions: Any) -> Iterator[V]:
    """The views of all rows, a few at a time."""
    select = _selected(table, order, conditions)
    rows = select.dicts().execute(db).iterator()
    while some := list(islice(rows, _AT_A_TIME)):
        yield from table.views_of(some)


def _rows(db: Database, table: Stored[V], query: PageQuery, conditions: tuple[Any, ...]) -> "ModelSelect[Any]":
    """One row more than the page holds, which tells whether there is a next one."""
    if query.cursor is not None:
        end = Cursor.decode(query.cursor)
        here, there = Tuple(*_key(table)), Tuple(_created_at(db, table, end), end.row_id)
        conditions = (*conditions, here < there if query.order.startswith("-") else here > there)
    return _selected(table, query.order, conditions).limit(query.limit + 1)


def _selected(table: Stored[V], order: str, conditions: tuple[Any, ...]) -> "ModelSelect[Any]":
    by = (column.desc() if order.startswith("-") else column.asc() for column in _key(table))
    select: ModelSelect[Any] = table.model.select(table.columns).order_by(*by)
    return select.where(*conditions) if conditions else select


def _key(table: Stored[V]) -> tuple[Any, Any]:
    return table.model.created_at, table.model.id


def _created_at(db: Database, table: Stored[V], end: Cursor) -> Any:
    if end.created_at is not None:
        return end.created_at
    if not table.has(db, end.row_id):
        raise NotFound("The row that the cursor leads on from is gone; begin again without it.")
    return table.model.select(table.model.created_at).where(table.model.id == end.row_id)
