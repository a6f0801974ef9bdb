import gzip
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from core.errors import (
    BackupDamaged,
    BackupError,
    BackupMissing,
    DatabaseInUse,
    DatabaseLocked,
    DatabaseUnavailable,
    InvalidInput,
    SchemaTooNew,
    StoreUnavailable,
)
from infra import backups as backups_module
from infra.backups import LATEST, Backups
from infra.object_store import ObjectStore
from infra.retention import Retention
from infra.snapshot import Contents
from tests.conftest import open_at

KEEP = Retention(hourly=timedelta(days=7), daily=timedelta(days=30))


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return ObjectStore(request.getfixturevalue("s3"))
    return ObjectStore((tmp_path / "backups").as_uri())


@pytest.fixture
def backups(store: ObjectStore) -> Backups:
    return Backups(store, KEEP)


@pytest.fixture
def local(tmp_path: Path) -> Backups:
    return Backups(ObjectStore((tmp_path / "backups").as_uri()), KEEP)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_database(tmp_path / "data" / "app.db", 3)


def make_database(path: Path, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, name TEXT)")
    set_rows(path, rows)
    return path


def set_rows(path: Path, rows: int) -> None:
    with closing(apsw.Connection(str(path))) as connection, connection:
        connection.execute("DELETE FROM items")
        connection.executemany("INSERT INTO items (name) VALUES (?)", [(f"item {n}",) for n in range(rows)])


def count(path: Path) -> int:
    with closing(apsw.Connection(str(path))) as connection:
        return int(connection.execute("SELECT count(*) FROM items").fetchall()[0][0])  # type: ignore[arg-type]


def test_backup_is_a_gzipped_database_that_any_tool_opens(backups: Backups, path: Path, tmp_path: Path) -> None:
    made = backups.create(path)
    assert made.rows == {"items": 3}
    for name in (made.name, LATEST):
        packed = b"".join(backups.store.read(name))
        (tmp_path / "opened.db").write_bytes(gzip.decompress(packed))
        assert count(tmp_path / "opened.db") == 3
    assert (made.size, made.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert json.loads(b"".join(backups.store.read(made.name + ".json")))["rows"] == {"items": 3}
    assert [(backup.name, backup.complete) for backup in backups.list()] == [(made.name, True)]


def test_lost_database_comes_back(backups: Backups, path: Path) -> None:
    backups.create(path)
    shutil.rmtree(path.parent)
    restored = backups.restore(path)
    assert restored.rows == {"items": 3}
    assert count(path) == 3


def test_two_backups_within_a_minute_are_both_kept_and_the_later_is_newest(local: Backups, path: Path) -> None:
    first = local.create(path, "pre-deploy")
    set_rows(path, 5)
    second = local.create(path)
    assert len(local.list()) == 2
    newest = local.newest()
    assert newest is not None
    assert newest.name == second.name
    assert local.verify().rows == {"items": 5}
    assert local.verify(first.name).rows == {"items": 3}
    set_rows(path, 6)
    third = local.create(path)
    assert third.name not in (first.name, second.name)
    assert local.verify().rows == {"items": 6}


def test_backup_is_consistent_and_ends_while_others_write(local: Backups, tmp_path: Path) -> None:
    # Every transaction adds one row to both tables; a torn copy would hold different numbers
    path = make_database(tmp_path / "busy.db", 0)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE twin (id INTEGER PRIMARY KEY, filler BLOB)")
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        with closing(apsw.Connection(str(path))) as connection:
            connection.set_busy_timeout(5000)
            while not stop.is_set():
                with connection:
                    connection.execute("INSERT INTO items (name) VALUES ('x')")
                    connection.execute("INSERT INTO twin (filler) VALUES (zeroblob(20000))")
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(10)
        for _ in range(3):
            made = local.create(path, "busy") if not local.list() else local.verify()
            assert made.rows["items"] == made.rows["twin"] > 0
    finally:
        stop.set()
        writer.join()


def test_writes_of_others_do_not_start_the_copy_again(local: Backups, path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE TABLE big AS SELECT zeroblob(50000000) AS filler")
        steps = 0

        def write_between_steps(phase: str, done: int, total: int) -> None:
            nonlocal steps
            if phase == "copy":
                steps += 1
                assert steps < 100, "the copy never ends while somebody writes"
                connection.execute("INSERT INTO items (name) VALUES ('x')")

        made = local.create(path, progress=write_between_steps)
    assert steps > 5
    assert made.rows["items"] == 3


def test_restore_keeps_what_was_there(local: Backups, path: Path) -> None:
    local.create(path)
    set_rows(path, 9)
    local.restore(path)
    assert count(path) == 3
    assert count(path.with_name("app.db.before-restore")) == 9
    set_rows(path, 4)
    local.restore(path)
    assert count(path.with_name("app.db.before-restore")) == 4


def test_restore_never_leaves_an_old_wal_beside_the_new_file(local: Backups, path: Path, tmp_path: Path) -> None:
    local.create(path)
    # a crash leaves a WAL with commits that are not in the file
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("INSERT INTO items (name) VALUES ('only in the WAL')")
        crashed = tmp_path / "crashed" / "app.db"
        crashed.parent.mkdir()
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
    local.restore(crashed)
    assert count(crashed) == 3
    assert count(crashed.with_name("app.db.before-restore")) == 4


def test_damaged_database_is_replaced_and_kept_with_its_wal(local: Backups, path: Path) -> None:
    local.create(path)
    path.write_bytes(b"garbage" * 1000)
    path.with_name("app.db-wal").write_bytes(b"more garbage")
    local.restore(path)
    assert count(path) == 3
    assert path.with_name("app.db.before-restore").read_bytes() == b"garbage" * 1000
    assert path.with_name("app.db.before-restore-wal").read_bytes() == b"more garbage"


def test_restore_rolls_a_hot_journal_back_and_leaves_none(local: Backups, path: Path, tmp_path: Path) -> None:
    local.create(path)
    set_rows(path, 5000)
    crashed = tmp_path / "crashed" / "app.db"
    crashed.parent.mkdir()
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = delete")
        committed = path.read_bytes()
        connection.execute("PRAGMA cache_size = 2")
        connection.execute("BEGIN; UPDATE items SET name = 'not yet'")
        for suffix in ("", "-journal"):  # a crash in the middle of writing the file
            shutil.copy(f"{path}{suffix}", f"{crashed}{suffix}")
    assert crashed.read_bytes() != committed
    local.restore(crashed)
    assert count(crashed) == 3
    assert crashed.with_name("app.db.before-restore").read_bytes() == committed
    assert [file.name for file in crashed.parent.glob("*-journal")] == []


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
def test_restore_is_refused_while_somebody_is_at_work_and_changes_nothing(
    local: Backups, path: Path, journal_mode: str
) -> None:
    local.create(path)
    kept = path.with_name("app.db.before-restore")
    kept.write_bytes(b"the only copy of something")
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA journal_mode = {journal_mode}")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO items (name) VALUES ('x')")
        with pytest.raises(DatabaseLocked, match="close the program that has it open"):
            local.restore(path)
        connection.execute("COMMIT")
        assert count(path) == 4
    assert kept.read_bytes() == b"the only copy of something"


def test_database_that_sqlite_cannot_open_is_kept_with_its_journal(
    local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unopenable(apsw.Connection):
        def execute(self, *arguments: Any, **options: Any) -> Any:
            raise apsw.IOError("disk I/O error")

    local.create(path)
    path.with_name("app.db-journal").write_bytes(b"more garbage")
    monkeypatch.setattr(apsw, "Connection", Unopenable)
    monkeypatch.setattr(backups_module, "inspect", lambda database: Contents({"items": 3}, 0))
    local.restore(path)
    monkeypatch.undo()
    assert count(path) == 3
    assert path.with_name("app.db.before-restore-journal").read_bytes() == b"more garbage"


def test_nothing_of_an_earlier_restore_lies_beside_what_this_one_keeps(local: Backups, path: Path) -> None:
    local.create(path)
    kept = path.with_name("app.db.before-restore")
    stale = [kept.with_name(kept.name + suffix) for suffix in ("-wal", "-shm", "-journal")]
    for file in stale:
        file.write_bytes(b"of another file")
    local.restore(path)
    assert not any(file.exists() for file in stale)
    assert count(kept) == 3


def test_restored_file_is_as_private_as_the_one_it_replaces(local: Backups, path: Path) -> None:
    local.create(path)
    path.chmod(0o600)
    local.restore(path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_restore_is_on_the_disk_before_and_after_the_swap(
    local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local.create(path)
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        steps.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    local.restore(path)
    assert steps == ["app.db.restoring", "app.db.restoring -> app.db", "data"]


def test_backup_of_a_newer_schema_is_refused(local: Backups, path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA user_version = 99")
    local.create(path)
    set_rows(path, 7)
    with pytest.raises(SchemaTooNew, match="schema version 99"):
        local.restore(path)
    assert count(path) == 7


@pytest.mark.parametrize("name", ["latest", "app-latest", LATEST])
def test_latest_is_a_name_for_the_newest(local: Backups, path: Path, name: str) -> None:
    made = local.create(path)
    assert local.restore(path, name).name == made.name


def test_restore_under_a_running_server_is_refused(local: Backups, path: Path) -> None:
    local.create(path)
    with closing(open_at(path.with_name("served.db"))) as database:
        before = database.path.read_bytes()
        with pytest.raises(DatabaseInUse, match="Stop that process first"):
            local.restore(database.path)
        assert database.path.read_bytes() == before


Damage = Callable[[bytes], bytes]


def flip_a_byte(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize("damage", [flip_a_byte, lambda data: data[: len(data) // 2], lambda data: b""])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_damaged_backup_is_refused_and_the_live_file_untouched(
    backups: Backups, path: Path, damage: Damage, with_manifest: bool
) -> None:
    name = backups.create(path).name
    backups.store.put(name, damage(b"".join(backups.store.read(name))))
    if not with_manifest:
        backups.store.delete(name + ".json")
    set_rows(path, 7)
    with pytest.raises(BackupDamaged, match=name):
        backups.verify(name)
    with pytest.raises(BackupDamaged, match=name):
        backups.restore(path, name)
    assert count(path) == 7
    assert sorted(file.name for file in path.parent.iterdir()) == ["app.db", "app.db.lock"]


def test_manifest_that_does_not_fit_is_refused(local: Backups, path: Path) -> None:
    made = local.create(path)
    local.store.put(made.name + ".json", b"{}")
    with pytest.raises(BackupDamaged, match="is not a manifest"):
        local.verify()


def test_rows_that_the_manifest_does_not_have_are_damage(local: Backups, path: Path) -> None:
    made = local.create(path)
    local.store.put(made.name + ".json", json.dumps({**asdict(made), "rows": {"items": 4}}).encode())
    with pytest.raises(BackupDamaged, match=r"rows \{'items': 3\}"):
        local.verify()


def test_missing_backup_is_named(backups: Backups, path: Path) -> None:
    with pytest.raises(BackupMissing, match="no complete backup"):
        backups.restore(path)
    with pytest.raises(BackupMissing, match="no backup app-20200101-0000"):
        backups.verify("app-20200101-0000")
    assert count(path) == 3


def test_missing_database_is_named(local: Backups, tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnavailable, match="There is no database at"):
        local.create(tmp_path / "absent.db")
    assert not (tmp_path / "absent.db").exists()


def test_damaged_database_is_not_backed_up_as_if_it_were_sound(local: Backups, path: Path) -> None:
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("CREATE INDEX names ON items (name)")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX names ON items (id)' WHERE name = 'names'")
    with pytest.raises(BackupDamaged, match=str(path)):
        local.create(path)
    assert local.store.objects() == []


def test_upload_that_does_not_read_back_is_not_reported_as_success(
    local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put
    monkeypatch.setattr(ObjectStore, "put", lambda store, name, body: put(store, name, flip_a_byte(body.read_bytes())))
    with pytest.raises(BackupDamaged, match="SHA-256"):
        local.create(path)
    assert local.store.objects() == []


def test_half_made_backup_is_not_taken_for_the_newest(
    local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = local.create(path, "good")

    def fail(*arguments: object) -> None:
        raise StoreUnavailable("gone")

    set_rows(path, 8)
    monkeypatch.setattr(ObjectStore, "put", fail)
    with pytest.raises(StoreUnavailable):
        local.create(path)
    monkeypatch.undo()
    assert [backup.complete for backup in local.list()].count(False) == 1
    assert local.restore(path).name == good.name


def test_backup_is_good_although_old_ones_cannot_be_removed(
    local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object) -> None:
        raise StoreUnavailable("gone")

    monkeypatch.setattr(backups_module, "prune", fail)
    made = local.create(path)
    assert "old backups could not be removed: gone" in caplog.text
    newest = local.newest()
    assert newest is not None
    assert newest.name == made.name


def test_old_backups_are_removed_after_a_good_one(local: Backups, path: Path) -> None:
    for name in ("app-20200101-0000.db.gz", "app-20200101-0000.db.gz.json"):
        local.store.put(name, b"old")
    names = [local.create(path, label).name for label in ("one", "two")]
    assert [backup.name for backup in local.list()] == names


def test_the_file_itself_goes_and_comes_through_the_patient_store(store: ObjectStore, path: Path) -> None:
    class Small(ObjectStore):
        def _put(self, name: str, body: object, mode: object, written_at: object = None) -> None:
            assert isinstance(body, bytes)
            super()._put(name, body, mode)

        def read(self, name: str) -> Iterator[bytes]:
            assert name.endswith(".json")
            return super().read(name)

    backups = Backups(Small(store.url), KEEP, bulk=store)
    assert backups.verify(backups.create(path).name).rows == {"items": 3}


@pytest.mark.parametrize("label", ["", "UPPER", "a b", "../x", "1st", "x" * 41, "é"])
def test_label_that_would_break_the_name_is_refused(local: Backups, path: Path, label: str) -> None:
    with pytest.raises(InvalidInput):
        local.create(path, label)


def test_no_room_to_work_in_is_a_clear_error(local: Backups, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(BackupError, match="TMPDIR names another"):
        local.create(path)


def test_foreign_files_beside_the_backups_are_left_alone(local: Backups, path: Path) -> None:
    for name in ("notes.txt", "app-99999999-9999.db.gz", "app-20260101-0000.db"):
        local.store.put(name, b"x")
    made = local.create(path)
    assert [backup.name for backup in local.list()] == [made.name]
    assert len(local.store.objects()) == 6
