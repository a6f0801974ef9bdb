"""`python -m infra move`: a log's data into PostgreSQL, while others write."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peewee
import psycopg
import pytest

from core import api_keys, items
from core.api_keys import Scope
from core.errors import NotServed, StoreUnavailable, WritesStopped
from core.idempotency import Answer, Attempt, once
from core.schemas import NewItem
from infra.__main__ import main
from infra.moving import write_stop
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectStore
from tests.infra.moving.conftest import Hook, Side, head, names, write
from tests.infra.postgresql.conftest import Open
from tests.postgresql import PASSWORD, Cluster

AtStep = Callable[[str, Hook], None]
Commit = Callable[[Callable[[peewee.Database], object]], None]

STOPPED = "writes are stopped"


def sql(statement: str) -> None:
    assert main(["sql", statement]) == 0


def test_everything_arrives_and_ids_go_on_behind_the_highest_ever_used(
    server: SqliteDatabase, target: Side, opened: Open
) -> None:
    gone = write(server, "gone")
    asyncio.run(server.write(partial(items.delete_item, item_id=gone)))
    make = partial(api_keys.create, name="x", scopes=frozenset({Scope.READ}), expires_at=None)
    key = asyncio.run(server.write(make))
    attempt = Attempt("caller", "key", b"\0\xff\\")
    answer = Answer(201, {"ETag": '"1"'}, b"\\x{}\n")
    asyncio.run(server.write(partial(once, attempt=attempt, write=lambda db: answer, keep_hours=24)))
    assert main(["move", target.url]) == 0
    assert target.tables() == ["api_keys", "idempotency_keys", "items", "schema_migrations"]
    there = opened(target.url)
    assert names(there) == names(server) == ["a\tb\\c\nd", "ü€😀"]
    assert write(there, "new") == gone + 1
    kept = asyncio.run(there.write(partial(once, attempt=attempt, write=lambda db: answer, keep_hours=24)))
    assert (kept.body, kept.is_repeated) == (answer.body, True)
    _, key_id, secret = key.split("_")
    find = partial(api_keys.holder, key_id=key_id, secret=secret, moment="2026-01-01T00:00:00.000000Z")
    assert asyncio.run(there.read(find)).scopes == {Scope.READ}
    with pytest.raises(WritesStopped, match="was moved to 127"):
        write(server, "x")


def test_what_is_written_meanwhile_arrives_and_nothing_that_is_written_later(
    server: SqliteDatabase, target: Side, at_step: AtStep
) -> None:
    def change() -> None:
        write(server, "meanwhile")
        asyncio.run(server.write(partial(items.delete_item, item_id=1)))
        sql("UPDATE items SET quantity = 7 WHERE id = 2")

    def refused() -> None:
        with pytest.raises(WritesStopped):
            write(server, "too late")

    at_step("is being copied", change)
    at_step("are copied", lambda: write(server, "in the second round"))
    at_step(STOPPED, refused)
    assert main(["move", target.url]) == 0
    found = target.rows("SELECT id, name, quantity FROM items ORDER BY id")
    assert found == [(2, "ü€😀", 7), (3, "meanwhile", 0), (4, "in the second round", 0)]
    assert names(server) == [name for _, name, _ in found]


def test_who_writes_in_spite_of_the_stop_makes_it_one_round_more(
    server: SqliteDatabase, target: Side, at_step: AtStep, commit: Commit
) -> None:
    """As one whose clock is ahead of that time."""

    def write_past_it(db: peewee.Database) -> None:
        stop = write_stop.found_in(db.connection())
        assert stop
        write_stop.lift(db)
        items.create_item(db, NewItem(name="past it"))
        write_stop.put(db, stop, ["items"])

    at_step(STOPPED, lambda: commit(write_past_it))
    assert main(["move", target.url]) == 0
    assert [name for (name,) in target.rows("SELECT name FROM items ORDER BY id")] == names(server)
    assert "past it" in names(server)


@pytest.mark.e2e
def test_stop_that_somebody_lifts_is_made_again(
    server: SqliteDatabase, target: Side, at_step: AtStep, commit: Commit
) -> None:
    at_step(STOPPED, lambda: commit(write_stop.lift))
    assert main(["move", target.url]) == 0
    with pytest.raises(WritesStopped):
        write(server, "x")


@pytest.mark.parametrize("step", [pytest.param("is being copied", marks=pytest.mark.e2e), STOPPED])
def test_one_that_is_interrupted_has_changed_nothing_and_is_run_again(
    server: SqliteDatabase, target: Side, at_step: AtStep, opened: Open, step: str
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    at_step(step, interrupt)
    assert main(["move", target.url]) == 130
    write(server, "goes on")
    with pytest.raises(NotServed, match="A move into this database has not come to its end"):
        opened(target.url)
    assert main(["move", target.url]) == 0
    assert [name for (name,) in target.rows("SELECT name FROM items ORDER BY id")] == names(server)


def test_one_that_was_killed_behind_its_last_step_is_ended_by_the_next_run(
    server: SqliteDatabase, target: Side, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("infra.moving.target.Target.release", lambda target: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert main(["move", target.url]) == 130
    assert "unfinished_move" in target.tables()
    assert main(["move", target.url, "--cancel"]) == 2  # it is moved
    for _ in range(2):
        assert main(["move", target.url]) == 0
        assert capsys.readouterr().out == f"it was moved to {target.url.partition('@')[2]} before\n"
        assert target.tables() == ["api_keys", "idempotency_keys", "items", "schema_migrations"]
    with pytest.raises(WritesStopped):
        write(server, "x")


@pytest.mark.e2e
def test_cancel_lets_writes_go_on_and_leaves_the_database_empty(
    server: SqliteDatabase, target: Side, at_step: AtStep, capsys: pytest.CaptureFixture[str], commit: Commit
) -> None:
    def kill() -> None:
        raise KeyboardInterrupt

    at_step(STOPPED, kill)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infra.moving.there.Move._lift", lambda move: None)  # a process that is killed cannot
        assert main(["move", target.url]) == 130
    with pytest.raises(WritesStopped):
        write(server, "x")
    assert main(["move", target.url, "--cancel"]) == 0
    assert "writes are not stopped any more" in capsys.readouterr().out
    assert target.tables() == []
    write(server, "x")
    assert main(["move", target.url, "--cancel"]) == 0
    assert capsys.readouterr().out == "there was nothing to cancel\n"


@pytest.mark.parametrize("is_stored", [True, False])
def test_last_step_that_nobody_confirms_is_settled_by_the_log(
    server: SqliteDatabase, target: Side, at_step: AtStep, monkeypatch: pytest.MonkeyPatch, is_stored: bool
) -> None:
    create = ObjectStore.create
    lost = list[str]()

    def lose_replies(store: ObjectStore, name: str, body: bytes, *rest: Any) -> None:
        if lost or b"was moved to" not in body:
            return create(store, name, body, *rest)
        lost.append(name)
        if is_stored:
            create(store, name, body, *rest)
        raise StoreUnavailable("no reply")

    monkeypatch.setattr(ObjectStore, "create", lose_replies)
    assert main(["move", target.url]) == 0
    assert lost
    assert [name for (name,) in target.rows("SELECT name FROM items ORDER BY id")] == names(server)
    with pytest.raises(WritesStopped, match="was moved to"):
        write(server, "x")


def test_rehearsal_looks_at_all_and_changes_nothing(
    server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str], log_url: str
) -> None:
    before = head(log_url)
    assert main(["move", target.url, "--dry-run"]) == 0
    assert "all of it can be moved" in capsys.readouterr().out
    assert (head(log_url), target.tables()) == (before, [])


# One after the other: what of the second kind is there is looked for when there is nothing of the first
ODD = {
    "values": {
        "UPDATE items SET name = CAST(x'ff' AS TEXT) WHERE id = 1": "items 1: name is no UTF-8",
        "INSERT INTO items (name, created_at, updated_at) VALUES ('a' || char(0), '', '')": "items 3: name has a NUL",
        "INSERT INTO items (name, quantity, created_at, updated_at) VALUES ('a', 9007199254740992, '', '')": (
            "items 4: quantity is 9007199254740992: a whole number of the API is at most 9007199254740991"
        ),
        "PRAGMA ignore_check_constraints = 1": "",
        "UPDATE items SET quantity = x'00' WHERE id = 2": "items 2: quantity is no whole number",
        "INSERT INTO items (id, name, created_at, updated_at) VALUES (9223372036854775807, 'x', '', '')": (
            "items 9223372036854775807: id is 9223372036854775807"
        ),
        "CREATE TABLE notes (a)": "table notes: it has rows",
        "INSERT INTO notes VALUES (1)": "",
        "ALTER TABLE items ADD COLUMN colour TEXT": "column colour of table items: it has values",
        "UPDATE items SET colour = 'red' WHERE id = 1": "",
    },
    "constraints": {
        "PRAGMA ignore_check_constraints = 1": "",
        "UPDATE items SET price_cents = -1 WHERE id = 2": "items 2: the table's own constraints would not let it in",
        "UPDATE sqlite_sequence SET seq = 'x' WHERE name = 'items'": "sqlite_sequence items: seq is text, and no whole",
    },
    "constraints of PostgreSQL's": {
        "INSERT INTO api_keys (id, name, secret_sha256, scopes, created_at, expires_at) "
        "VALUES ('k', 'x', x'', '', '', 'x')": 'api_keys k: new row for relation "api_keys" violates check constraint',
    },
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_rows_are_named_before_anything_is_changed(
    server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str], log_url: str, commit: Commit, kind: str
) -> None:
    def change(db: peewee.Database) -> None:
        for statement in ODD[kind]:
            db.execute_sql(statement)

    commit(change)
    before = head(log_url)
    for arguments in (["--dry-run"], []):
        assert main(["move", target.url, *arguments]) == 2
        said = capsys.readouterr().err
        assert [named for named in ODD[kind].values() if named not in said] == []
        assert (head(log_url), target.tables()) == (before, [])


def test_odd_row_that_comes_at_the_last_moment_ends_the_move(
    server: SqliteDatabase, target: Side, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step("is being copied", lambda: sql("UPDATE items SET name = CAST(x'ff' AS TEXT) WHERE id = 1"))
    assert main(["move", target.url]) == 2
    assert "items 1: name is no UTF-8" in capsys.readouterr().err
    assert target.tables() == []
    write(server, "x")


def test_what_holds_no_rows_is_left_behind_and_named(
    server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str]
) -> None:
    sql("CREATE INDEX mine ON items (name); CREATE TABLE empty (a)")
    assert main(["move", target.url]) == 0
    said = capsys.readouterr().err
    assert all(f"left behind: {what}\n" in said for what in ("index mine", "table empty"))


@pytest.mark.e2e
def test_many_odd_rows_are_counted(server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str]) -> None:
    each = "SELECT CAST(x'ff' AS TEXT), '', '' FROM json_each('[" + ",".join("1" * 30) + "]')"
    sql(f"INSERT INTO items (name, created_at, updated_at) {each}")
    assert main(["move", target.url, "--dry-run"]) == 2
    assert "and 10 more" in capsys.readouterr().err


@pytest.mark.e2e
def test_keys_that_nobody_asks_for_any_more_stay_behind(server: SqliteDatabase, target: Side, commit: Commit) -> None:
    """The same key may have come again since."""
    row = "(hour, caller, key, fingerprint, status, headers, body) VALUES ({}, 'c', 'k', x'', 201, '{{}}', x'')"
    commit(lambda db: db.execute_sql("INSERT INTO idempotency_keys " + row.format(5)))
    attempt = Attempt("c", "k", b"")
    asyncio.run(server.write(partial(once, attempt=attempt, write=lambda db: Answer(201, {}, b""), keep_hours=24)))
    commit(lambda db: db.execute_sql("INSERT OR IGNORE INTO idempotency_keys " + row.format(5)))
    assert main(["move", target.url]) == 0
    assert target.rows("SELECT count(*), min(hour) > 5 FROM idempotency_keys") == [(1, True)]


def test_database_that_is_not_empty_is_refused(
    server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str], log_url: str
) -> None:
    target.rows("CREATE TABLE theirs (a int)")
    before = head(log_url)
    for arguments in ([], ["--dry-run"], ["--cancel"]):
        assert main(["move", target.url, *arguments]) == 2
        assert "is not empty: it has theirs" in capsys.readouterr().err
    assert (target.tables(), head(log_url)) == (["theirs"], before)


@pytest.mark.e2e
def test_what_another_log_has_begun_is_refused(
    server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str]
) -> None:
    target.rows("CREATE TABLE unfinished_move (place int PRIMARY KEY, move text, log text)")
    target.rows("INSERT INTO unfinished_move VALUES (1, 'c0ffee', 'another')")
    for arguments in ([], ["--cancel"]):
        assert main(["move", target.url, *arguments]) == 2
        assert "has the unfinished move of another log" in capsys.readouterr().err


@pytest.mark.e2e
def test_two_at_once_are_one(
    server: SqliteDatabase,
    target: Side,
    at_step: AtStep,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BUSY_TIMEOUT_SECONDS", "0.1")  # for the lock of the first
    others: list[int] = []
    at_step("is being copied", lambda: others.append(main(["move", target.url])))
    at_step("are copied", lambda: others.append(main(["move", target.url, "--cancel"])))
    assert main(["move", target.url]) == 0
    assert others == [1, 1]
    assert "another process is moving something into" in capsys.readouterr().err
    assert [name for (name,) in target.rows("SELECT name FROM items ORDER BY id")] == names(server)


@pytest.mark.e2e
def test_place_that_cannot_be_used_is_said_without_its_password(
    server: SqliteDatabase, postgresql: Cluster, database_name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with postgresql.superuser() as db:
        db.execute("DROP DATABASE IF EXISTS ascii")
        db.execute(
            "CREATE DATABASE ascii OWNER app TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE_PROVIDER libc LOCALE 'C'"
        )
        db.execute("CREATE ROLE reader LOGIN PASSWORD 'reader-secret'")
    wrong = {
        postgresql.url(database_name, password="wrong-secret"): "password authentication failed",
        postgresql.url("nowhere"): 'database "nowhere" does not exist',
        postgresql.url("ascii"): "keeps its text as SQL_ASCII",
        postgresql.url(database_name, user="reader", password="reader-secret"): "may create no table there",
        "postgresql://[": "cannot be read",
        "mysql://there": "begins with postgresql://",
        "": "say which database",
    }
    try:
        for url, said in wrong.items():
            assert main(["move", url]) == 2
            printed = capsys.readouterr()
            assert said in printed.err
            assert "secret" not in printed.err + printed.out
    finally:
        with postgresql.superuser() as db:
            db.execute("DROP DATABASE ascii")
            db.execute("DROP ROLE reader")
    assert PASSWORD not in capsys.readouterr().err


@pytest.mark.e2e
def test_database_that_is_away_is_said_and_nothing_is_changed(
    server: SqliteDatabase, postgresql: Cluster, target: Side, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    at_step(STOPPED, postgresql.kill)
    assert main(["move", target.url]) == 1
    assert "Run it again: nothing is lost" in capsys.readouterr().err
    write(server, "goes on")
    assert main(["move", target.url]) == 1
    postgresql.start()
    assert main(["move", target.url]) == 0
    assert "goes on" in [name for (name,) in target.rows("SELECT name FROM items")]


@pytest.mark.e2e
def test_log_that_is_empty_or_older_is_refused(
    target: Side,
    log_url: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    server: SqliteDatabase,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "none").as_uri())
    assert main(["move", target.url]) == 1
    assert "is empty" in capsys.readouterr().err
    monkeypatch.setenv("REPLICA_URL", log_url)
    sql_version = "PRAGMA user_version = 2"
    from infra.clock import Clock
    from infra.commitlog import open_log
    from infra.operators.sql import private_copy

    (tmp_path / "older").mkdir()
    with private_copy(open_log(log_url, Clock()), Clock(), tmp_path / "older" / "app.db") as replica:
        replica.write(lambda db: db.execute_sql(sql_version), Clock().now() + 10, float("-inf"))
    assert main(["move", target.url]) == 2
    assert "has schema version 2" in capsys.readouterr().err
    assert target.tables() == []


def test_result_for_programs(server: SqliteDatabase, target: Side, capsys: pytest.CaptureFixture[str]) -> None:
    before = server.txid
    assert main(["move", "--json", target.url]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == {"items": 2, "idempotency_keys": 0, "api_keys": 0}
    assert printed["undo"] == f"restore --txid {before:016x}"
    assert printed["stopped_seconds"] > 0
    assert main(printed["undo"].split()) == 0
    write(server, "goes on")


def test_row_that_somebody_else_writes_there_is_found(
    server: SqliteDatabase, target: Side, at_step: AtStep, capsys: pytest.CaptureFixture[str]
) -> None:
    def meddle() -> None:
        with psycopg.connect(target.url, autocommit=True) as db:
            columns = "(id, name, created_at, updated_at) OVERRIDING SYSTEM VALUE"
            db.execute(f"INSERT INTO items {columns} VALUES (99, 'theirs', '', '')")

    at_step("is being copied", meddle)
    assert main(["move", target.url]) == 1
    assert "table items is not the same on both sides" in capsys.readouterr().err
    write(server, "goes on")
