"""`python -m infra sql`: statements of operators as commits of the log."""

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import peewee
import pytest

from core import items
from core.errors import StatementRefused, StoreUnavailable, StoreUnreachable
from core.schemas import ItemPatch, ItemQuery, NewItem
from infra.__main__ import main
from infra.clock import Clock
from infra.commitlog import ltx, open_log
from infra.operators.sql import parts_of
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return str(request.getfixturevalue("s3")).replace("backups", "log")
    return (tmp_path / "log").as_uri()


@pytest.fixture
def file_url(tmp_path: Path) -> str:
    return (tmp_path / "log").as_uri()


def served(path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> SqliteDatabase:
    """Another instance that serves the log, with the items a and b in it."""
    monkeypatch.setenv("REPLICA_URL", url)
    database = open_at(path, REPLICA_URL=url, READ_FRESHNESS_SECONDS="0")
    for name in "ab":
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name=name))))
    return database


@pytest.fixture
def server(tmp_path: Path, file_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqliteDatabase]:
    with closing(served(tmp_path / "data" / "app.db", file_url, monkeypatch)) as database:
        yield database


def quantities(database: SqliteDatabase) -> list[int]:
    found = asyncio.run(database.read(partial(items.list_items, query=ItemQuery())))
    return [item.quantity for item in found.items]


def head(url: str) -> int:
    return max(item.max_txid for item in open_log(url, Clock()).objects.everything())


def test_server_that_runs_takes_the_commit_up_and_it_can_be_undone(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(served(tmp_path / "data" / "app.db", url, monkeypatch)) as server:
        before = server.txid
        assert main(["sql", "UPDATE items SET quantity = 7", "UPDATE items SET quantity = 8 WHERE name = 'b'"]) == 0
        assert capsys.readouterr().out == (
            f"commit {before + 1:016x} (3 rows changed)\n"
            f"to undo it, and all that came after it: python -m infra restore --txid {before:016x}\n"
        )
        assert quantities(server) == [7, 8]
        assert head(url) == before + 1
        assert main(["restore", "--txid", f"{before:x}"]) == 0
        assert quantities(server) == [0, 0]


def test_select_prints_the_newest_rows_and_commits_nothing(
    server: SqliteDatabase, file_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = head(file_url)
    assert main(["sql", "SELECT name, description, 1.5, x'41' FROM items; SELECT 'x;y'"]) == 0
    assert capsys.readouterr().out == "a||1.5|A\nb||1.5|A\nx;y\n"
    assert head(file_url) == before


def test_json_has_rows_and_commits(server: SqliteDatabase, capsys: pytest.CaptureFixture[str]) -> None:
    before = server.txid
    assert main(["sql", "--json", "SELECT name, x'41' AS blob FROM items; UPDATE items SET quantity = 1"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "answers": [[{"name": "a", "blob": "41"}, {"name": "b", "blob": "41"}]],
        "commits": [
            {"txid": f"{before + 1:016x}", "rows_changed": 2, "undo": f"restore --txid {before:016x}"},
        ],
    }


@pytest.mark.parametrize("arguments", [[], ["-"]])
def test_script_comes_from_standard_input(
    server: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    script = "-- a comment; no statement\nUPDATE items SET quantity = 3; CREATE INDEX mine ON items (name);\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(script))
    before = server.txid
    assert main(["sql", *arguments]) == 0
    assert quantities(server) == [3, 3]
    assert server.txid == before + 1


def test_what_sqlite_allows_only_outside_is_a_commit_of_its_own(
    server: SqliteDatabase, file_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = head(file_url)
    assert main(["sql", "REINDEX; UPDATE items SET quantity = 3; VACUUM; ANALYZE"]) == 0
    printed = capsys.readouterr()
    assert [line.split()[1] for line in printed.out.splitlines() if line.startswith("commit")] == [
        f"{before + number:016x}" for number in (1, 2, 3)
    ]
    assert printed.err == "VACUUM needs a commit of its own: this script is 3, each for itself\n"
    assert quantities(server) == [3, 3]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("UPDATE items SET quantity = 5; UPDATE items SET quantity = -1", "CHECK constraint failed"),
        ("UPDATE items SET quantity = 5; SELEC", 'SELEC: near "SELEC": syntax error'),
        ("UPDATE items SET quantity = 5; INSERT OR ROLLBACK INTO items (id, name) VALUES (1, 'x')", "failed"),
        ("UPDATE items SET quantity = 5; SELECT 'open", "unrecognized token"),
        ("UPDATE items SET quantity = 5; CREATE TEMP TABLE mine (v)", "would not be stored"),
        ("UPDATE items SET quantity = 5; DROP TABLE items", "in table items: created_at, description, id, name"),
        (
            "UPDATE items SET quantity = 5; ALTER TABLE items RENAME COLUMN quantity TO amount",
            "in table items: quantity",
        ),
        ("SELECT CAST(x'4cf6' AS TEXT)", "a text in the answer is not UTF-8"),
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN INSERT INTO audit VALUES (1); END", "no such table: main.audit"),
        ("UPDATE items SET quantity = 5; PRAGMA user_version = 99", "only a migration sets it"),
        ("UPDATE items SET quantity = 5; PRAGMA main.user_version(99)", "only a migration sets it"),
        ("UPDATE items SET quantity = 5; PRAGMA journal_mode = delete", "is refused"),
        ("UPDATE items SET quantity = 5; PRAGMA wal_checkpoint", "is refused"),
        ("BEGIN; UPDATE items SET quantity = 5; COMMIT", "BEGIN; is refused: a script is one transaction by itself"),
        ("UPDATE items SET quantity = 5; /* so */ END", "is refused"),
        ("SAVEPOINT s; UPDATE items SET quantity = 5; RELEASE s", "is refused"),
        ("ATTACH 'other.db' AS other; UPDATE items SET quantity = 5", "is refused"),
        ("VACUUM INTO 'copy.db'", "restore -o FILE"),
        (".tables", "syntax error"),
    ],
)
def test_what_fails_or_is_refused_stores_nothing(
    server: SqliteDatabase, file_url: str, capsys: pytest.CaptureFixture[str], script: str, message: str
) -> None:
    before = head(file_url)
    assert main(["sql", script]) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.startswith("error: ")
    assert printed.out == ""
    assert quantities(server) == [0, 0]
    assert head(file_url) == before


def test_failure_behind_a_commit_leaves_that_and_names_it(
    server: SqliteDatabase, file_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = head(file_url)
    assert main(["sql", "UPDATE items SET quantity = 5; VACUUM; SELEC"]) == 1
    assert f"commit {before + 2:016x} (0 rows changed)" in capsys.readouterr().out
    assert quantities(server) == [5, 5]


def test_change_of_nothing_is_no_commit(
    server: SqliteDatabase, file_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = head(file_url)
    assert main(["sql", "UPDATE items SET quantity = 5 WHERE name = 'c'"]) == 0
    assert capsys.readouterr().out == "nothing was changed, so there is no commit\n"
    assert head(file_url) == before


def test_commit_of_another_instance_in_between_runs_it_again_on_the_new_state(
    server: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = ObjectStore.create
    lost: list[str] = []

    def be_faster(db: peewee.Database) -> None:
        items.patch_item(db, 1, ItemPatch(quantity=10))

    def race(store: ObjectStore, name: str, body: bytes, *rest: object) -> None:
        if name.startswith("ltx/0/") and not lost:
            lost.append(name)
            asyncio.run(server.write(be_faster))
        create(store, name, body, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(ObjectStore, "create", race)
    before = server.txid
    assert main(["sql", "UPDATE items SET quantity = quantity + 1; SELECT quantity FROM items"]) == 0
    assert capsys.readouterr().out.startswith(f"11\n1\ncommit {before + 2:016x} (2 rows changed)\n")
    assert quantities(server) == [11, 1]


def test_unknown_outcome_names_the_number_and_is_not_run_again(
    server: SqliteDatabase, file_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []
    create = ObjectStore.create

    def hang(store: ObjectStore, name: str, body: bytes, *rest: Any) -> None:
        if name.startswith("create-if-absent"):
            return create(store, name, body, *rest)
        tries.append(ltx.Reader([bytes(body)]))
        raise StoreUnavailable("no reply")

    before = head(file_url)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "create", hang)
        assert main(["sql", "--timeout", "0.2", "UPDATE items SET quantity = 5"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"it is not known whether TXID {before + 1:016x} is this commit (" in printed.err
    assert len({tuple(attempt.pages()) for attempt in tries}) == 1  # the same commit, if in new bytes each time
    assert quantities(server) == [0, 0]


def test_store_that_is_away_stores_nothing_and_says_so(
    server: SqliteDatabase, file_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*arguments: object) -> None:
        raise StoreUnreachable("away")

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStore, "create", refuse)
        assert main(["sql", "--timeout", "0.2", "UPDATE items SET quantity = 5"]) == 1
    assert "Nothing was stored: away" in capsys.readouterr().err
    assert quantities(server) == [0, 0]


def test_log_without_a_database_stays_empty(
    file_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REPLICA_URL", file_url)
    assert main(["sql", "SELECT 1"]) == 1
    assert "is empty: there is no database yet" in capsys.readouterr().err
    assert open_log(file_url, Clock()).objects.everything() == []


def test_wrong_setting_is_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLICA_URL", "ftp://nowhere/log")
    assert main(["sql", "SELECT 1"]) == 2


def test_semicolons_in_strings_comments_and_triggers_end_no_statement() -> None:
    trigger = "CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT 1; SELECT 2; END;"
    statements = ["SELECT 'a;b';", " SELECT /* ; */ 1;", f"\n{trigger}", " SELECT 3 -- ; and so on"]
    assert [part.statements for part in parts_of("".join(statements))] == [tuple(statements)]
    assert parts_of(" ;; -- nothing\n /* at all */") == []


def test_line_ends_and_comments_change_nothing() -> None:
    (part,) = parts_of(
        "PRAGMA user_version;\r\nPRAGMA user_version -- what; 5\r\n;\r\n PRAGMA/**/integrity_check(1) ;\r\n"
    )
    assert len(part.statements) == 3
    assert parts_of("VACUUM -- all of it\r\n;\r\n")[0].alone


@pytest.mark.parametrize("script", ["SELECT '\ud800'", "\ud800;", "SELECT 1;\0 SELECT 2"])
def test_script_that_is_no_text_is_refused(script: str) -> None:
    with pytest.raises(StatementRefused, match=r"the script (is not UTF-8|has a NUL character)"):
        parts_of(script)


@pytest.mark.usefixtures("server")
def test_standard_input_that_is_no_text_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"SELECT '\xff'"), "utf-8"))
    assert main(["sql"]) == 1
    assert capsys.readouterr().err == "error: the script is not UTF-8\n"


def test_refused_statement_is_shortened_in_the_message() -> None:
    with pytest.raises(StatementRefused, match=r"BEGIN x{70,}\.\.\. is refused"):
        parts_of("BEGIN " + "x" * 200)
