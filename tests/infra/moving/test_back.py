"""`python -m infra move --back`: PostgreSQL's data into a new log, while nobody can write to either."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import psycopg
import pytest

from core import items
from core.errors import WritesStopped
from infra.__main__ import main
from infra.postgresql.database import PostgresqlDatabase
from infra.sqlite.database import SqliteDatabase
from tests.conftest import open_at
from tests.e2e.processes import until
from tests.infra.moving.conftest import Hook, Side, head, names, write
from tests.infra.postgresql.conftest import Open

AtStep = Callable[[str, Hook], None]

STOPPED = "writes are stopped"


@pytest.fixture
def source(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> Side:
    monkeypatch.setenv("DATABASE_URL", migrated_url)
    return Side(migrated_url)


@pytest.fixture
def there(opened: Open, source: Side) -> PostgresqlDatabase:
    """The service on PostgreSQL, with two items; the third id was used."""
    database = opened(source.url)
    for name in ("a\tb\\c\nd", "ü€😀", "gone"):
        write(database, name)
    asyncio.run(database.write(partial(items.delete_item, item_id=3)))
    return database


def served(directory: Path, log_url: str) -> SqliteDatabase:
    return open_at(directory / "new" / "app.db", REPLICA_URL=log_url, READ_FRESHNESS_SECONDS="0")


def test_everything_arrives_and_ids_go_on(
    there: PostgresqlDatabase, log_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["move", "--back"]) == 0
    with closing(served(tmp_path, log_url)) as server:
        assert names(server) == names(there) == ["a\tb\\c\nd", "ü€😀"]
        assert write(server, "new") == 4
    with pytest.raises(WritesStopped, match="was moved to file://"):
        write(there, "x")
    assert main(["move", "--back"]) == 0
    assert capsys.readouterr().out.endswith(f"it was moved to {log_url} before\n")


@pytest.mark.e2e
def test_undo_that_is_printed_lets_writes_go_on(
    there: PostgresqlDatabase, source: Side, log_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["move", "--back"]) == 0
    printed = capsys.readouterr().out
    assert 'psql -c "DROP FUNCTION write_stop() CASCADE"' in printed
    source.rows("DROP FUNCTION write_stop() CASCADE")
    write(there, "x")


def test_writes_are_refused_at_once_and_reads_go_on(there: PostgresqlDatabase, log_url: str, at_step: AtStep) -> None:
    """None waits, or would keep a connection from those that read."""

    def use() -> None:
        assert len(names(there)) == 2
        with pytest.raises(WritesStopped, match="is being moved to"):
            write(there, "x")

    at_step(STOPPED, use)
    assert main(["move", "--back"]) == 0


@pytest.mark.e2e
def test_write_whose_transaction_has_begun_before_is_refused_as_well(
    there: PostgresqlDatabase, source: Side, log_url: str, tmp_path: Path, at_step: AtStep
) -> None:
    outcome: list[psycopg.Error] = []
    begun = threading.Event()

    def insert() -> None:
        with psycopg.connect(source.url) as db:
            db.execute("SET default_transaction_isolation = 'serializable'")
            db.commit()
            db.execute("SELECT count(*) FROM items")
            begun.set()
            try:
                db.execute("INSERT INTO items (name, created_at, updated_at) VALUES ('x', '', '')")
            except psycopg.Error as error:
                outcome.append(error)

    thread = threading.Thread(target=insert)

    def wait() -> None:
        thread.start()
        assert begun.wait(30)

    at_step(STOPPED, wait)
    assert main(["move", "--back"]) == 0
    thread.join()
    assert [error.sqlstate for error in outcome] == ["WS001"]
    with closing(served(tmp_path, log_url)) as server:
        assert len(names(server)) == 2


@pytest.mark.e2e
def test_write_that_is_under_way_is_waited_for(
    there: PostgresqlDatabase, source: Side, log_url: str, tmp_path: Path
) -> None:
    with psycopg.connect(source.url) as db:
        db.execute("INSERT INTO items (name, created_at, updated_at) VALUES ('under way', '', '')")
        timer = threading.Timer(1.0, db.commit)
        timer.start()
        assert main(["move", "--back"]) == 0
        timer.join()
    with closing(served(tmp_path, log_url)) as server:
        assert "under way" in names(server)


@pytest.mark.parametrize("step", [STOPPED, "has all of it"])
def test_one_that_is_stopped_before_its_last_step_has_changed_nothing_and_is_run_again(
    there: PostgresqlDatabase, source: Side, log_url: str, tmp_path: Path, at_step: AtStep, step: str
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    at_step(step, stop)
    assert main(["move", "--back"]) == 130
    write(there, "goes on")
    if step == "has all of it":  # a state that is not yet the one to write to
        with (
            closing(served(tmp_path, log_url)) as server,
            pytest.raises(WritesStopped, match="is being moved here from"),
        ):
            write(server, "x")
    assert main(["move", "--back"]) == 0
    with closing(served(tmp_path, log_url)) as server:
        assert names(server) == names(there)
        assert "goes on" in names(server)
        write(server, "x")


def test_one_that_is_stopped_behind_its_last_step_is_ended_by_the_next_run(
    there: PostgresqlDatabase, log_url: str, tmp_path: Path, at_step: AtStep
) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    at_step("takes no writes any more", stop)
    assert main(["move", "--back"]) == 130
    with pytest.raises(WritesStopped):
        write(there, "x")
    with closing(served(tmp_path, log_url)) as server:
        with pytest.raises(WritesStopped):
            write(server, "x")
        assert main(["move", "--back"]) == 0
        write(server, "x")


@pytest.mark.e2e
def test_two_at_once_are_one(
    there: PostgresqlDatabase,
    source: Side,
    log_url: str,
    tmp_path: Path,
    at_step: AtStep,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The second has looked before the first has the lock, and gets it when that is done."""
    codes: list[int] = []
    second = threading.Thread(target=lambda: codes.append(main(["move", "--back"])))

    def begin_second() -> None:
        second.start()
        until(
            lambda: source.rows("SELECT count(*) FROM pg_locks WHERE NOT granted") == [(1,)]
        )  # it waits for the first

    at_step(STOPPED, begin_second)
    assert main(["move", "--back"]) == 0
    with closing(served(tmp_path, log_url)) as server:
        write(server, "new")
        second.join()
        assert codes == [1]
        write(server, "newer")
        assert names(server)[-2:] == ["new", "newer"]


def test_writes_go_on_as_soon_as_whoever_moves_is_gone(
    there: PostgresqlDatabase, source: Side, log_url: str, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut() -> None:
        source.rows("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        write(there, "goes on")

    at_step(STOPPED, cut)
    assert main(["move", "--back"]) == 1
    assert "Run it again" in capsys.readouterr().err
    write(there, "and on")


def test_rehearsal_changes_nothing(
    there: PostgresqlDatabase, log_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["move", "--back", "--dry-run"]) == 0
    assert "all of it can be moved" in capsys.readouterr().out
    assert not (tmp_path / "log").exists()
    write(there, "goes on")


def test_log_that_has_something_is_refused(
    there: PostgresqlDatabase, server: SqliteDatabase, log_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = head(log_url)
    for arguments in ([], ["--dry-run"]):
        assert main(["move", "--back", *arguments]) == 2
        assert "has a log already: set REPLICA_URL to a place that has nothing" in capsys.readouterr().err
    assert head(log_url) == before
    write(there, "goes on")


def test_log_that_somebody_begins_meanwhile_is_left_to_them(
    there: PostgresqlDatabase, log_url: str, tmp_path: Path, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(STOPPED, lambda: served(tmp_path, log_url).close())
    assert main(["move", "--back"]) == 2
    assert "has been begun by somebody else" in capsys.readouterr().err
    write(there, "goes on")
    with closing(served(tmp_path, log_url)) as server:
        assert names(server) == []
        write(server, "x")


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE TABLE notes AS SELECT 1 AS a", "table notes: it has rows"),
        ("ALTER TABLE items ADD COLUMN colour text DEFAULT 'red'", "column colour of table items: it has values"),
        ("DELETE FROM schema_migrations WHERE number > 2", "has schema version 2"),
        ("DROP TABLE api_keys", "lacks what schema version 3 has in table api_keys"),
    ],
)
def test_database_that_has_more_or_less_is_refused(
    there: PostgresqlDatabase, source: Side, log_url: str, tmp_path: Path, statement: str, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    source.rows(statement)
    assert main(["move", "--back"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


@pytest.mark.e2e
def test_row_that_the_logs_constraints_would_not_let_in_ends_it(
    there: PostgresqlDatabase, source: Side, log_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source.rows("ALTER TABLE items DROP CONSTRAINT items_price_cents_check")
    source.rows("UPDATE items SET price_cents = -1 WHERE id = 2")
    source.rows("UPDATE items SET quantity = 9007199254740992 WHERE id = 1")
    assert main(["move", "--back"]) == 2
    assert "items 2: CHECK constraint failed" in capsys.readouterr().err
    source.rows("UPDATE items SET price_cents = 1 WHERE id = 2")
    assert main(["move", "--back"]) == 2
    assert "items 1: quantity is 9007199254740992" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
    write(there, "goes on")


@pytest.mark.e2e
def test_there_and_back_and_there_again(
    server: SqliteDatabase, target: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opened: Open,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main(["move", target.url]) == 0
    there = opened(target.url)
    assert write(there, "there") == 3
    new = (tmp_path / "new-log").as_uri()
    monkeypatch.setenv("REPLICA_URL", new)
    assert main(["move", "--back", target.url]) == 0
    with closing(served(tmp_path, new)) as back:
        assert write(back, "back") == 4
        assert main(["move", target.url]) == 2  # it has what was moved back: nobody's work is overwritten
        assert "is not empty" in capsys.readouterr().err
        target.rows("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        assert main(["move", target.url]) == 0
        again = opened(target.url)
        assert write(again, "again") == 5
        assert names(again) == ["a\tb\\c\nd", "ü€😀", "there", "back", "again"]
