"""What asks for a function, collation or module that this SQLite lacks is no damage, and is named."""

import asyncio
from contextlib import closing
from functools import partial
from pathlib import Path

import apsw
import pytest

from core import items
from core.errors import NotServed
from core.migrations import scripts
from core.schemas import ItemQuery
from infra.__main__ import main
from infra.commitlog import soundness_of
from infra.inspection import inspect
from infra.settings import Settings
from tests.conftest import open_at, write

pytestmark = pytest.mark.usefixtures("served_database")

# What does not keep the service from its work, and what is said of it
TOLERATED = {
    "an index with a collation": (
        "CREATE TABLE mine (a, b); INSERT INTO mine VALUES (1, 2); CREATE INDEX i ON mine (a COLLATE german)",
        "no such collation sequence: german",
    ),
    "an index with a function": ("CREATE TABLE mine (a, b); CREATE INDEX i ON mine (soundex_of(a))", "soundex_of"),
    "a key with a collation": ("CREATE TABLE mine (a COLLATE german PRIMARY KEY) WITHOUT ROWID", "german"),
    "a module": (
        "CREATE VIRTUAL TABLE mine USING fts5(a); PRAGMA writable_schema = 1; "
        "UPDATE sqlite_schema SET sql = replace(sql, 'fts5', 'spatial') WHERE name = 'mine'",
        "no such module: spatial",
    ),
}
# What does
REFUSED = {
    "an index with a collation": ("CREATE INDEX i ON items (name COLLATE german)", "the collation german"),
    "an index with a function": ("CREATE INDEX i ON items (soundex_of(name))", "the function soundex_of"),
    "a trigger": (
        "CREATE TRIGGER i AFTER INSERT ON items BEGIN SELECT soundex_of(new.name); END",
        "the function soundex_of",
    ),
}


def run(path: Path, script: str) -> None:
    """By a program whose SQLite has more."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(5000)
        connection.create_collation("german", lambda one, two: (one > two) - (one < two))
        connection.create_scalar_function("soundex_of", lambda *values: values[0], 1, deterministic=True)
        connection.execute(script)


def names(path: Path) -> list[str]:
    with closing(open_at(path)) as database:
        return [item.name for item in asyncio.run(database.read(partial(items.list_items, query=ItemQuery()))).items]


@pytest.mark.parametrize("what", TOLERATED)
def test_it_is_kept_counted_as_far_as_that_goes_and_named(
    what: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    script, said = TOLERATED[what]
    path = settings.database_path
    run(path, script)  # changed while it was stopped: all of the file is looked at
    with closing(open_at(path)) as database:
        write(database, "a")
    assert not list(path.parent.glob("app.db.diverged-*"))
    assert main(["maintain"]) == 0
    printed = capsys.readouterr().out
    assert f"{said}" in printed
    assert "1 items" in printed
    assert main(["verify"]) == 0
    assert "is sound" in capsys.readouterr().out
    assert main(["verify", "latest"]) == 0
    assert main(["restore", "latest"]) == 0
    assert main(["sql", "UPDATE items SET quantity = 1"]) == 0
    main(["status"])
    assert said in capsys.readouterr().out
    assert names(path) == ["a"]


@pytest.mark.parametrize("what", REFUSED)
def test_what_keeps_every_write_from_the_table_becomes_no_commit(
    what: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    script, missing = REFUSED[what]
    path = settings.database_path
    run(path, script)
    with closing(open_at(path)) as database:
        assert f"it needs {missing}, which is not here" in caplog.text
        write(database, "a")
        run(path, script)  # and on the live file
        write(database, "b")
    assert len(list(path.parent.glob("app.db.diverged-*"))) >= 2
    assert names(path) == ["a", "b"]


@pytest.mark.parametrize("what", REFUSED)
def test_file_that_cannot_be_written_begins_no_log(what: str, tmp_path: Path) -> None:
    script, missing = REFUSED[what]
    path = tmp_path / "theirs" / "app.db"
    path.parent.mkdir()
    run(path, "".join(scripts()) + f"PRAGMA user_version = {len(scripts())};" + script)
    before = path.read_bytes()
    with pytest.raises(NotServed, match=f"it needs {missing}, which is not here"):
        open_at(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "column",
    ["z AS (soundex_of(name))", "z CHECK (soundex_of(z))", "z TEXT COLLATE german UNIQUE", "z AS (soundex_of(z2)), z2"],
)
def test_table_of_another_program_with_such_a_column_is_refused_by_name(column: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs" / "app.db"
    path.parent.mkdir()
    first = scripts()[0].replace("    created_at TEXT", f"    {column},\n    created_at TEXT", 1)
    run(path, first + "".join(scripts()[1:]) + f"PRAGMA user_version = {len(scripts())}")
    with pytest.raises(NotServed, match=r"(function soundex_of|collation german), which is not here"):
        open_at(path)


def test_rows_past_the_tables_checks_are_no_damage(settings: Settings) -> None:
    path = settings.database_path
    insert = "INSERT INTO items (name, quantity, created_at, updated_at) VALUES (x'4cf6', -1, '', '')"
    run(path, f"PRAGMA ignore_check_constraints = 1; {insert}")
    assert names(path) == ["L\ufffd"]
    assert main(["maintain"]) == 0
    assert main(["verify"]) == 0


def test_damage_beside_what_cannot_be_checked_is_found(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    run(path, "CREATE TABLE mine (a); CREATE INDEX i ON mine (a COLLATE german); CREATE TABLE other (a, b)")
    other = "UPDATE sqlite_schema SET sql = 'CREATE INDEX j ON other (b)' WHERE name = 'j'"
    run(path, f"INSERT INTO other VALUES (1, 2); CREATE INDEX j ON other (a); PRAGMA writable_schema = 1; {other}")
    with closing(apsw.Connection(str(path))) as connection:
        found = soundness_of(connection)
    assert any("index j" in message for message in found.damage)
    assert found.unchecked == ["table mine cannot be checked here: no such collation sequence: german"]


def test_rows_are_compared_as_far_as_they_can_be_counted(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    run(path, TOLERATED["a module"][0] + "; PRAGMA writable_schema = RESET; CREATE TABLE other (a)")
    contents = inspect(path)
    assert contents.has({**contents.rows, "mine": 5})
    assert not contents.has({**contents.rows, "other": 1})
    assert not contents.has({**contents.rows, "gone": 0})
    assert not contents.has({"mine": 5})


def test_table_with_a_name_in_another_encoding_is_left_out(tmp_path: Path) -> None:
    path, name = tmp_path / "some.db", "CAST(x'4cf66666656c' AS TEXT)"
    run(path, "CREATE TABLE mine (a); CREATE TABLE other (a); PRAGMA writable_schema = 1")
    rename = f"name = {name}, tbl_name = {name}, sql = replace(sql, 'other', '\"' || {name} || '\"')"
    run(path, f"PRAGMA writable_schema = 1; UPDATE sqlite_schema SET {rename} WHERE name = 'other'")
    contents = inspect(path)
    assert contents.rows == {"mine": 0}
    assert list(contents.uncounted) == ["L\ufffdffel"]
