"""A file with code in its schema: nothing of it runs on the way in, and what could reach beyond it is never served."""

import asyncio
import gzip
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import apsw
import pytest

from core import items
from core.errors import WriteRefused
from core.migrations import scripts
from core.schemas import ItemQuery
from infra.__main__ import main
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from tests.conftest import open_at, write

pytestmark = pytest.mark.usefixtures("served_database")

ITEM = "INSERT INTO items (name, created_at, updated_at) VALUES ('theirs', '', '');"
ENDLESS = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n AS a FROM r"
LONG = "hex(zeroblob(100000000))"  # within what a value may have at the most, but not for a small file
MOST_MEMORY = 64 * 1024 * 1024


def afterwards(name: str, sql: str) -> str:
    """Another definition than the one that it was made with."""
    return f"PRAGMA writable_schema = 1; UPDATE sqlite_schema SET sql = '{sql}' WHERE name = '{name}';"


# What this service refuses, and what it says. A part of each is SQLite's own word for it
REFUSED = {
    "a trigger that loads code": (
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT load_extension('/tmp/theirs.so'); END",
        "unsafe use of load_extension",
    ),
    "a trigger that hands over a pointer": (
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT fts3_tokenizer('simple', x'0102030405060708'); END",
        "unsafe use of fts3_tokenizer",
    ),
    "a trigger that looks at the file's pages": (
        "CREATE VIRTUAL TABLE s USING dbstat; CREATE TRIGGER t AFTER DELETE ON items BEGIN SELECT count(*) FROM s; END",
        "unsafe use of virtual table",
    ),
    "a trigger that asks where the file is": (
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN INSERT INTO ran SELECT file FROM pragma_database_list; END",
        "unsafe use of virtual table",
    ),
    "a trigger that writes past a search index": (
        "CREATE VIRTUAL TABLE f USING fts5(a); "
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN UPDATE f_data SET block = zeroblob(9); END",
        "may not be modified",
    ),
    "an index that makes much of little": (
        f"CREATE TABLE m (a); INSERT INTO m VALUES (1); CREATE INDEX i ON m (hex(zeroblob(1)));"
        f"{afterwards('i', f'CREATE INDEX i ON m ({LONG})')}",
        "out of all proportion",
    ),
    "a column that makes much of little": (
        f"CREATE TABLE m (a, b NOT NULL AS (hex(zeroblob(1)))); INSERT INTO m VALUES (1);"
        f"{afterwards('m', f'CREATE TABLE m (a, b NOT NULL AS ({LONG}))')}",
        "out of all proportion",
    ),
}
# What is let in, and does nothing by itself
LET_IN = {
    "triggers of every kind": "".join(
        f"CREATE TRIGGER {when}_{what} {when} {what} ON items BEGIN INSERT INTO ran VALUES ('{when} {what}'); END;"
        for when in ("BEFORE", "AFTER")
        for what in ("INSERT", "UPDATE", "DELETE")
    ),
    "a view without an end": f"CREATE VIEW v AS {ENDLESS};",
    "a search index over a view without an end": (
        f"CREATE VIEW v AS {ENDLESS}; CREATE VIRTUAL TABLE f USING fts5(a, content='v', content_rowid='a');"
    ),
    "a constraint that makes much of little": f"CREATE TABLE m (a CHECK (length({LONG}) > 0));",
}


def hostile(path: Path, script: str, version: int = len(scripts())) -> Path:
    """A database of this service, with the rows of another, and with code."""
    with closing(apsw.Connection(str(path))) as connection:
        schema = "".join(scripts()[:version]) + f"PRAGMA user_version = {version};"
        connection.execute(f"{schema} CREATE TABLE ran (what); {ITEM} {script}")
    return path


def backup(settings: Settings, image: Path) -> str:
    name = "app-20260131-1200-theirs.db.gz"
    directory = settings.database_path.parent / "backups"
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(gzip.compress(image.read_bytes()))
    return name


def names(database: SqliteDatabase) -> list[str]:
    return [item.name for item in asyncio.run(database.read(partial(items.list_items, query=ItemQuery()))).items]


def served(settings: Settings) -> list[str]:
    with closing(open_at(settings.database_path)) as database:
        return names(database)


def ran(settings: Settings) -> list[str]:
    """What the triggers have left in the newest state of the log."""
    out = settings.database_path.parent / f"out-{time.monotonic_ns()}.db"
    assert main(["restore", "-o", str(out), "--txid", newest(settings)]) == 0
    with closing(apsw.Connection(str(out))) as connection:
        return [str(what) for (what,) in connection.execute("SELECT what FROM ran")]


def newest(settings: Settings) -> str:
    directory = settings.database_path.parent / "replica" / "ltx" / "0"
    return max(path.name[:16] for path in directory.iterdir())


@contextmanager
def little_memory() -> Iterator[None]:
    apsw.memory_high_water(True)
    yield
    assert apsw.memory_high_water() < MOST_MEMORY


@pytest.mark.parametrize("what", REFUSED)
def test_backup_that_could_reach_beyond_itself_is_not_restored(
    what: str, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script, said = REFUSED[what]
    name, before = backup(settings, hostile(tmp_path / "theirs.db", script)), newest(settings)
    with little_memory():
        assert main(["restore", name]) == 1
    assert said in capsys.readouterr().err
    assert newest(settings) == before
    assert served(settings) == []


@pytest.mark.parametrize("what", REFUSED)
def test_file_that_could_reach_beyond_itself_is_kept_beside_and_not_served(
    what: str, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    script, said = REFUSED[what]
    path = settings.database_path
    path.unlink()
    hostile(path, script)
    with little_memory():
        assert served(settings) == []
    assert said in caplog.text
    assert list(path.parent.glob("app.db.diverged-*"))


@pytest.mark.parametrize("what", REFUSED)
def test_file_that_could_reach_beyond_itself_begins_no_log(what: str, tmp_path: Path) -> None:
    script, said = REFUSED[what]
    (tmp_path / "new").mkdir()
    path = hostile(tmp_path / "new" / "app.db", script)
    with little_memory(), pytest.raises(Exception, match=said):
        open_at(path)
    assert not list((tmp_path / "new").glob("replica/ltx/0/*"))


@pytest.mark.parametrize("what", LET_IN)
@pytest.mark.parametrize("version", [1, len(scripts())])
def test_nothing_of_a_backup_runs_on_its_way_in(what: str, version: int, settings: Settings, tmp_path: Path) -> None:
    image = hostile(tmp_path / "theirs.db", LET_IN[what], version)
    with little_memory():
        assert main(["verify", backup(settings, image)]) == 0
        assert main(["restore", backup(settings, image)]) == 0  # migrated, if it is older
        assert served(settings) == ["theirs"]
        assert main(["maintain"]) == 0  # which restores it, makes a snapshot and a backup of it, and checks both
        assert main(["verify"]) == 0
        assert main(["restore", "latest"]) == 0
        main(["status"])
    assert ran(settings) == []


@pytest.mark.parametrize("what", LET_IN)
@pytest.mark.parametrize("version", [1, len(scripts())])
def test_nothing_of_a_file_in_place_runs_on_its_way_in(what: str, version: int, settings: Settings) -> None:
    settings.database_path.unlink()
    hostile(settings.database_path, LET_IN[what], version)
    with little_memory():
        assert served(settings) == ["theirs"]
    assert ran(settings) == []


def test_triggers_of_the_table_run_when_it_is_written_as_those_of_operators_do(settings: Settings) -> None:
    """So the tests above would see it."""
    settings.database_path.unlink()
    hostile(settings.database_path, LET_IN["triggers of every kind"])
    with closing(open_at(settings.database_path)) as database:
        write(database, "ours")
    assert ran(settings) == ["BEFORE INSERT", "AFTER INSERT"]


def test_trigger_that_makes_much_of_little_is_stopped(settings: Settings) -> None:
    settings.database_path.unlink()
    hostile(settings.database_path, "CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT zeroblob(400000000); END")
    with closing(open_at(settings.database_path)) as database:
        with pytest.raises(WriteRefused, match="too big"):
            write(database, "ours")
        assert names(database) == ["theirs"]


def test_what_a_shell_makes_of_the_live_file_may_not_reach_beyond_it_either(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    script, said = REFUSED["a trigger that loads code"]
    with closing(open_at(settings.database_path)) as database:
        with closing(apsw.Connection(str(settings.database_path))) as shell:
            shell.set_busy_timeout(5000)
            shell.execute(script)
        write(database, "ours")
        assert names(database) == ["ours"]
    assert said in caplog.text


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT load_extension('/tmp/theirs.so')",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE items (a)' WHERE name = 'items'",
        "PRAGMA writable_schema = 1",
    ],
)
def test_no_use_case_reaches_beyond_the_database(settings: Settings, statement: str) -> None:
    with closing(open_at(settings.database_path)) as database, pytest.raises(Exception, match=r"not auth|not be mod"):
        asyncio.run(database.write(lambda db: db.execute_sql(statement)))


def test_module_that_defends_is_the_only_one_that_opens_files() -> None:
    root = Path(__file__).parents[2]
    opening = {
        str(path.relative_to(root)): path.read_text().count("apsw.Connection(")
        for folder in ("core", "handler", "infra")
        for path in (root / folder).rglob("*.py")
    }
    assert {path: count for path, count in opening.items() if count} == {
        "core/migrations/__init__.py": 1,  # in memory, of our own scripts
        "infra/commitlog/at_rest/in_place.py": 1,  # a new file
        "infra/commitlog/defences.py": 1,
    }


def test_whoever_opens_a_file_through_peewee_defends_it() -> None:
    root = Path(__file__).parents[2]
    modules = [path for folder in ("core", "handler", "infra") for path in (root / folder).rglob("*.py")]
    opening = [path for path in modules if "APSWDatabase(" in path.read_text()]
    assert opening
    assert [str(path.relative_to(root)) for path in opening if "defend(" not in path.read_text()] == []
