import pytest
from peewee import Database

from core import items
from core.errors import SchemaTooNew
from core.migrations import migrate, schema_version, scripts
from core.schemas import ItemPatch, ItemQuery, NewItem


def test_release_works_on_the_next_releases_schema(db: Database) -> None:
    """Add first, remove later: so the release before can be put back after the next one has migrated."""
    known = len(scripts())
    db.execute_sql("ALTER TABLE items ADD COLUMN colour TEXT")
    db.execute_sql("CREATE TABLE shelves (id INTEGER PRIMARY KEY, item_id INTEGER REFERENCES items (id))")
    db.execute_sql(f"PRAGMA user_version = {known + 1}")
    assert migrate(db) == schema_version(db) == known + 1
    item = items.create_item(db, NewItem(name="Lamp"))
    assert items.get_item(db, item.id) == item
    assert items.replace_item(db, item.id, NewItem(name="Lamp 2")).version == 2
    assert items.patch_item(db, item.id, ItemPatch(quantity=3)).quantity == 3
    assert [found.name for found in items.list_items(db, ItemQuery(q="lamp")).items] == ["Lamp 2"]
    items.delete_item(db, item.id)


def test_schema_of_a_release_after_the_next_is_refused(db: Database) -> None:
    db.execute_sql(f"PRAGMA user_version = {len(scripts()) + 2}")
    with pytest.raises(SchemaTooNew, match="serves up to"):
        migrate(db)


def test_migrating_twice_changes_nothing(db: Database) -> None:
    assert migrate(db) == schema_version(db) == len(scripts())
