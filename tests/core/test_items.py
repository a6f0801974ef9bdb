import functools
import operator

import pytest
from peewee import Database
from pydantic import ValidationError

from core import items
from core.dialects import is_postgresql
from core.errors import ItemNotFound, NotFound
from core.models import Item
from core.schemas import MAX_INTEGER, ItemPatch, ItemQuery, NewItem


def add(db: Database, *names: str) -> list[int]:
    return [items.create_item(db, NewItem(name=name)).id for name in names]


def pages(db: Database, cursor: str | None = None, **query: object) -> list[list[int]]:
    found = []
    while True:
        page = items.list_items(db, ItemQuery.model_validate({**query, "cursor": cursor}))
        found.append([item.id for item in page.items])
        cursor = page.next_cursor
        if cursor is None:
            return found


def test_created_item_reads_back_the_same(db: Database) -> None:
    created = items.create_item(db, NewItem.model_validate_json('{"name": "Lamp", "price": "9.5", "quantity": 2}'))
    assert items.get_item(db, created.id) == created
    assert (created.price, created.quantity, created.version, created.description) == ("9.50", 2, 1, None)
    assert created.created_at == created.updated_at
    assert created.created_at.endswith("Z")


def test_pages_cover_every_item_once_in_order(db: Database) -> None:
    ids = add(db, *"abcdefg")
    Item.update(created_at="2026-01-01T00:00:00.000000Z").where(Item.id.in_(ids[2:5])).execute(db)
    ascending = ids[2:5] + ids[:2] + ids[5:]
    assert functools.reduce(operator.iadd, pages(db, limit=2), []) == ascending
    assert functools.reduce(operator.iadd, pages(db, limit=2, order="-created_at"), []) == ascending[::-1]
    assert pages(db, limit=7) == [ascending]


def test_page_is_stable_while_items_are_added_and_removed(db: Database) -> None:
    ids = add(db, *"abcd")
    first = items.list_items(db, ItemQuery(limit=2))
    items.delete_item(db, ids[0])
    add(db, "e")
    second = items.list_items(db, ItemQuery(limit=2, cursor=first.next_cursor))
    assert [item.id for item in second.items] == ids[2:]


def test_search_takes_the_text_literally(db: Database) -> None:
    plain, percent, underscore, backslash = add(db, "Blue lamp", "100% wool", "snake_case", "C:\\new")
    assert pages(db, q="LAMP") == [[plain]]
    assert pages(db, q="%") == [[percent]]
    assert pages(db, q="_") == [[underscore]]
    assert pages(db, q="\\") == pages(db, q=":\\N") == [[backslash]]
    assert pages(db, q="'; DROP TABLE items; --") == pages(db, q="%s") == [[]]


def test_search_knows_of_the_case_of_ascii_letters_alone(db: Database) -> None:
    capital, small, long_s, dotless = add(db, "Ärger", "ärger", "\u017fo", "\u0131")
    assert pages(db, q="ÄRGER") == [[capital]]
    assert pages(db, q="äRGER") == [[small]]
    assert pages(db, q="ſ") == [[long_s]]
    assert pages(db, q="s") == pages(db, q="i") == [[]]
    assert pages(db, q="ı") == [[dotless]]


def test_text_is_ordered_by_its_bytes(db: Database) -> None:
    times = ["", " 2", "-1", "2026-01-31T12:00:00.000000Z", "B", "_", "a", "aB", "b", "Ä", "é", "\uffee", "\U0001f600"]
    ids = add(db, *(str(number) for number in range(len(times))))
    for item_id, time in sorted(zip(ids, times, strict=True), key=lambda pair: hash(pair)):
        Item.update(created_at=time).where(Item.id == item_id).execute(db)
    assert functools.reduce(operator.iadd, pages(db, limit=1), []) == ids
    assert functools.reduce(operator.iadd, pages(db, limit=3, order="-created_at"), []) == ids[::-1]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "'",
            '"',
            "\\",
            "\\'",
            "%",
            "%s",
            "%(a)s",
            "$1",
            "{}",
            "?",
            ":a",
            "--",
            "/*",
            ";",
            "NULL",
            "E'\\x00'",
            "\\x41",
        ),
        *(
            "\n",
            "\r\n",
            "\t",
            "\x01",
            "\x7f",
            "\x85",
            "\u2028",
            "\ufeff",
            "\ufffe",
            "\uffff",
            "\U0010ffff",
            "\u202eabc",
            "e\u0301",
        ),
    ],
)
def test_text_comes_back_as_it_was(db: Database, text: str) -> None:
    created = items.create_item(db, NewItem(name=text, description=text))
    assert (created.name, created.description) == (text, text)
    assert items.get_item(db, created.id) == created
    assert pages(db, q=text) == [[created.id]]


def test_numbers_are_kept_to_the_last_digit(db: Database) -> None:
    most = NewItem.model_validate_json(f'{{"name": "n", "price": "9999999999.99", "quantity": {MAX_INTEGER}}}')
    created = items.create_item(db, most)
    assert (created.price, created.quantity) == ("9999999999.99", 2**53 - 1)
    assert items.get_item(db, created.id) == created
    assert items.patch_item(db, created.id, ItemPatch.model_validate_json('{"price": "0.01"}')).price == "0.01"


@pytest.mark.parametrize(
    "token",
    ["", "x", "é", "~", "~x", "~1\n", "~\u0661", "2026~1", "2026-01-31T12:00:00Z~1", "~" + "1" * 20],
)
def test_cursor_that_was_not_ours_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="is not a next_cursor of this API"):
        ItemQuery(cursor=token)


def test_cursor_leads_either_way(db: Database) -> None:
    first, second, _, fourth = add(db, *"abcd")
    end = items.list_items(db, ItemQuery(limit=3)).next_cursor
    onwards, back = ItemQuery(cursor=end), ItemQuery(cursor=end, order="-created_at")
    assert [item.id for item in items.list_items(db, onwards).items] == [fourth]
    assert [item.id for item in items.list_items(db, back).items] == [second, first]


@pytest.mark.parametrize("row_id", ["9999999999999999999", "-9999999999999999999", "-0"])
def test_every_token_is_a_place(db: Database, row_id: str) -> None:
    (only,) = add(db, "a")
    assert pages(db, cursor=f"0000-00-00T00:00:00.000000Z~{row_id}") == [[only]]
    assert pages(db, cursor=f"9999-99-99T99:99:99.999999Z~{row_id}") == [[]]
    with pytest.raises(NotFound, match="is gone; begin again"):
        pages(db, cursor=f"~{row_id}")


def test_replace_sets_every_field_and_counts_the_version(db: Database) -> None:
    created = items.create_item(db, NewItem(name="a", description="d", quantity=3))
    replaced = items.replace_item(db, created.id, NewItem(name="b"))
    assert (replaced.name, replaced.description, replaced.quantity, replaced.version) == ("b", None, 0, 2)
    assert replaced.created_at == created.created_at
    assert replaced.updated_at > created.updated_at


def test_patch_leaves_other_fields_alone(db: Database) -> None:
    created = items.create_item(db, NewItem(name="a", description="d", quantity=3))
    patched = items.patch_item(db, created.id, ItemPatch.model_validate_json('{"quantity": 4}'))
    assert (patched.name, patched.description, patched.quantity, patched.version) == ("a", "d", 4, 2)
    assert items.patch_item(db, created.id, ItemPatch()) == patched


def test_what_is_not_there_is_named(db: Database) -> None:
    for use_case in (
        lambda: items.get_item(db, 7),
        lambda: items.replace_item(db, 7, NewItem(name="x")),
        lambda: items.patch_item(db, 7, ItemPatch()),
        lambda: items.delete_item(db, 7),
    ):
        with pytest.raises(ItemNotFound, match="no item 7"):
            use_case()


def test_ids_are_never_used_again(db: Database) -> None:
    last = add(db, "a", "b")[-1]
    items.delete_item(db, last)
    assert add(db, "c") == [last + 1]


def test_model_and_migrations_agree(db: Database) -> None:
    columns, indexes = (
        (
            "SELECT column_name FROM information_schema.columns WHERE table_name = 'items'",
            "SELECT indexname FROM pg_indexes",
        )
        if is_postgresql(db)
        else ("SELECT name FROM pragma_table_info('items')", "SELECT name FROM sqlite_schema WHERE type = 'index'")
    )
    assert {name for (name,) in db.execute_sql(columns).fetchall()} == set(Item._meta.columns)
    assert ("idx_items_created",) in db.execute_sql(indexes).fetchall()
