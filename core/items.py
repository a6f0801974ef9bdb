"""The use cases: plain functions of a database, safe to run again from the start."""

from datetime import UTC, datetime
from typing import Any

from peewee import Database, ModelSelect, PeeweeException, Tuple

from core.cursor import Cursor
from core.errors import FieldError, InvalidInput, ItemNotFound, WriteRefused
from core.models import Item
from core.schemas import ROWIDS, ItemPage, ItemPatch, ItemQuery, ItemView, NewItem
from core.stored import COLUMNS, views_of


def probe(db: Database) -> None:
    """Read from the table; whatever makes reading impossible is raised."""
    db.execute_sql("SELECT id FROM items NOT INDEXED LIMIT 1").fetchall()


def list_items(db: Database, query: ItemQuery) -> ItemPage:
    """Raises InvalidInput for a cursor that leads nowhere any more."""
    rows = list(_page(db, query).dicts().execute(db))
    more, rows = len(rows) > query.limit, rows[: query.limit]
    views = views_of(rows)
    cursor = Cursor.at(views[-1], query.order, rows[-1]["as_expected"]).encode() if more else None
    return ItemPage(items=views, next_cursor=cursor)


def _page(db: Database, query: ItemQuery) -> "ModelSelect[Any]":
    """One row more than the page holds, which tells whether there is a next one."""
    descending = query.order.startswith("-")
    key = (Item.created_at, Item.id)
    select = Item.select(COLUMNS).order_by(*(column.desc() if descending else column.asc() for column in key))
    if query.q:
        select = select.where(Item.name.contains(query.q))
    if query.cursor is not None:
        end = Cursor.decode(query.cursor, query.order)
        here, there = Tuple(*key), Tuple(_created_at(db, end), end.item_id)
        select = select.where(here < there if descending else here > there)
    return select.limit(query.limit + 1)


def _created_at(db: Database, end: Cursor) -> Any:
    if end.created_at is not None:
        return end.created_at
    if not _is_there(db, end.item_id):
        raise InvalidInput([FieldError("cursor", "led to an item that is gone; begin again without it")])
    return Item.select(Item.created_at).where(Item.id == end.item_id)


def create_item(db: Database, new: NewItem) -> ItemView:
    """Raises WriteRefused when the table takes none."""
    now = _now()
    insert = Item.insert(**new.model_dump(), created_at=now, updated_at=now).returning(COLUMNS)
    try:
        rows = list(insert.dicts().execute(db))
    except PeeweeException as error:
        if _ids_are_used_up(db):
            raise WriteRefused(f"No id is left: the highest possible one, {ROWIDS[-1]}, has been used.") from error
        raise
    if not rows:
        raise WriteRefused("A trigger of the table does not let the item in.")
    return views_of(rows)[0]


def get_item(db: Database, item_id: int) -> ItemView:
    for item in views_of(Item.select(COLUMNS).where(Item.id == item_id).dicts().execute(db)):
        return item
    raise ItemNotFound(item_id)


def replace_item(db: Database, item_id: int, new: NewItem) -> ItemView:
    return _update(db, item_id, new.model_dump())


def patch_item(db: Database, item_id: int, patch: ItemPatch) -> ItemView:
    changes = patch.model_dump(exclude_unset=True)
    return _update(db, item_id, changes) if changes else get_item(db, item_id)


def delete_item(db: Database, item_id: int) -> None:
    if not Item.delete().where(Item.id == item_id).execute(db):
        raise _not_done(db, item_id)


def _update(db: Database, item_id: int, changes: dict[str, Any]) -> ItemView:
    update = Item.update(**changes, updated_at=_now(), version=Item.version + 1)
    for item in views_of(update.where(Item.id == item_id).returning(COLUMNS).dicts().execute(db)):
        return item
    raise _not_done(db, item_id)


def _not_done(db: Database, item_id: int) -> ItemNotFound | WriteRefused:
    """Why a statement has found no item."""
    if _is_there(db, item_id):
        return WriteRefused(f"A trigger of the table keeps item {item_id} as it is.")
    return ItemNotFound(item_id)


def _is_there(db: Database, item_id: int) -> bool:
    return bool(list(Item.select(Item.id).where(Item.id == item_id).tuples().execute(db)))


def _ids_are_used_up(db: Database) -> bool:
    found = db.execute_sql("SELECT max(seq) FROM sqlite_sequence WHERE name = 'items'").fetchone()
    return bool(found[0] == ROWIDS[-1])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
