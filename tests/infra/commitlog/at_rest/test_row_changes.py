"""Rows that another program has changed, taken from its file and done again on a newer state."""

import shutil
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from infra.commitlog.at_rest.row_changes import DoesNotFit, NotRowByRow, apply_changes, changes_between, statements

SCHEMA = """
CREATE TABLE shelves (id INTEGER PRIMARY KEY, name TEXT UNIQUE);
CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, shelf INTEGER REFERENCES shelves (id), quantity);
CREATE TABLE words (word TEXT COLLATE NOCASE PRIMARY KEY, meaning COLLATE NOCASE) WITHOUT ROWID;
CREATE TABLE keyless (v);
INSERT INTO shelves VALUES (1, 'one'), (2, 'two');
INSERT INTO items VALUES (1, 1, 10), (2, 2, 20), (3, NULL, 30);
INSERT INTO words VALUES ('a', 'first');
INSERT INTO keyless VALUES (1), (1);
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.db"
    run(path, "PRAGMA journal_mode = wal;" + SCHEMA)
    return path


def run(path: Path, script: str) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(script).fetchall()


def copy(path: Path, name: str, script: str) -> Path:
    target = path.with_name(name)
    shutil.copy(path, target)
    run(target, script)
    return target


def changes(base: Path, script: str) -> bytes:
    return changes_between(copy(base, "used-up.db", ""), copy(base, "edited.db", script))


def applied(path: Path, changeset: bytes) -> list[tuple[object, ...]]:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA foreign_keys = 1")
        with connection:
            apply_changes(changeset, connection)
        return connection.execute("SELECT id, shelf, quantity FROM items ORDER BY id").fetchall()


def test_text_that_nobody_can_read_is_more_than_a_changeset_says(base: Path) -> None:
    """So the whole file is kept, and not what would stand in the way of each write for ever."""
    with pytest.raises(NotRowByRow):
        changes(base, "UPDATE shelves SET name = CAST(x'4cf6' AS TEXT) WHERE id = 1")


def test_rows_are_changed_where_they_are_as_they_were(base: Path) -> None:
    changeset = changes(
        base,
        "UPDATE items SET quantity = 11 WHERE id = 1; DELETE FROM items WHERE id = 2;"
        "INSERT INTO items VALUES (9, 1, 9)",
    )
    newer = copy(base, "newer.db", "UPDATE items SET shelf = 2 WHERE id = 1; INSERT INTO items VALUES (4, 1, 4)")
    expected = [(1, 2, 11), (3, None, 30), (4, 1, 4), (9, 1, 9)]
    assert applied(newer, changeset) == expected
    assert applied(newer, changeset) == expected  # it is no harm to do it twice


@pytest.mark.parametrize(
    ("theirs", "named"),
    [
        ("UPDATE items SET quantity = 5 WHERE id = 1", "items 1"),
        ("DELETE FROM items WHERE id = 1", "items 1"),
        ("UPDATE items SET quantity = 5 WHERE id = 2", "items 2"),
        ("INSERT INTO items VALUES (9, 2, 9)", "items 9"),
        ("UPDATE items SET shelf = NULL WHERE shelf = 1; DELETE FROM shelves WHERE id = 1", "1 foreign keys"),
        ("ALTER TABLE items RENAME TO things", "all rows of items, which is another table now"),
        ("INSERT INTO shelves VALUES (3, 'three')", "shelves 7"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_of_it_done(base: Path, theirs: str, named: str) -> None:
    changeset = changes(
        base,
        "UPDATE items SET quantity = 11 WHERE id = 1; DELETE FROM items WHERE id = 2;"
        "INSERT INTO items VALUES (9, 1, 9); INSERT INTO shelves VALUES (7, 'three')",
    )
    newer = copy(base, "newer.db", theirs)
    before = newer.read_bytes()
    with pytest.raises(DoesNotFit, match=f"^{named}$"):
        applied(newer, changeset)
    assert newer.read_bytes() == before


def test_key_of_a_row_that_is_gone_since_is_not_given_again(base: Path) -> None:
    changeset = changes(base, "INSERT INTO items VALUES (4, 1, 4), (6, 1, 6)")
    newer = copy(base, "newer.db", "INSERT INTO items VALUES (5, 2, 5); DELETE FROM items WHERE id = 5")
    before = newer.read_bytes()
    with pytest.raises(DoesNotFit, match=r"^items 4$"):
        applied(newer, changeset)
    assert newer.read_bytes() == before


def test_new_row_that_was_done_already_and_is_gone_since_does_not_come_back(base: Path) -> None:
    changeset = changes(base, "INSERT INTO items VALUES (4, 1, 4)")
    newer = copy(base, "newer.db", "")
    applied(newer, changeset)
    run(newer, "DELETE FROM items WHERE id = 4")
    with pytest.raises(DoesNotFit, match=r"^items 4$"):
        applied(newer, changeset)


def test_only_some_rows_are_named(base: Path) -> None:
    numbers = "WITH n (i) AS (SELECT 10 UNION ALL SELECT i + 1 FROM n WHERE i < 40)"
    many = numbers + "INSERT INTO items SELECT i, NULL, {} FROM n"
    with pytest.raises(DoesNotFit, match=r"^(items \d\d, ){9}items \d\d and 21 more$"):
        applied(copy(base, "newer.db", many.format(1)), changes(base, many.format(2)))


@pytest.mark.parametrize(
    "work", ["VACUUM", "REINDEX", "ANALYZE", "UPDATE items SET quantity = quantity", "PRAGMA page_size"]
)
def test_work_that_changes_no_row_leaves_nothing_to_do(base: Path, work: str) -> None:
    run(base, "DELETE FROM items WHERE id = 3")
    assert changes(base, work) == b""


@pytest.mark.parametrize(
    "work",
    [
        "INSERT INTO keyless VALUES (1)",
        "DELETE FROM keyless WHERE rowid = 1",
        "UPDATE keyless SET v = '1' WHERE rowid = 1",
        "UPDATE words SET meaning = 'FIRST'",  # which SQLite takes for the same
        "UPDATE words SET word = 'A'",
        "UPDATE sqlite_sequence SET seq = 100",
        "CREATE INDEX mine ON items (quantity)",
        "CREATE TABLE mine (v)",
        "PRAGMA user_version = 7",
        "PRAGMA application_id = 7",
    ],
)
def test_what_rows_do_not_tell_is_not_taken_for_all_of_it(base: Path, work: str) -> None:
    with pytest.raises(NotRowByRow):
        changes(base, work + "; UPDATE items SET quantity = 11 WHERE id = 1")


def test_triggers_do_not_do_it_twice(base: Path) -> None:
    run(
        base,
        "CREATE TRIGGER more AFTER UPDATE OF shelf ON items BEGIN "
        "UPDATE items SET quantity = quantity + 1 WHERE id = new.id; END",
    )
    with pytest.raises(NotRowByRow):
        changes(base, "UPDATE items SET shelf = 2 WHERE id = 1")


def test_changes_as_statements_do_the_same(base: Path) -> None:
    script = "UPDATE items SET quantity = 'it''s' WHERE id = 1; DELETE FROM items WHERE id = 3;"
    script += "INSERT INTO items VALUES (9, NULL, x'00')"
    changeset = changes(base, script)
    with closing(apsw.Connection(str(base))) as connection:
        text = "\n".join(statements(changeset, connection))
    assert 'UPDATE "items" SET "quantity" = \'it\'\'s\' WHERE "id" IS 1 AND "quantity" IS 10;' in text
    by_hand = copy(base, "by-hand.db", text)
    assert applied(by_hand, b"") == applied(base, changeset)
