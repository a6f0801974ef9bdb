"""`python -m infra keys`: keys of callers, made and revoked beside the instances that serve."""

import asyncio
import json
import os
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from core import api_keys
from core.errors import KeyRefused
from core.stored import now
from infra.__main__ import main
from infra.operators import keys, restore
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from tests.conftest import open_at, write

pytestmark = pytest.mark.usefixtures("served_database")
Output = pytest.CaptureFixture[str]


def create(output: Output, *arguments: str) -> str:
    output.readouterr()
    assert main(["keys", "create", "laptop", *(arguments or ("--scope", "read"))]) == 0
    return output.readouterr().out.strip()


def listed(output: Output) -> dict[str, dict[str, Any]]:
    output.readouterr()
    assert main(["keys", "list", "--json"]) == 0
    return {key["id"]: key for key in json.loads(output.readouterr().out)}


def id_of(key: str) -> str:
    return key.split("_")[1]


def why_refused(database: SqliteDatabase, key: str) -> str:
    """Empty when the key lets its holder in."""
    found = api_keys.parse(key)
    assert found
    try:
        asyncio.run(database.read(partial(api_keys.holder, key_id=found[0], secret=found[1], moment=now())))
    except KeyRefused as error:
        return error.reason
    return ""


def test_keys_are_made_and_revoked_beside_a_server_that_runs(settings: Settings, capsys: Output) -> None:
    with closing(open_at(settings.database_path, READ_FRESHNESS_SECONDS="0")) as database:
        write(database, "before")
        key = create(capsys)
        assert why_refused(database, key) == ""
        write(database, "between")
        assert main(["keys", "revoke", id_of(key)]) == 0
        assert f"key {id_of(key)} is revoked" in capsys.readouterr().out
        assert why_refused(database, key) == "revoked"
        write(database, "after")
    assert listed(capsys)[id_of(key)]["state"] == "revoked"


def test_secret_is_printed_once_to_stdout_and_nothing_else_with_it(settings: Settings) -> None:
    command = [sys.executable, "-m", "infra", "keys"]
    create = [*command, "create", "laptop", "--scope", "read"]
    done = subprocess.run(create, capture_output=True, text=True, check=True, env=os.environ)
    assert api_keys.parse(done.stdout.removesuffix("\n"))
    secret = done.stdout.strip().split("_")[2]
    assert secret not in done.stderr
    assert f"keys revoke {id_of(done.stdout)}" in done.stderr
    lists = subprocess.run([*command, "list"], capture_output=True, text=True, check=True)
    assert id_of(done.stdout) in lists.stdout
    assert secret not in lists.stdout
    assert [
        path
        for path in settings.database_path.parent.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ] == []


def test_list_shows_whose_what_for_and_until_when(capsys: Output) -> None:
    day = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
    key = create(capsys, "--scope", "ops", "--scope", "read", "--expires", "30d")
    assert listed(capsys)[id_of(key)] | {"created_at": ""} == {
        "id": id_of(key),
        "name": "laptop",
        "scopes": "read ops",
        "state": "valid",
        "created_at": "",
        "expires_at": listed(capsys)[id_of(key)]["expires_at"],
        "revoked_at": None,
        "last_used_on": None,
    }
    assert main(["keys", "list"]) == 0
    line, total = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{id_of(key)}  valid    read ops ")
    assert f"expires {day}T" in line
    assert line.endswith("never used: laptop")
    assert total.startswith("1 keys at ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "x", "--scope", "read", "--expires", "2020-01-01T00:00:00Z"], "has passed; it is"),
        (["create", "x", "--scope", "read", "--expires", "2030-01-01T00:00:00"], "is no time; write it as"),
        (["create", "x", "--scope", "read", "--expires", "0d"], "is no time; write it as"),
        (["create", " ", "--scope", "read"], "is no name for a key"),
        (["create", "a\nb", "--scope", "read"], "is no name for a key"),
        (["create", "x" * 101, "--scope", "read"], "is no name for a key"),
    ],
)
def test_what_is_wrong_with_a_new_key_is_said(arguments: list[str], message: str, capsys: Output) -> None:
    assert main(["keys", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert listed(capsys) == {}


@pytest.mark.parametrize("arguments", [["create", "x"], ["create", "x", "--scope", "all"], []])
def test_scope_must_be_said(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", *arguments])
    assert ended.value.code == 2


def test_unknown_key_cannot_be_revoked(capsys: Output) -> None:
    assert main(["keys", "revoke", "zzzzzzzz"]) == 1
    assert "There is no key zzzzzzzz." in capsys.readouterr().err


def test_log_of_an_older_release_has_no_keys(settings: Settings, capsys: Output) -> None:
    with closing(open_at(settings.database_path)) as database:
        asyncio.run(
            database.write(
                lambda db: [
                    db.execute_sql(statement)
                    for statement in (
                        "DROP TABLE api_keys",
                        "DROP TABLE idempotency_keys",
                        "PRAGMA user_version = 2",
                    )
                ]
            )
        )
    assert main(["keys", "list"]) == 1
    assert "is of an older release, without keys: start this release's service once" in capsys.readouterr().err


# Time travel


def test_restore_brings_no_revoked_key_back_and_takes_no_new_one_away(settings: Settings, capsys: Output) -> None:
    revoked, kept = create(capsys), create(capsys)
    with closing(open_at(settings.database_path)) as database:
        write(database, "old")
        old = database.txid
    assert main(["backup"]) == 0
    main(["keys", "revoke", id_of(revoked)])
    new = create(capsys)
    moment = datetime.now(UTC).isoformat()
    with closing(open_at(settings.database_path)) as database:
        write(database, "new")
    found = listed(capsys)
    for state in (["--txid", f"{old:x}"], ["latest"], ["--at", moment]):
        assert main(["restore", *state]) == 0
        with closing(open_at(settings.database_path, READ_FRESHNESS_SECONDS="0")) as database:
            assert [why_refused(database, key) for key in (revoked, kept, new)] == ["revoked", "", ""]
        assert listed(capsys) == found


def test_restored_schema_runs_nothing_while_the_keys_are_kept(settings: Settings, capsys: Output) -> None:
    revoked = create(capsys)
    with closing(open_at(settings.database_path)) as database:
        again = "INSERT INTO api_keys SELECT old.id || 'x', 'x', old.secret_sha256, 'read', '', NULL, NULL, NULL"
        spoil = f"CREATE TRIGGER no AFTER DELETE ON api_keys BEGIN {again}; END"
        asyncio.run(database.write(lambda db: db.execute_sql(spoil)))
        spoilt = database.txid
        asyncio.run(database.write(lambda db: db.execute_sql("DROP TRIGGER no")))
    main(["keys", "revoke", id_of(revoked)])
    assert main(["restore", "--txid", f"{spoilt:x}"]) == 0
    assert list(listed(capsys)) == [id_of(revoked)]


def test_keys_that_are_revoked_while_a_restore_is_under_way_stay_so(
    settings: Settings, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit comes too late, and is made again on what there is by then."""
    key = create(capsys)
    with closing(open_at(settings.database_path)) as database:
        write(database, "old")
        old = database.txid
        write(database, "new")
    keep, kept = keys.keep_callers, []

    def keep_then_revoke(database: Path, newest: Path) -> None:
        keep(database, newest)
        kept.append(newest)
        if len(kept) == 1:
            main(["keys", "revoke", id_of(key)])

    monkeypatch.setattr(restore, "keep_callers", keep_then_revoke)
    assert main(["restore", "--txid", f"{old:x}"]) == 0
    assert len(kept) == 2
    assert listed(capsys)[id_of(key)]["state"] == "revoked"


def test_log_without_a_table_of_keys_lets_nobody_in_who_was_restored(
    settings: Settings, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    create(capsys)
    assert main(["backup"]) == 0
    monkeypatch.setenv("BACKUP_URL", settings.backup_url)
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "other").as_uri())
    with closing(open_at(tmp_path / "x" / "app.db", REPLICA_URL=(tmp_path / "other").as_uri())) as database:
        drops = ("DROP TABLE api_keys", "DROP TABLE idempotency_keys", "PRAGMA user_version = 2")
        asyncio.run(database.write(lambda db: [db.execute_sql(statement) for statement in drops]))
    assert main(["restore", "latest"]) == 0
    assert listed(capsys) == {}


def test_empty_log_takes_the_keys_of_what_is_restored_and_that_is_said(
    settings: Settings, capsys: Output, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = create(capsys)
    assert main(["backup"]) == 0
    monkeypatch.setenv("BACKUP_URL", settings.backup_url)
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "new").as_uri())
    assert main(["restore", "latest"]) == 0
    assert "warning: 1 of its keys are as they were then, not revoked: the log was empty" in capsys.readouterr().err
    assert listed(capsys)[id_of(key)]["state"] == "valid"


def test_file_has_the_keys_of_its_own_time(settings: Settings, capsys: Output, tmp_path: Path) -> None:
    key = create(capsys)
    main(["keys", "revoke", id_of(key)])
    with closing(open_at(settings.database_path)) as database:
        then = database.txid - 1
    assert main(["restore", "-o", str(tmp_path / "state.db"), "--txid", f"{then:x}"]) == 0
    assert "warning: 1 of its keys are as they were then, not revoked: whoever puts this" in capsys.readouterr().err
    with closing(apsw.Connection(str(tmp_path / "state.db"))) as connection:
        assert connection.execute("SELECT id, revoked_at FROM api_keys").fetchall() == [(id_of(key), None)]
