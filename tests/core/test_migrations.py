from contextlib import closing

import apsw
import pytest
from peewee import Database

from core import items
from core.errors import NotServed, SchemaTooNew
from core.migrations import check_served, migrate, schema_version, scripts
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


def test_what_was_migrated_is_served_and_of_older_releases_after_a_migration(db: Database) -> None:
    known = len(scripts())
    for version in range(1, known + 2):
        with closing(apsw.Connection(":memory:")) as connection:
            connection.execute("".join(scripts()[:version]) + f"PRAGMA user_version = {version}")
            assert check_served(connection) is (version >= known)


@pytest.mark.parametrize(
    "script",
    [
        "PRAGMA user_version = 0",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = -1",
        "PRAGMA user_version = 99",
        "PRAGMA application_id = 0",
        "PRAGMA application_id = 7",
        "DROP TABLE items",
        "ALTER TABLE items DROP COLUMN description",
        "CREATE TABLE copy AS SELECT * FROM items; DROP TABLE items; ALTER TABLE copy RENAME TO items",  # no key
    ],
)
def test_what_is_not_of_this_service_or_not_whole_is_not_served(db: Database, script: str) -> None:
    connection = db.connection()
    assert check_served(connection)
    connection.execute(script)
    with pytest.raises(NotServed):
        check_served(connection)


def test_more_than_is_needed_is_served(db: Database) -> None:
    db.connection().execute("ALTER TABLE items ADD COLUMN mine; CREATE TABLE mine (v); CREATE INDEX i ON items (mine)")
    assert check_served(db.connection())
