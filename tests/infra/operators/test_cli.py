import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import apsw
import pytest

from core import items
from core.migrations import scripts
from core.schemas import ItemQuery
from infra.__main__ import main
from infra.backups.backups import open_backups
from infra.commitlog import START
from infra.maintenance.report import Report, write_report
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectStore
from tests.conftest import open_at, write

pytestmark = pytest.mark.usefixtures("served_database", "quick_machine")


def names(database: SqliteDatabase) -> list[str]:
    found = asyncio.run(database.read(partial(items.list_items, query=ItemQuery())))
    return [item.name for item in found.items]


def test_backup_list_verify_restore_tell_what_they_did(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    with closing(open_at(settings.database_path)) as database:
        write(database, "kept")
    assert main(["backup", "--label", "pre-deploy"]) == 0
    assert "-pre-deploy.db.gz made: 1 items" in capsys.readouterr().out
    assert main(["backups"]) == 0
    assert f"1 backups at {settings.backup_url}" in capsys.readouterr().out
    assert main(["verify", "latest"]) == 0
    assert "is sound: 1 items" in capsys.readouterr().out
    with closing(open_at(settings.database_path)) as database:
        write(database, "lost")
    assert main(["restore", "latest"]) == 0
    out = capsys.readouterr().out
    assert f"TXID {5:016x} of {settings.replica_url} is the state of app-" in out
    assert "-pre-deploy.db.gz (1 items" in out
    assert out.endswith(f"); to undo it: python -m infra restore --txid {4:016x}\n")


def test_backup_comes_back_by_its_name_though_there_is_a_newer_one(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    for name in ("first", "second"):
        with closing(open_at(settings.database_path)) as database:
            write(database, name)
        main(["backup", "--label", name])
    capsys.readouterr()
    main(["backups", "--json"])
    older = json.loads(capsys.readouterr().out)[0]["name"]
    assert main(["restore", older]) == 0
    assert f"is the state of {older} (1 items" in capsys.readouterr().out
    with closing(open_at(settings.database_path)) as database:
        assert names(database) == ["first"]


def test_restored_backup_of_an_older_release_is_served_by_a_server_that_runs(settings: Settings) -> None:
    image = settings.database_path.with_name("older.db")
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute(scripts()[0] + "PRAGMA user_version = 1")
    older = open_backups(settings).create(image, START, "older").name
    with closing(open_at(settings.database_path, READ_FRESHNESS_SECONDS="0")) as database:
        write(database, "before")
        assert main(["restore", older]) == 0
        assert names(database) == []
        write(database, "after")
        assert names(database) == ["after"]


def test_json_output_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["backup"], ["backups"], ["verify"], ["maintain"], ["status"], ["restore", "latest"]):
        assert main([*arguments, "--json"]) == (4 if arguments == ["status"] else 0)  # the service is stopped
        out, err = capsys.readouterr()
        json.loads(out)
        assert err == ""


def test_progress_is_plain_lines_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    main(["backup"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["restore", "compress", "download"]


def test_progress_is_a_bar_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["backup"])
    assert "compress: 100%" in capsys.readouterr().err


def test_failures_are_one_line_on_stderr_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert main(["restore", "latest"]) == 1
    assert capsys.readouterr().err == f"error: There is no complete backup at {settings.backup_url}.\n"


def test_backup_is_of_the_newest_commit_whether_or_not_a_server_runs(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    with closing(open_at(settings.database_path)) as database:
        write(database, "x")
        assert main(["backup", "--json"]) == 0
        manifest = json.loads(capsys.readouterr().out)
        assert (manifest["rows"]["items"], manifest["txid"]) == (1, f"{database.txid:016x}")
    assert main(["backup", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["txid"] == manifest["txid"]


@pytest.mark.parametrize("command", ["backup", "restore", "log", "verify", "maintain"])
def test_without_a_log_there_is_nothing_to_look_after(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "f")  # elsewhere there always is one
    monkeypatch.setenv("BACKUP_URL", s3)
    assert main([command, *(["latest"] if command == "restore" else [])]) == 2
    assert capsys.readouterr().err == "error: REPLICA_URL is not set: there is no commit log\n"


def test_wrong_settings_are_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_URL", "ftp://x")
    assert main(["backup"]) == 2
    assert capsys.readouterr().err.startswith("error: BACKUP_URL='ftp://x': ")
    monkeypatch.setenv("BACKUP_URL", "s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "garbage")
    assert main(["backup"]) == 2
    assert capsys.readouterr().err.startswith("error: AWS_ENDPOINT_URL='garbage': ")


def test_status_names_what_needs_attention(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    assert main(["status"]) == 4
    out = capsys.readouterr().out
    assert "there is no backup yet" in out
    assert "maintenance      has never succeeded\nverified         nothing yet\n" in out
    main(["maintain"])
    with closing(open_at(settings.database_path)):
        capsys.readouterr()
        assert main(["status"]) == 0
        out = capsys.readouterr().out
        assert "owner            process" in out
        assert f"maintenance      last succeeded at {datetime.now(UTC):%Y-%m-%d}T" in out
        assert "verified         snapshot 0000000000000002 and app-" in out
        assert re.search(r"\ncold start       \d requests, [\d,]+ bytes\n", out)
    settings.database_path.unlink()
    assert main(["status", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["problems"] == [f"There is no database at {settings.database_path}."]


def test_status_warns_of_an_old_shell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["maintain"])
    shell = tmp_path / "sqlite3"
    shell.write_text("#!/bin/sh\necho 3.46.1\n")
    shell.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    capsys.readouterr()
    main(["status"])
    assert f"\nwarning          {shell} is SQLite 3.46.1, and before 3.51.3 " in capsys.readouterr().out


def test_status_says_when_maintenance_has_long_not_succeeded(
    capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["backup"])
    write_report(ObjectStore(settings.replica_url), Report(last_success=time.time() - 7201))
    with closing(open_at(settings.database_path)):
        assert main(["status"]) == 3
        assert "problem          no maintenance has succeeded within two intervals of 3600 s" in capsys.readouterr().out
        monkeypatch.setenv("MAINTENANCE_INTERVAL_SECONDS", "0")
        assert main(["status"]) == 3, "whoever else does it, does it every hour"
        out = capsys.readouterr().out
        assert "P1 MaintenanceFailing" in out
        assert "problem" not in out, "of nobody's timer"
        write_report(ObjectStore(settings.replica_url), Report(last_success=time.time() - 7100))
        assert main(["status"]) == 0
        write_report(ObjectStore(settings.replica_url), Report())
        assert main(["status"]) == 0, "perhaps nobody wants it"


@pytest.mark.parametrize("name", ["BACKUP_URL", "REPLICA_URL"])
def test_status_names_a_lost_store(
    name: str, capsys: pytest.CaptureFixture[str], s3: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["backup"])
    monkeypatch.setenv(name, "s3://nowhere/x")
    with closing(open_at(settings.database_path)):
        assert main(["status"]) == 1
    out = capsys.readouterr().out
    assert "there is no such bucket" in out
    assert "there is no backup yet" not in out


def test_status_says_that_the_lock_cannot_be_read(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    main(["backup"])
    lock = settings.database_path.with_name("app.db.lock")
    lock.unlink()
    lock.symlink_to(lock)
    assert main(["status"]) == 1
    out = capsys.readouterr().out
    assert f"problem          Cannot read {lock}: Too many levels of symbolic links" in out
    assert "owner            unknown" in out


@pytest.mark.parametrize("linked", [False, True])
def test_cron_script_is_the_same_command(tmp_path: Path, linked: bool) -> None:
    script, python = tmp_path / "project/scripts/maintain.sh", tmp_path / "project/.venv/bin/python"
    for file in (script, python):
        file.parent.mkdir(parents=True)
    shutil.copy(Path(__file__).parents[3] / "scripts/maintain.sh", script)
    python.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
    python.chmod(0o755)
    link = tmp_path / "cron.hourly/items"
    link.parent.mkdir()
    link.symlink_to("../project/scripts/maintain.sh")
    done = subprocess.run([link if linked else script, "--dry-run"], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{tmp_path}/project -m infra maintain --dry-run\n"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make in the image")
def test_make_keeps_backups_beside_the_code_but_not_those_of_another_database(tmp_path: Path) -> None:
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$3:$BACKUP_URL"\n')
    python.chmod(0o755)
    shutil.copy(Path(__file__).parents[3] / "Makefile", tmp_path)
    (tmp_path / "requirements-dev.txt").touch()
    (tmp_path / ".venv/installed").touch()

    def printed(verb: str, **environment: str) -> str:
        command = ["make", "--silent", verb]
        return subprocess.check_output(
            command, cwd=tmp_path, env={"PATH": os.environ["PATH"], **environment}, text=True
        )

    here = (tmp_path / "backups").as_uri()
    shown = {verb: printed(verb) for verb in ("serve", "dev", "maintain", "backup", "restore")}
    assert shown == {"serve": f":{here}\n", "dev": f":{here}\n"} | {
        verb: f"{verb}:{here}\n" for verb in ("maintain", "backup", "restore")
    }
    assert printed("serve", DATABASE_PATH="/elsewhere/app.db") == ":\n"
    assert printed("serve", BACKUP_URL="s3://b/p") == ":s3://b/p\n"
    assert all((tmp_path / name).is_dir() for name in ("backups", "incidents", "logs", "metrics"))


@pytest.mark.parametrize("container", ["", "a1b2c3"])
@pytest.mark.parametrize("code", [0, 1])
def test_backup_script_says_that_it_is_completed_when_it_is(tmp_path: Path, container: str, code: int) -> None:
    """With what stands in for `docker` and for the command of either place."""
    command = (
        '[ "$1" = exec ] && shift 3; [ "$1" = ps ] && echo "$CONTAINER" && exit; shift 2; echo "$0 $*" >&2\n'
        'case $1 in backup) echo "app-20260131-1200.db.gz made: items 3"; exit $CODE;; esac\n'
        'echo "1 backups at s3://b/p"'
    )
    script = tmp_path / "scripts/backup.sh"
    for file in (script, docker := tmp_path / "bin/docker", tmp_path / ".venv/bin/python"):
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{command}\n")
        file.chmod(0o755)
    shutil.copy(Path(__file__).parents[3] / "scripts/backup.sh", script)
    environment = {"PATH": f"{docker.parent}:/usr/bin:/bin", "CONTAINER": container, "CODE": str(code)}
    done = subprocess.run([script, "--label", "x"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == code
    assert done.stdout == ("" if code else "Backup completed: s3://b/p/app-20260131-1200.db.gz\n")
    assert done.stderr.startswith(f"{docker if container else '.venv/bin/python'} ")
    assert "backup --label x" in done.stderr
    if not code:
        (tmp_path / "backups").mkdir()
        (tmp_path / "backups/app-20260131-1200.db.gz").touch()
        done = subprocess.run([script], cwd="/", env=environment, capture_output=True, text=True)
        assert done.stdout == "Backup completed: backups/app-20260131-1200.db.gz\n"


def test_log_is_listed_verified_and_restored_to_a_file(
    capsys: pytest.CaptureFixture[str], settings: Settings, tmp_path: Path
) -> None:
    assert main(["log"]) == 0
    out = capsys.readouterr().out
    assert re.match(r"a start without a file reads it in 5 requests, [\d,]+ bytes\n", out)
    assert "level 0  TXID 0000000000000001-0000000000000002        2 objects" in out
    assert main(["verify"]) == 0
    assert "is sound: 2 objects" in capsys.readouterr().out
    assert main(["restore", "-o", str(tmp_path / "out.db")]) == 0
    assert f"{tmp_path / 'out.db'} is the database of TXID 0000000000000002 of " in capsys.readouterr().out
    assert (tmp_path / "out.db").read_bytes() == settings.database_path.read_bytes()


def test_log_commands_speak_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["log", "--json"]) == 0
    assert [item["min_txid"] for item in json.loads(capsys.readouterr().out)] == [1, 2]
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head"] == 2
    assert main(["restore", "--json", "-o", str(tmp_path / "out.db")]) == 0
    assert json.loads(capsys.readouterr().out)["file"] == str(tmp_path / "out.db")


def test_damaged_log_fails_verification_by_name(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    path = settings.database_path.parent / "replica/ltx/0/0000000000000002-0000000000000002.ltx"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    assert main(["verify"]) == 1
    assert f"problem  file://{path} has the checksum" in capsys.readouterr().out


def test_log_that_was_moved_away_is_said_and_its_place_stays_free(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with closing(open_at(settings.database_path)) as database:
        write(database, "kept")
    log = Path(settings.replica_url.removeprefix("file://"))
    log.rename(tmp_path / "moved")
    for command, code in {"log": 1, "verify": 1, "maintain": 1, "status": 4}.items():  # nobody serves it, besides
        assert main([command]) == code
        assert f"{settings.replica_url}: the directory is not there; put it back" in "".join(capsys.readouterr())
    assert main(["drill"]) == 1
    assert main(["backups"]) == 0
    assert not log.exists()
    assert not Path(settings.backup_url.removeprefix("file://")).exists()
