"""Lines are what PostgreSQL's COPY takes and gives, whatever is in a row."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.migrations import scripts
from core.schemas import MAX_INTEGER
from infra.moving.odd import survey
from infra.moving.rows import Column, Lines, Sum, Table, selected, tables, values_of
from infra.progress import no_progress
from tests.postgresql import Cluster

ALL = Table(
    "everything",
    (
        Column("id", "INTEGER", False),
        Column("text", "TEXT", True),
        Column("blob", "BLOB", True),
        Column("number", "INTEGER", True),
    ),
    ("id",),
)
NUMBERS = st.integers(-MAX_INTEGER, MAX_INTEGER)
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
ROWS = st.tuples(NUMBERS, st.none() | TEXTS, st.none() | st.binary(max_size=20), st.none() | NUMBERS)


@pytest.fixture(scope="module")
def there(postgresql: Cluster) -> Iterator["psycopg.Connection[Any]"]:
    name = postgresql.create_database()
    with psycopg.connect(postgresql.url(name), autocommit=True) as db:
        db.execute("CREATE TABLE everything (id bigint PRIMARY KEY, text text, blob bytea, number bigint)")
        yield db
    postgresql.drop_database(name)


@settings(max_examples=30)
@given(rows=st.lists(ROWS, max_size=5, unique_by=lambda row: row[0]))
def test_what_goes_in_is_what_comes_out(there: "psycopg.Connection[Any]", rows: list[Any]) -> None:
    with closing(apsw.Connection(":memory:")) as here:
        here.execute("CREATE TABLE everything (id INTEGER PRIMARY KEY, text TEXT, blob BLOB, number INTEGER)")
        here.executemany("INSERT INTO everything VALUES (?, ?, ?, ?)", rows)
        lines = Lines(ALL, "UTF-8")
        made = [lines.line(row) for row in here.execute(f"SELECT {selected(ALL)} FROM everything ORDER BY id")]
    there.execute("TRUNCATE everything")
    with there.cursor().copy("COPY everything FROM STDIN") as copy:
        copy.write(b"".join(made))
    assert there.execute("SELECT * FROM everything ORDER BY id").fetchall() == sorted(rows, key=lambda row: row[0])
    with there.cursor().copy("COPY (SELECT * FROM everything ORDER BY id) TO STDOUT") as copy:
        assert [bytes(line) for line in copy] == made
    assert [tuple(values_of(ALL, line)) for line in made] == sorted(rows, key=lambda row: row[0])


@given(st.lists(st.binary(max_size=8)), st.lists(st.binary(max_size=8)))
def test_sum_is_of_what_is_there_in_any_order(first: list[bytes], second: list[bytes]) -> None:
    changed, whole = Sum(), Sum()
    for line in first:
        changed.add(line)
    for line in first:
        changed.take(line)
    for line in second:
        changed.add(line)
    for line in reversed(second):
        whole.add(line)
    assert changed == whole


def test_tables_are_those_of_the_migrations() -> None:
    found = {table.name: table for table in tables()}
    assert list(found) == ["items", "idempotency_keys", "api_keys"]
    assert (found["items"].id, found["api_keys"].id) == ("id", None)
    assert found["idempotency_keys"].key == ("hour", "caller", "key")


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16le", "UTF-16be"])
def test_text_is_told_from_what_is_none_in_each_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "app.db"
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("encoding", encoding)
        for script in scripts():
            connection.execute(script)
        connection.pragma("user_version", len(scripts()))
        connection.execute("INSERT INTO items (name, created_at, updated_at) VALUES ('ü€😀', 'a\tb', '')")
        row = connection.execute(f"SELECT {selected(tables()[0])} FROM items").fetchall()[0]
    lines = Lines(tables()[0], encoding)
    assert lines.line(row).split(b"\t")[:2] == [b"1", "ü€😀".encode()]
    assert survey(path, tables(), no_progress).sums["items"].rows == 1
