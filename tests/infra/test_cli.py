import asyncio
import json
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from core import items
from core.schemas import ItemQuery, NewItem
from infra.__main__ import main
from infra.settings import Settings
from tests.conftest import open_at


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setenv("DATABASE_PATH", str(settings.database_path))
    open_at(settings.database_path).close()


def test_backup_list_verify_restore_tell_what_they_did(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    assert main(["backup", "--label", "pre-deploy"]) == 0
    assert "-pre-deploy.db.gz made: 0 items; " in capsys.readouterr().out
    assert main(["backups"]) == 0
    assert f"1 backups at {settings.backup_url}" in capsys.readouterr().out
    assert main(["verify", "latest"]) == 0
    assert "is sound: 0 items" in capsys.readouterr().out
    assert main(["restore"]) == 0
    assert f"restored to {settings.database_path}" in capsys.readouterr().out


def test_json_output_is_one_document_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["backup"], ["backups"], ["verify"], ["status"], ["restore"]):
        assert main([*arguments, "--json"]) == 0
        out, err = capsys.readouterr()
        json.loads(out)
        assert err == ""


def test_progress_is_plain_lines_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    main(["backup"])
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["copy", "compress", "download"]


def test_progress_is_a_bar_at_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main(["backup"])
    assert "copy: 100%" in capsys.readouterr().err


def test_failures_are_one_line_on_stderr_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], settings: Settings
) -> None:
    assert main(["restore"]) == 1
    assert capsys.readouterr().err == f"error: There is no complete backup at {settings.backup_url}.\n"
    main(["backup"])
    with closing(open_at(settings.database_path)):
        assert main(["restore"]) == 1
    assert "is in use by process" in capsys.readouterr().err


def test_wrong_settings_are_exit_code_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKUP_URL", "ftp://x")
    assert main(["backup"]) == 2
    assert capsys.readouterr().err.startswith("error: BACKUP_URL='ftp://x': ")
    monkeypatch.setenv("BACKUP_URL", "s3://bucket/x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "garbage")
    assert main(["backup"]) == 2
    assert capsys.readouterr().err.startswith("error: AWS_ENDPOINT_URL='garbage': ")


def test_status_names_what_needs_attention(
    capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["status"]) == 1
    assert "there is no backup yet" in capsys.readouterr().out
    main(["backup"])
    with closing(open_at(settings.database_path)):
        capsys.readouterr()
        assert main(["status"]) == 0
        assert "owner            process" in capsys.readouterr().out
    settings.database_path.unlink()
    assert main(["status", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == [f"There is no database at {settings.database_path}."]


def test_status_names_an_old_backup_and_a_lost_store(
    capsys: pytest.CaptureFixture[str], s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BACKUP_INTERVAL_SECONDS", "1")
    monkeypatch.setenv("BACKUP_URL", "s3://nowhere/x")
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


def test_cron_script_is_the_same_command() -> None:
    script = Path(__file__).parents[2] / "scripts" / "backup.sh"
    assert "python -m infra backup" in script.read_text()
    subprocess.run(["sh", "-n", script], check=True)


def test_log_is_listed_verified_and_restored(
    capsys: pytest.CaptureFixture[str], settings: Settings, tmp_path: Path
) -> None:
    assert main(["log"]) == 0
    out = capsys.readouterr().out
    assert "level 0  TXID 0000000000000001-0000000000000002        2 objects" in out
    assert main(["verify"]) == 0
    assert "is sound: 2 objects" in capsys.readouterr().out
    assert main(["restore", "-o", str(tmp_path / "out.db")]) == 0
    assert "is the database after commit 0000000000000002" in capsys.readouterr().out
    assert (tmp_path / "out.db").read_bytes() == settings.database_path.read_bytes()
    assert main(["restore", "-o", str(tmp_path / "out.db")]) == 2
    assert "exists" in capsys.readouterr().err


def test_log_commands_speak_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["log", "--json"]) == 0
    assert [item["min_txid"] for item in json.loads(capsys.readouterr().out)] == [1, 2]
    assert main(["verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["head"] == 2
    assert main(["restore", "--json", "-o", str(tmp_path / "out.db")]) == 0
    assert json.loads(capsys.readouterr().out)["txid"] == f"{2:016x}"


def test_damaged_log_fails_verification_by_name(capsys: pytest.CaptureFixture[str], settings: Settings) -> None:
    path = settings.database_path.parent / "replica/ltx/0/0000000000000002-0000000000000002.ltx"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    assert main(["verify"]) == 1
    assert f"problem  file://{path} has the checksum" in capsys.readouterr().out


def test_empty_log_restores_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "empty").as_uri())
    assert main(["restore", "-o", str(tmp_path / "out.db")]) == 1
    assert "is empty" in capsys.readouterr().err
    assert not (tmp_path / "out.db").exists()


def test_restored_backup_is_the_next_commit_of_the_log(
    capsys: pytest.CaptureFixture[str], settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    main(["backup"])
    with closing(open_at(settings.database_path)) as database:
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name="after"))))
    # from another place, as for a function's log: nothing here but the two URLs
    monkeypatch.setenv("REPLICA_URL", settings.replica_url)
    monkeypatch.setenv("BACKUP_URL", settings.backup_url)
    monkeypatch.setenv("DATABASE_PATH", str(tmp_path / "elsewhere" / "app.db"))
    assert main(["restore"]) == 0
    with closing(open_at(settings.database_path)) as database:
        assert database.txid == 4
        assert asyncio.run(database.read(partial(items.list_items, query=ItemQuery()))).items == []
