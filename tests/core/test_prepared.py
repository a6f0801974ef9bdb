"""What is built once is what Peewee would build each time."""

from typing import Any

import pytest
from peewee import Database, Value

from core import items, pages, stored
from core.models import Item
from core.prepared import Prepared, text_of
from core.schemas import ItemPatch, ItemQuery, NewItem


def test_each_text_is_what_peewee_builds_of_the_values(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Prepared.rows
    seen = []

    def compared(self: Prepared, db: Database, values: dict[str, Any], *shape: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            for module in (items, pages, stored):
                patch.setattr(module, "value", lambda name: Value(values[name]))
            sql, parameters = text_of(db, self._build(*shape))
        found = run(self, db, values, *shape)
        kept_sql, kept = self._texts[type(db), *shape]
        assert (kept_sql, [values.get(each, each) for each in kept]) == (sql, parameters)
        seen.append(sql)
        return found

    monkeypatch.setattr(Prepared, "rows", compared)
    for number in range(3):
        items.create_item(db, NewItem(name=f"Lamp {number}"))
    item = items.create_item(db, NewItem.model_validate_json('{"name": "Torch", "description": "d", "price": "1.5"}'))
    items.replace_item(db, item.id, NewItem(name="Lantern"))
    for changes in ({"name": "a"}, {"quantity": 1, "description": None}):
        items.patch_item(db, item.id, ItemPatch.model_validate(changes))
    for order in ("created_at", "-created_at"):
        first = ItemQuery.model_validate({"limit": 2, "order": order})
        cursor = items.list_items(db, first).next_cursor
        for begin in (cursor, "~2"):
            items.list_items(db, first.model_copy(update={"cursor": begin}))
            items.list_items(db, first.model_copy(update={"cursor": begin, "q": "lamp"}))
    items.delete_item(db, item.id)
    assert len(set(seen)) == 16  # so that a statement that is no longer prepared, or a new one, is noticed here


def test_it_is_built_once_for_each_shape(db: Database) -> None:
    built = []

    @Prepared
    def select(column: str) -> Any:
        built.append(column)
        return Item.select(getattr(Item, column))

    for column in ("id", "name", "id"):
        select.rows(db, {}, column)
    assert built == ["id", "name"]
