"""The use cases: plain functions of a database, safe to run again from the start."""

from datetime import UTC, datetime
from typing import Any

from peewee import Database, ModelSelect, Tuple

from core.cursor import Cursor
from core.errors import ItemNotFound
from core.models import Item
from core.schemas import ItemPage, ItemPatch, ItemQuery, ItemView, NewItem


def probe(db: Database) -> None:
    """Read from the table; whatever makes reading impossible is raised."""
    Item.select(Item.id).limit(1).tuples().execute(db)[:]


def list_items(db: Database, query: ItemQuery) -> ItemPage:
    rows = list(_page(query).dicts().execute(db))
    more = len(rows) > query.limit
    rows = rows[: query.limit]
    cursor = Cursor(query.order, rows[-1]["created_at"], rows[-1]["id"]).encode() if more else None
    return ItemPage(items=[ItemView.from_row(row) for row in rows], next_cursor=cursor)


def _page(query: ItemQuery) -> "ModelSelect[Any]":
    """One row more than the page holds, which tells whether there is a next one."""
    descending = query.order.startswith("-")
    key = (Item.created_at, Item.id)
    select = Item.select().order_by(*(column.desc() if descending else column.asc() for column in key))
    if query.q:
        select = select.where(Item.name.contains(query.q))
    if query.cursor is not None:
        end = Cursor.decode(query.cursor, query.order)
        here, there = Tuple(*key), (end.created_at, end.item_id)
        select = select.where(here < there if descending else here > there)
    return select.limit(query.limit + 1)


def create_item(db: Database, new: NewItem) -> ItemView:
    now = _now()
    insert = Item.insert(**new.model_dump(), created_at=now, updated_at=now).returning(Item)
    return ItemView.from_row(insert.dicts().execute(db)[0])


def get_item(db: Database, item_id: int) -> ItemView:
    return _one(item_id, Item.select().where(Item.id == item_id).dicts().execute(db))


def replace_item(db: Database, item_id: int, new: NewItem) -> ItemView:
    return _update(db, item_id, new.model_dump())


def patch_item(db: Database, item_id: int, patch: ItemPatch) -> ItemView:
    changes = patch.model_dump(exclude_unset=True)
    return _update(db, item_id, changes) if changes else get_item(db, item_id)


def delete_item(db: Database, item_id: int) -> None:
    if not Item.delete().where(Item.id == item_id).execute(db):
        raise ItemNotFound(item_id)


def _update(db: Database, item_id: int, changes: dict[str, Any]) -> ItemView:
    update = Item.update(**changes, updated_at=_now(), version=Item.version + 1)
    return _one(item_id, update.where(Item.id == item_id).returning(Item).dicts().execute(db))


def _one(item_id: int, rows: Any) -> ItemView:
    for row in rows:
        return ItemView.from_row(row)
    raise ItemNotFound(item_id)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
