"""On SQLite."""

from contextlib import closing

import apsw
import pytest
from peewee import Database

from core import items, migrations
from core.errors import NotServed, SchemaTooNew, StatementRefused
from core.migrations import check_served, migrate, schema_version, scripts
from core.schemas import ItemPatch, ItemQuery, NewItem

NEXT = len(scripts()) + 1


@pytest.fixture
def db(on_sqlite: Database) -> Database:
    return on_sqlite


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
        # no key
        "CREATE TABLE copy AS SELECT * FROM items; DROP TABLE items; CREATE TABLE items AS SELECT * FROM copy",
        "PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = replace(sql, 'created_at TEXT NOT NULL', "
        "'created_at TEXT'); PRAGMA writable_schema = RESET",
        "CREATE TRIGGER t AFTER UPDATE ON items BEGIN INSERT INTO audit VALUES (1); END",
        "CREATE TRIGGER t AFTER DELETE ON items BEGIN SELECT soundex_of(1); END",
    ],
)
def test_what_is_not_of_this_service_or_not_whole_is_not_served(db: Database, script: str) -> None:
    connection = db.connection()
    assert check_served(connection)
    connection.execute(script)
    with pytest.raises(NotServed):
        check_served(connection)


def test_column_with_a_name_in_another_encoding_is_more_than_is_needed(db: Database) -> None:
    db.connection().execute(
        "ALTER TABLE items ADD COLUMN mine; PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = "
        "replace(sql, 'mine', '\"' || CAST(x'4cf66666656c' AS TEXT) || '\"'); PRAGMA writable_schema = RESET"
    )
    assert check_served(db.connection())
    assert items.create_item(db, NewItem(name="Lamp")).name == "Lamp"


def test_more_than_is_needed_is_served(db: Database) -> None:
    db.connection().execute("ALTER TABLE items ADD COLUMN mine; CREATE TABLE mine (v); CREATE INDEX i ON items (mine)")
    assert check_served(db.connection())


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE log (v);\nCREATE TRIGGER t AFTER INSERT ON items BEGIN\n  INSERT INTO log VALUES (1);\n"
        "  UPDATE log SET v = CASE WHEN v = 1 THEN 'a;b' END;\nEND;\nCREATE TABLE last (v)",
        "-- a; b\nCREATE TABLE log (v); /* c; d */\n-- e;\nCREATE TABLE last (v);\n-- f; g",
        "CREATE TABLE log (v TEXT DEFAULT 'a;b', [w;x], \"y;z\");;\nCREATE TABLE last (v)",
        "\ufeffCREATE TABLE log (\r\n  v\r\n);\r\n-- a; b\r\nCREATE TABLE last (v);\r\n",
    ],
)
def test_migration_is_split_where_sqlite_ends_a_statement(
    db: Database, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_one_more(script, monkeypatch)
    assert migrate(db) == schema_version(db) == len(scripts()) + 1
    items.create_item(db, NewItem(name="Lamp"))
    tables = {name for (name,) in db.execute_sql("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()}
    assert {"log", "last"} <= tables


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("BEGIN; CREATE TABLE mine (v); COMMIT;", f"Migration {NEXT}, BEGIN;: migrations run in one transaction"),
        ("CREATE TABLE mine (v);\r\n-- so\r\nCOMMIT;", "COMMIT;: migrations run in one transaction"),
        ("CREATE TABLE mine (v); ATTACH 'other.db' AS other;", "ATTACH 'other.db' AS other;: migrations run in one"),
        ("CREATE TABLE mine (v); VACUUM;", f"Migration {NEXT}, VACUUM;: cannot VACUUM from within a transaction"),
        ("CREATE TABLE mine (v); CREATE UNIQUE INDEX one ON items (name);", "UNIQUE constraint failed: items.name"),
        ("CREATE TABLE mine (v); SELEC;", f'Migration {NEXT}, SELEC;: near "SELEC": syntax error'),
    ],
)
def test_migration_that_cannot_run_is_named_and_leaves_nothing(
    db: Database, script: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        items.create_item(db, NewItem(name="Lamp"))
    with_one_more(script, monkeypatch)
    with pytest.raises(StatementRefused) as caught:
        migrate(db)
    assert message in str(caught.value)
    assert schema_version(db) == NEXT - 1
    assert db.execute_sql("SELECT * FROM sqlite_schema WHERE name = 'mine'").fetchall() == []


def with_one_more(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = scripts()
    monkeypatch.setattr(migrations, "scripts", lambda: [*known, script])
