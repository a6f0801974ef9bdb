"""What PostgreSQL does not take, by its own constraints and those that somebody has added, is refused by name."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from peewee import Database, DataError, IntegrityError, PeeweeException, PostgresqlDatabase

from core import items
from core.dialects import refusal, state_of
from core.errors import ItemNotFound, WriteRefused
from core.migrations.postgresql import migrate, statements
from core.schemas import ROWIDS, ItemPatch, ItemQuery, NewItem, NewItems
from tests.core.conftest import connected

ITEM = NewItem(name="Lamp")
TRIGGER = """
CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {} END $$;
CREATE TRIGGER t BEFORE INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION f();
"""


@pytest.fixture
def db(database_url: str) -> Iterator[PostgresqlDatabase]:
    """Of its own, for a shell to change."""
    with closing(connected(database_url)) as database:
        migrate(database)
        yield database


def shell(db: Database, script: str) -> None:
    for statement in statements(script):
        db.execute_sql(statement)


def test_ids_that_are_used_up_are_said_to_be(on_postgresql: Database) -> None:
    on_postgresql.execute_sql(f"ALTER TABLE items ALTER id RESTART {ROWIDS[-1]}")
    assert items.create_item(on_postgresql, ITEM).id == ROWIDS[-1]
    for create in (lambda: items.create_item(on_postgresql, ITEM), lambda: items.create_items(on_postgresql, many(1))):
        with pytest.raises(WriteRefused, match=f"No id is left: the highest possible one, {ROWIDS[-1]}, has been used"):
            create()


def test_id_is_not_used_again_though_its_row_was_not_stored(on_postgresql: Database) -> None:
    first = items.create_item(on_postgresql, ITEM).id
    with on_postgresql.atomic() as transaction:
        assert items.create_item(on_postgresql, ITEM).id == first + 1
        transaction.rollback()
    assert items.create_item(on_postgresql, ITEM).id == first + 2


def test_nobody_else_gives_an_id(on_postgresql: Database) -> None:
    with pytest.raises(PeeweeException, match="cannot insert a non-DEFAULT value into column"):
        on_postgresql.execute_sql("INSERT INTO items (id, name, created_at, updated_at) VALUES (7, '', '', '')")


def test_what_a_trigger_swallows_is_told(db: PostgresqlDatabase) -> None:
    kept = items.create_item(db, ITEM).id
    shell(db, TRIGGER.format("RETURN NULL;"))
    with pytest.raises(WriteRefused, match="does not let the item in"):
        items.create_item(db, ITEM)
    for change in (
        lambda number: items.patch_item(db, number, ItemPatch(quantity=1)),
        lambda number: items.replace_item(db, number, ITEM),
        lambda number: items.delete_item(db, number),
    ):
        with pytest.raises(WriteRefused, match=f"keeps item {kept} as it is"):
            change(kept)
        with pytest.raises(ItemNotFound):
            change(kept + 1)


def many(number: int) -> NewItems:
    return NewItems(items=[NewItem(name=f"Lamp {place}") for place in range(number)])


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("CREATE UNIQUE INDEX one ON items ((name <> 'Lamp 0'));", 'items.2: duplicate key value .* "one"$'),
        ("ALTER TABLE items ADD CHECK (name <> 'Lamp 1');", 'items.1: new row .* "items_name_check"$'),
        (TRIGGER.format("IF NEW.name = 'Lamp 1' THEN RAISE 'not today'; END IF; RETURN NEW;"), "items.1: not today$"),
        (TRIGGER.format("NEW.quantity := 1 / (NEW.name <> 'Lamp 2')::int; RETURN NEW;"), "items.2: division by zero$"),
    ],
)
def test_row_of_a_batch_that_is_not_taken_is_named_in_one_line(
    db: PostgresqlDatabase, script: str, refused: str
) -> None:
    shell(db, script)
    with pytest.raises(WriteRefused, match=refused), db.atomic():
        items.create_items(db, many(3))
    assert items.list_items(db, ItemQuery()).items == []


def test_what_is_no_fault_of_a_row_is_raised_as_it_is(db: PostgresqlDatabase) -> None:
    db.execute_sql("SET statement_timeout = 50")
    shell(db, TRIGGER.format("PERFORM pg_sleep(5); RETURN NEW;"))
    with pytest.raises(PeeweeException) as caught:
        items.create_items(db, many(1))
    assert state_of(caught.value) == "57014"
    assert refusal(caught.value) == ""


def test_nul_is_refused_before_it_is_sent(on_postgresql: Database) -> None:
    """The API has refused it before, too."""
    with pytest.raises(DataError, match="cannot contain NUL"):
        items.create_item(on_postgresql, NewItem.model_construct(**{**ITEM.model_dump(), "name": "a\0b"}))


@pytest.mark.parametrize("change", ["price_cents = -1", "quantity = -1", "name = NULL", "version = NULL"])
def test_constraints_are_those_of_sqlite(db: Database, on_sqlite: Database, change: str) -> None:
    for database in (db, on_sqlite):
        items.create_item(database, ITEM)
        with pytest.raises(IntegrityError):
            database.execute_sql(f"UPDATE items SET {change}")
