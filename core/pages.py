"""Keyset pages of a table, by `created_at` and id."""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, Literal, TypeVar

from peewee import SQL, Database, Select, Tuple, Value, fn

from core.cursor import Cursor, View
from core.dialects import Either, is_postgresql
from core.errors import NotFound
from core.prepared import Prepared, Row, rows, value
from core.schemas import PageQuery
from core.stored import Columns, Stored

V = TypeVar("V", bound=View)
Begin = Literal["first", "place", "row"]  # behind no row, a place that the cursor carries, or a row that it names

_AT_A_TIME = 500
_MOST_LOOKED_AT = 10_000  # rows for one page, a few milliseconds
_MOST_COUNTED = 100_000


def page_of(db: Database, table: Stored[V], query: PageQuery, *conditions: Any) -> tuple[list[V], str | None]:
    """The views of one page, and the cursor of the next if there is one.

    With conditions, a page ends after so many rows that were looked at, whether they meet them or not: it may have
    fewer views than are asked for, even none, and there is a next one all the same. Raises NotFound for a cursor
    that leads nowhere any more.
    """
    if not conditions:
        begin, values = _beginning(db, table, query)
        return _shown(table, query, table.rows(partial(_PAGE.rows, db, values, table, query.order, begin)))
    with db.atomic():  # one state for all of the statements
        begin, values = _beginning(db, table, query)
        ends = _END.rows(db, {**values, "offset": _MOST_LOOKED_AT - 1}, table, query.order, begin)
        if len(ends) < 2:  # it is the last of all, or there is none
            return _shown(table, query, _matching_rows(db, table, query.order, begin, values, *conditions))
        end = ends[0][0]
        conditions = *conditions, _up_to(table, query.order, end)
        views, cursor = _shown(table, query, _matching_rows(db, table, query.order, begin, values, *conditions))
        if cursor is None:
            last = table.rows_with_id(db, end)
            cursor = _cursor_at(table, last[0], table.views_of(last)[0])
        return views, cursor


def count_of(db: Database, table: Stored[V], *conditions: Any) -> int | None:
    """How many rows meet the conditions; None if there are more than may be looked at for that."""
    if not conditions:
        return int(table.model.select().count(db))
    met = table.model.select(*(condition.alias("met") for condition in conditions)).limit(_MOST_COUNTED + 1)
    number = Either(sqlite=met.c.met, postgresql=met.c.met.cast("integer"))
    [(looked_at, count)] = Select([met], [fn.COUNT(SQL("*")), fn.SUM(number)]).tuples().execute(db)
    return None if looked_at > _MOST_COUNTED else count or 0


def all_of(db: Database, table: Stored[V], order: str, *conditions: Any) -> Iterator[V]:
    """The views of all rows, a few at a time."""
    if is_postgresql(db):  # whose cursor would bring all of them at once
        yield from _all_by_pages(db, table, order, *conditions)
        return
    found = _selected(table, order, "first", *conditions).tuples().execute(db).iterator()
    while some := list(islice(found, _AT_A_TIME)):
        yield from table.views_of(some)


def _all_by_pages(db: Database, table: Stored[V], order: str, *conditions: Any) -> Iterator[V]:
    begin: Begin = "first"
    values: dict[str, Any] = {"limit": _AT_A_TIME}
    while views := table.views_of(rows(db, _page(table, order, begin, "plain", *conditions), values)):
        yield from views
        begin, values = "place", {**values, "created_at": views[-1].created_at, "id": views[-1].id}


def _matching_rows(
    db: Database, table: Stored[V], order: str, begin: Begin, values: dict[str, Any], *conditions: Any
) -> list[Row]:
    return table.rows(lambda columns: rows(db, _page(table, order, begin, columns, *conditions), values))


def _beginning(db: Database, table: Stored[V], query: PageQuery) -> tuple[Begin, dict[str, Any]]:
    """And the values that a page then needs. One row more than is shown tells whether there is a next page."""
    limit = {"limit": query.limit + 1}
    if query.cursor is None:
        return "first", limit
    end = Cursor.decode(query.cursor)
    if end.created_at is not None:
        return "place", {**limit, "created_at": end.created_at, "id": end.row_id}
    if not table.rows_with_id(db, end.row_id):
        raise NotFound("The row that the cursor leads on from is gone; begin again without it.")
    return "row", {**limit, "id": end.row_id}


def _shown(table: Stored[V], query: PageQuery, found: list[Row]) -> tuple[list[V], str | None]:
    shown = found[: query.limit]
    views = table.views_of(shown)
    return views, _cursor_at(table, shown[-1], views[-1]) if len(found) > query.limit else None


def _cursor_at(table: Stored[V], row: Row, view: V) -> str:
    return Cursor.at(view, table.is_as_expected(row)).encode()


# Statements


def _page(table: Stored[V], order: str, begin: Begin, columns: Columns, *conditions: Any) -> Any:
    selected = _selected(table, order, begin, *conditions, columns=table.columns_of(columns))
    return selected.limit(value("limit").cast("INTEGER"))  # each new value of a bare one has SQLite plan anew


def _end(table: Stored[V], order: str, begin: Begin) -> Any:
    """Of the last row to look at and the one behind it. The index alone is read."""
    return _selected(table, order, begin, columns=table.model.id).limit(2).offset(value("offset"))


_PAGE, _END = Prepared(_page), Prepared(_end)


def _selected(table: Stored[V], order: str, begin: Begin, *conditions: Any, columns: Any = None) -> Any:
    by = (column.desc() if order.startswith("-") else column.asc() for column in _key(table))
    select = table.model.select(columns or table.columns).order_by(*by)
    if begin != "first":
        created_at = value("created_at") if begin == "place" else _created_at_of(table, value("id"))
        here, there = Tuple(*_key(table)), _place(created_at, value("id"))
        conditions = *conditions, here < there if order.startswith("-") else here > there
    return select.where(*conditions) if conditions else select


def _up_to(table: Stored[V], order: str, row_id: int) -> Any:
    here, there = Tuple(*_key(table)), _place(_created_at_of(table, row_id), Value(row_id))
    return here >= there if order.startswith("-") else here <= there


def _place(created_at: Any, row_id: Value) -> Tuple:
    """SQLite looks up the id in the index as well only if it has a collation: else it goes through all rows that have
    the same `created_at`.
    """
    return Tuple(created_at, Either(sqlite=row_id.collate("BINARY"), postgresql=row_id))


def _key(table: Stored[V]) -> tuple[Any, Any]:
    return table.model.created_at, table.model.id


def _created_at_of(table: Stored[V], row_id: Any) -> Any:
    return table.model.select(table.model.created_at).where(table.model.id == row_id)
