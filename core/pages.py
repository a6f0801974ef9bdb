"""Keyset pages of a table, by `created_at` and id."""

from typing import Any, TypeVar

from peewee import Database, ModelSelect, Tuple

from core.cursor import Cursor, View
from core.errors import NotFound
from core.schemas import PageQuery
from core.stored import Stored

V = TypeVar("V", bound=View)


def page_of(db: Database, table: Stored[V], query: PageQuery, *conditions: Any) -> tuple[list[V], str | None]:
    """The views of one page, and the cursor of the next if there is one.

    Raises InvalidInput for a cursor that is none, NotFound for one that leads nowhere any more.
    """
    rows = list(_rows(db, table, query, conditions).dicts().execute(db))
    more, rows = len(rows) > query.limit, rows[: query.limit]
    views = table.views_of(rows)
    return views, Cursor.at(views[-1], rows[-1]["as_expected"]).encode() if more else None


def _rows(db: Database, table: Stored[V], query: PageQuery, conditions: tuple[Any, ...]) -> "ModelSelect[Any]":
    """One row more than the page holds, which tells whether there is a next one."""
    descending = query.order.startswith("-")
    key = (table.model.created_at, table.model.id)
    order = (column.desc() if descending else column.asc() for column in key)
    select: ModelSelect[Any] = table.model.select(table.columns).order_by(*order).limit(query.limit + 1)
    if query.cursor is not None:
        end = Cursor.decode(query.cursor)
        here, there = Tuple(*key), Tuple(_created_at(db, table, end), end.row_id)
        conditions = (*conditions, here < there if descending else here > there)
    return select.where(*conditions) if conditions else select


def _created_at(db: Database, table: Stored[V], end: Cursor) -> Any:
    if end.created_at is not None:
        return end.created_at
    if not table.has(db, end.row_id):
        raise NotFound("The row that the cursor leads on from is gone; begin again without it.")
    return table.model.select(table.model.created_at).where(table.model.id == end.row_id)
