"""The use cases: plain functions of a database, safe to run again from the start."""

from collections.abc import Iterator
from typing import Any

from peewee import Database, PeeweeException

from core.dialects import refusal
from core.errors import ItemNotFound, WriteRefused
from core.models import Item
from core.pages import all_of, count_of, page_of
from core.prepared import Prepared, value
from core.schemas import (
    CreatedItems,
    ExportQuery,
    ItemPage,
    ItemPatch,
    ItemQuery,
    ItemView,
    NewItem,
    NewItems,
    UncountedItemPage,
)
from core.stored import Stored, now

ITEMS = Stored(Item, ItemView.from_row)


@Prepared
def _changed(*names: str) -> Any:
    changes = {name: value(name) for name in names}
    return Item.update(**changes, version=Item.version + 1).where(Item.id == value("id")).returning(ITEMS.columns)


@Prepared
def _deleted() -> Any:
    return Item.delete().where(Item.id == value("id")).returning(Item.id)


def probe(db: Database) -> None:
    """Read from the table, and not from an index; whatever makes reading impossible is raised."""
    db.execute_sql("SELECT description IS NULL FROM items LIMIT 1").fetchall()


def list_items(db: Database, query: ItemQuery) -> UncountedItemPage:
    """Raises NotFound for a cursor that leads nowhere any more."""
    matching = _matching(query.q)
    if not query.count:
        views, next_cursor = page_of(db, ITEMS, query, *matching)
        return UncountedItemPage(items=views, next_cursor=next_cursor)
    with db.atomic():
        views, next_cursor = page_of(db, ITEMS, query, *matching)
        return ItemPage(items=views, next_cursor=next_cursor, total=count_of(db, ITEMS, *matching))


def export_items(db: Database, query: ExportQuery) -> Iterator[ItemView]:
    """All that match, in constant memory."""
    return all_of(db, ITEMS, query.order, *_matching(query.q))


def create_item(db: Database, new: NewItem) -> ItemView:
    """Raises WriteRefused when the table takes none."""
    created_at = now()
    return ITEMS.insert(db, **vars(new), created_at=created_at, updated_at=created_at)


def create_items(db: Database, new: NewItems) -> CreatedItems:
    """All or none. Raises WriteRefused, with the place of the one that the table does not take."""
    created_at = now()
    created = []
    for place, item in enumerate(new.items):
        try:
            created.append(ITEMS.insert(db, **vars(item), created_at=created_at, updated_at=created_at))
        except WriteRefused as error:
            raise WriteRefused(f"items.{place}: {error}") from error
        except PeeweeException as error:
            if reason := refusal(error):
                raise WriteRefused(f"items.{place}: {reason}") from error
            raise
    return CreatedItems(items=created)


def get_item(db: Database, item_id: int) -> ItemView:
    if item := ITEMS.find(db, item_id):
        return item
    raise ItemNotFound(item_id)


def replace_item(db: Database, item_id: int, new: NewItem) -> ItemView:
    return _update(db, item_id, vars(new))


def patch_item(db: Database, item_id: int, patch: ItemPatch) -> ItemView:
    changes = patch.model_dump(exclude_unset=True)
    return _update(db, item_id, changes) if changes else get_item(db, item_id)


def delete_item(db: Database, item_id: int) -> None:
    if not _deleted.rows(db, {"id": item_id}):
        raise _not_done(db, item_id)


def _matching(q: str) -> list[Any]:
    return [Item.name.contains(q)] if q else []


def _update(db: Database, item_id: int, changes: dict[str, Any]) -> ItemView:
    values = {**changes, "updated_at": now()}
    for item in ITEMS.views_of(_changed.rows(db, {**values, "id": item_id}, *values)):
        return item
    raise _not_done(db, item_id)


def _not_done(db: Database, item_id: int) -> ItemNotFound | WriteRefused:
    """Why a statement has found no item."""
    if ITEMS.has(db, item_id):
        return WriteRefused(f"A trigger of the table keeps item {item_id} as it is.")
    return ItemNotFound(item_id)
