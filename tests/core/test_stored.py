"""Whatever SQLite takes into the table can be listed, read, changed and deleted."""

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import apsw
import peewee
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peewee import Database
from playhouse.apsw_ext import APSWDatabase
from pydantic_core import to_json

from core import items
from core.errors import ItemNotFound, WriteRefused
from core.migrations import migrate
from core.schemas import ROWIDS, ItemPatch, ItemQuery, NewItem
from core.stored import Stored

INTEGERS = st.sampled_from([0, -1, 2**53, ROWIDS[-1], ROWIDS[0]]) | st.integers(ROWIDS[0], ROWIDS[-1])
TEXTS = st.binary(max_size=80).map(lambda value: ("CAST(? AS TEXT)", value))  # of whatever bytes
VALUES = st.binary(max_size=8) | st.text(max_size=250) | st.floats(allow_nan=False) | INTEGERS
ANYTHING = TEXTS | VALUES.map(lambda value: ("?", value))
COLUMNS = ("name", "description", "price_cents", "quantity", "created_at", "updated_at", "version")
ROWS = st.dictionaries(INTEGERS, st.fixed_dictionaries(dict.fromkeys(COLUMNS, ANYTHING)), max_size=4)


@pytest.fixture(params=["UTF-8", "UTF-16le", "UTF-16be"], scope="module")
def any_db(request: pytest.FixtureRequest) -> Iterator[Database]:
    database = APSWDatabase(":memory:", thread_safe=False, pragmas={"encoding": f"'{request.param}'"})
    with closing(database):
        database.connect()
        migrate(database)
        assert database.execute_sql("PRAGMA encoding").fetchone() == (request.param,)
        yield database


def ids_by_page(db: Database, limit: int, order: str) -> list[int]:
    found, query = [], {"limit": limit, "order": order}
    while True:
        page = items.list_items(db, ItemQuery.model_validate(query))
        page.model_dump_json()
        found += [item.id for item in page.items]
        if page.next_cursor is None:
            return found
        query["cursor"] = page.next_cursor


@settings(phases=[Phase.generate], max_examples=40)
@given(rows=ROWS, limit=st.integers(1, 3))
def test_whatever_sqlite_takes_can_be_listed_read_changed_and_deleted(
    any_db: Database, rows: dict[int, dict[str, tuple[str, Any]]], limit: int
) -> None:
    connection = any_db.connection()
    connection.execute("DELETE FROM items; DELETE FROM sqlite_sequence; PRAGMA ignore_check_constraints = 1")
    for item_id, row in rows.items():
        marks = ", ".join(mark for mark, _ in row.values())
        values = [item_id, *(value for _, value in row.values())]
        connection.execute(f"INSERT INTO items (id, {', '.join(row)}) VALUES (?, {marks})", values)
    connection.execute("PRAGMA ignore_check_constraints = 0")
    ascending = ids_by_page(any_db, limit, "created_at")
    assert sorted(ascending) == sorted(rows)
    assert ids_by_page(any_db, limit, "-created_at") == ascending[::-1]
    items.list_items(any_db, ItemQuery(q="a"))
    for item_id in rows:
        assert items.get_item(any_db, item_id).id == item_id
        with suppress(peewee.IntegrityError):  # a constraint of the table
            to_json(items.patch_item(any_db, item_id, ItemPatch(quantity=1)))
        with suppress(peewee.IntegrityError):
            to_json(items.replace_item(any_db, item_id, NewItem(name="new")))
        items.delete_item(any_db, item_id)
        with pytest.raises(ItemNotFound):
            items.get_item(any_db, item_id)
    if ROWIDS[-1] in rows:
        with pytest.raises(WriteRefused, match="No id is left"):
            items.create_item(any_db, NewItem(name="new"))
    else:
        assert items.create_item(any_db, NewItem(name="new")).name == "new"


def test_column_that_could_not_be_read_however_odd_is_refused() -> None:
    class Parcel(peewee.Model):
        id = peewee.AutoField()
        weight = peewee.FloatField()

    with pytest.raises(TypeError, match=r"Parcel: .* not \['weight'\]"):
        Stored(Parcel, dict)


@contextmanager
def statements(db: Database) -> Iterator[list[str]]:
    found: list[str] = []
    db.connection().trace_v2(apsw.SQLITE_TRACE_STMT, lambda event: found.append(event["sql"]))
    yield found
    db.connection().trace_v2(0, None)


def test_row_is_read_as_it_is_and_as_bytes_only_if_it_is_odd(any_db: Database) -> None:
    any_db.connection().execute("DELETE FROM items; DELETE FROM sqlite_sequence")
    is_utf_8 = any_db.execute_sql("PRAGMA encoding").fetchone() == ("UTF-8",)
    plain = items.create_item(any_db, NewItem(name="plain")).id
    odd = items.create_item(any_db, NewItem(name="odd")).id
    any_db.execute_sql("UPDATE items SET name = CAST(x'3dd8' AS TEXT) WHERE id = ?", (odd,))
    for row_id, count in ((plain, 1 if is_utf_8 else 2), (odd, 2)):
        with statements(any_db) as found:
            items.get_item(any_db, row_id)
        assert (len(found), "AS BLOB), CAST" in found[0], "AS BLOB), CAST" in found[-1]) == (count, False, count > 1)


@pytest.mark.parametrize("column", ["name", "created_at"])
@pytest.mark.parametrize("text", [b"\x3d\xd8", b"\xd8\x3d", b"\xff\xff"])
def test_text_that_is_none_is_named_in_the_log_whatever_the_encoding(
    any_db: Database, column: str, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite would mend that of UTF-16 without a word."""
    any_db.connection().execute("DELETE FROM items; DELETE FROM sqlite_sequence")
    [encoding] = any_db.execute_sql("PRAGMA encoding").fetchone()
    shown = text.decode(encoding, "replace")
    item_id = items.create_item(any_db, NewItem(name="n")).id
    any_db.execute_sql(f"UPDATE items SET {column} = CAST(? AS TEXT) WHERE id = ?", (text, item_id))
    assert getattr(items.get_item(any_db, item_id), column) == shown
    assert ("items" in caplog.text) == ("\ufffd" in shown)
