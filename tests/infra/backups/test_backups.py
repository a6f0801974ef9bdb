import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest

from core.errors import (
    BackupDamaged,
    BackupError,
    BackupMissing,
    InvalidInput,
    SchemaTooNew,
    StoreUnavailable,
)
from core.migrations import scripts
from infra.backups.backups import LATEST, Backups
from infra.backups.retention import Retention
from infra.commitlog import Position
from infra.inspection import inspect
from infra.storage.object_store import ObjectStore

ROOT = Path(__file__).parents[3]
# a disk that takes no file of this size
BACK_UP = """
import resource, signal, sys
from datetime import timedelta
from pathlib import Path
from infra.backups import backups
from infra.commitlog import Position
from infra.storage.object_store import ObjectStore
from infra.backups.retention import Retention
store = ObjectStore(sys.argv[1])
create = backups.Backups._free_name
def free_name(*arguments):
    found = create(*arguments)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    return found
backups.Backups._free_name = free_name
backups.Backups(store, Retention(timedelta(7), timedelta(30))).create(Path(sys.argv[2]), Position(1, 1, 1))
"""
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
def image(tmp_path: Path) -> Path:
    return make_image(tmp_path / "image.db", 3)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "restored.db"


def at(txid: int) -> Position:
    return Position(txid, 0xC0FFEE, 1_700_000_000_000)


def make_image(path: Path, rows: int) -> Path:
    """A closed database that nobody else uses, in WAL mode like the log's."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("".join(scripts()) + f"PRAGMA user_version = {len(scripts())}")
        connection.executemany(
            "INSERT INTO items (name, created_at, updated_at) VALUES (?, '', '')", [(f"item {n}",) for n in range(rows)]
        )
    return path


def count(path: Path) -> int:
    with closing(apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)) as connection:
        return int(connection.execute("SELECT count(*) FROM items").fetchall()[0][0])  # type: ignore[arg-type]


def test_backup_is_a_gzipped_database_that_any_tool_opens(backups: Backups, image: Path, tmp_path: Path) -> None:
    made = backups.create(image, at(0x1A4))
    assert (made.rows["items"], made.txid) == (3, "00000000000001a4")
    for name in (made.name, LATEST):
        packed = b"".join(backups.store.read(name))
        (tmp_path / "opened.db").write_bytes(gzip.decompress(packed))
        assert count(tmp_path / "opened.db") == 3
    assert not (tmp_path / "opened.db-wal").exists(), "one file is all there is of it"
    assert (made.size, made.sha256) == (len(packed), hashlib.sha256(packed).hexdigest())
    assert json.loads(b"".join(backups.store.read(made.name + ".json"))) == asdict(made)
    assert [(backup.name, backup.complete) for backup in backups.list()] == [(made.name, True)]
    assert backups.newest_manifest() == made


def test_image_is_consumed_and_nothing_else_is_left(
    local: Backups, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    local.create(image, at(1))
    assert not image.exists()
    assert list(temporary.iterdir()) == []


def test_database_of_a_backup_comes_back(backups: Backups, image: Path, target: Path) -> None:
    made = backups.create(image, at(1))
    assert backups.restore(target) == made
    assert count(target) == 3
    assert sorted(file.name for file in target.parent.glob("restored.db*")) == ["restored.db"]


def test_backups_within_a_minute_and_a_second_are_all_kept_and_the_last_is_newest(
    store: ObjectStore, tmp_path: Path
) -> None:
    moments = iter(datetime(2026, 1, 31, 12, 0, second, 999_999, tzinfo=UTC) for second in (1, 2, 2, 2, 2, 3))
    backups = Backups(store, KEEP, now=lambda: next(moments))
    made = [backups.create(make_image(tmp_path / "image.db", rows), at(rows)) for rows in (3, 5, 6)]
    names = ["app-20260131-1200.db.gz", "app-20260131-120002.db.gz", "app-20260131-120003.db.gz"]
    assert [manifest.name for manifest in made] == [backup.name for backup in backups.list()] == names
    assert backups.newest_manifest() == made[-1]
    assert [backups.verify(name).rows["items"] for name in names] == [3, 5, 6]


def test_no_free_name_is_a_clear_error_and_nothing_is_overwritten(local: Backups, tmp_path: Path) -> None:
    stopped = Backups(local.store, KEEP, now=lambda: datetime(2026, 1, 31, 12, 0, 1, 999_999, tzinfo=UTC))
    made = [stopped.create(make_image(tmp_path / "image.db", rows), at(rows)) for rows in (3, 5)]
    with pytest.raises(BackupError, match=r"120001\.db\.gz is there already"):
        stopped.create(make_image(tmp_path / "image.db", 6), at(6))
    assert [local.verify(manifest.name) for manifest in made] == made


def test_backup_of_a_newer_schema_is_not_restored(local: Backups, image: Path, target: Path) -> None:
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("PRAGMA user_version = 99")
    local.create(image, at(1))
    with pytest.raises(SchemaTooNew, match="schema version 99"):
        local.restore(target)


@pytest.mark.parametrize("name", [None, "latest", "app-latest", LATEST])
def test_latest_is_a_name_for_the_newest(local: Backups, image: Path, target: Path, name: str | None) -> None:
    assert local.restore(target, local.create(image, at(1)).name) == local.restore(target, name)


Damage = Callable[[bytes], bytes]


def flip_a_byte(data: bytes) -> bytes:
    return data[:-20] + bytes([data[-20] ^ 1]) + data[-19:]


@pytest.mark.parametrize("damage", [flip_a_byte, lambda data: data[: len(data) // 2], lambda data: b""])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_damaged_backup_is_refused(
    backups: Backups, image: Path, target: Path, damage: Damage, with_manifest: bool
) -> None:
    name = backups.create(image, at(1)).name
    backups.store.put(name, damage(b"".join(backups.store.read(name))))
    if not with_manifest:
        backups.store.delete(name + ".json")
    with pytest.raises(BackupDamaged, match=name):
        backups.verify(name)
    with pytest.raises(BackupDamaged, match=name):
        backups.restore(target, name)


def test_backup_without_a_manifest_can_be_restored_by_name(local: Backups, image: Path, target: Path) -> None:
    made = local.create(image, at(1))
    local.store.delete(made.name + ".json")
    restored = local.restore(target, made.name)
    assert (restored.sha256, restored.rows, restored.txid) == (made.sha256, made.rows, "")
    assert count(target) == 3


def test_manifest_that_is_not_there_any_more_is_said(local: Backups, image: Path) -> None:
    name = local.create(image, at(1)).name
    local.store.delete(name + ".json")
    with pytest.raises(BackupMissing, match=rf"{name}\.json vanished from file:"):
        local.manifest_of(name)


def test_header_of_any_length_is_no_traceback(local: Backups, image: Path, target: Path) -> None:
    name, packed = "app-20260131-1200-odd.db.gz", gzip.compress(image.read_bytes())
    with_a_name = b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 600_000 + b"\0"
    local.store.put(name, with_a_name + packed[10:])
    with pytest.raises(BackupDamaged, match=f"{name} is damaged: "):
        local.restore(target, name)


def test_manifest_of_an_older_release_does_not_say_the_txid(local: Backups, image: Path, target: Path) -> None:
    made = local.create(image, at(1))
    older = {name: value for name, value in asdict(made).items() if name != "txid"}
    local.store.put(made.name + ".json", json.dumps(older).encode())
    assert local.restore(target) == replace(made, txid="")


@pytest.mark.parametrize(
    ("said", "second"),
    [
        ("2026-01-31T12:00:42+00:00", 42),
        ("2026-01-31T12:01:00+00:00", 0),
        ("2026-01-31T12:00:42", 0),
        ("noon", 0),
        (None, 0),
    ],
)
def test_moment_of_a_backup_is_its_manifests_within_the_minute_of_its_name(
    tmp_path: Path, image: Path, said: str | None, second: int
) -> None:
    noon = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    backups = Backups(ObjectStore(tmp_path.as_uri()), KEEP, now=lambda: noon)
    made = backups.create(image, at(1))
    backups.store.put(made.name + ".json", json.dumps({**asdict(made), "created_at": said}).encode())
    [found] = backups.list()
    assert backups.timed(found).time == noon.replace(second=second)


@pytest.mark.parametrize("changed", [None, {"rows": {"items": -1}}, {"rows": []}, {"size": "x"}, {"txid": None}])
def test_manifest_that_does_not_fit_is_refused(local: Backups, image: Path, changed: dict[str, object] | None) -> None:
    made = local.create(image, at(1))
    local.store.put(made.name + ".json", json.dumps(asdict(made) | changed if changed else {}).encode())
    with pytest.raises(BackupDamaged, match="is not a manifest"):
        local.verify()


def test_rows_that_the_manifest_does_not_have_are_damage(local: Backups, image: Path) -> None:
    made = local.create(image, at(1))
    local.store.put(made.name + ".json", json.dumps({**asdict(made), "rows": {"items": 4}}).encode())
    with pytest.raises(BackupDamaged, match=r"rows \{'items': 3"):
        local.verify()


def test_backup_that_unpacks_to_more_than_it_says_is_refused_before_it_fills_the_disk(
    local: Backups, image: Path, target: Path
) -> None:
    name = "app-20260131-1200-theirs.db.gz"
    local.store.put(name, gzip.compress(image.read_bytes() + bytes(100 * 1024 * 1024)))
    tracemalloc.start()
    with pytest.raises(BackupDamaged, match="unpacks to more than its first page says"):
        local.restore(target, name)
    assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    tracemalloc.stop()
    assert target.stat().st_size < 1024 * 1024


def test_backup_for_which_there_is_no_room_is_not_begun(local: Backups, image: Path, target: Path) -> None:
    body = bytearray(image.read_bytes())
    body[16:18], body[28:32] = b"\0\1", b"\xff" * 4  # pages of 64 KiB, and as many as there may be
    local.store.put("app-20260131-1200-theirs.db.gz", gzip.compress(body))
    with pytest.raises(BackupError, match="has room for"):
        local.restore(target, "app-20260131-1200-theirs.db.gz")
    assert target.stat().st_size == 0


def test_missing_backup_is_named(backups: Backups, target: Path) -> None:
    with pytest.raises(BackupMissing, match="no complete backup"):
        backups.restore(target)
    with pytest.raises(BackupMissing, match="no backup app-20200101-0000"):
        backups.verify("app-20200101-0000")
    assert backups.newest_manifest() is None
    assert not target.exists()


def test_damaged_image_is_not_backed_up_as_if_it_were_sound(local: Backups, image: Path) -> None:
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("CREATE INDEX names ON items (name)")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX names ON items (id)' WHERE name = 'names'")
    with pytest.raises(BackupDamaged, match="integrity_check: "):
        local.create(image, at(1))
    image.write_bytes(b"no database" * 100)
    with pytest.raises(BackupDamaged, match="not a sound SQLite database"):
        local.create(image, at(1))
    assert local.store.objects() == []


def test_file_that_was_damaged_since_it_was_inspected_is_not_backed_up(local: Backups, image: Path) -> None:
    contents = inspect(image)
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("CREATE INDEX names ON items (name)")
        connection.execute("PRAGMA writable_schema = on")
        connection.execute("UPDATE sqlite_schema SET sql = 'CREATE INDEX names ON items (id)' WHERE name = 'names'")
    with pytest.raises(BackupDamaged, match="integrity_check: "):
        local.create(image, at(1), contents=contents)
    assert local.store.objects() == []
    with pytest.raises(BackupDamaged, match="its manifest says"):
        local.create(make_image(image, 8), at(1), contents=contents)
    assert local.store.objects() == []


def test_upload_that_does_not_read_back_is_not_reported_as_success(
    local: Backups, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = ObjectStore.put
    monkeypatch.setattr(ObjectStore, "put", lambda store, name, body: put(store, name, flip_a_byte(body.read_bytes())))
    with pytest.raises(BackupDamaged, match="SHA-256"):
        local.create(image, at(1))
    assert local.store.objects() == []


def test_half_made_backup_is_not_taken_for_the_newest(
    local: Backups, image: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = local.create(image, at(1), "good")

    def fail(*arguments: object) -> None:
        raise StoreUnavailable("gone")

    for verb in ("put", "delete"):
        monkeypatch.setattr(ObjectStore, verb, fail)
    with pytest.raises(StoreUnavailable):
        local.create(make_image(image, 8), at(2))
    monkeypatch.undo()
    assert [backup.complete for backup in local.list()].count(False) == 1
    assert local.restore(target) == good


def put_old(backups: Backups, name: str) -> None:
    """A complete one, as far as a listing tells."""
    for part in (name, name + ".json"):
        backups.store.put(part, b"old")


def test_pruning_deletes_what_is_expired_and_nothing_else(local: Backups, tmp_path: Path) -> None:
    put_old(local, "app-20200101-0000.db.gz")
    put_old(local, "app-20200102-0000-keep.db.gz")
    local.store.put("notes.txt", b"x")
    made = [local.create(make_image(tmp_path / f"{n}.db", n), at(n)).name for n in (1, 2)]
    names = ["app-20200101-0000.db.gz", "app-20200102-0000-keep.db.gz", *made]
    assert [backup.name for backup in local.list()] == names, "a new backup alone deletes nothing"
    assert [(one.backup.name, one.why) for one in local.expired()] == [(names[0], "older than 30 days")]
    assert local.prune() == 1
    assert [backup.name for backup in local.list()] == names[1:]
    assert len(local.store.objects()) == 3 * 2 + 2  # with the notes and app-latest
    assert local.prune() == 0


def test_pruning_deletes_the_manifest_before_the_data(local: Backups, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    put_old(local, "app-20200101-0000.db.gz")
    for hours in (1, 0):
        put_old(local, f"app-{now - timedelta(hours=hours):%Y%m%d-%H%M}.db.gz")
    deleted: list[str] = []
    monkeypatch.setattr(ObjectStore, "delete", lambda store, name: deleted.append(name))
    local.prune()
    assert deleted == ["app-20200101-0000.db.gz.json", "app-20200101-0000.db.gz"]


def test_the_file_itself_goes_and_comes_through_the_patient_store(store: ObjectStore, image: Path) -> None:
    class Small(ObjectStore):
        def _put(self, name: str, body: object, mode: object, written_at: object = None) -> None:
            assert isinstance(body, bytes)
            super()._put(name, body, mode)

        def read(self, name: str) -> Iterator[bytes]:
            assert name.endswith(".json")
            return super().read(name)

    backups = Backups(Small(store.url), KEEP, bulk=store)
    assert backups.verify(backups.create(image, at(1)).name).rows["items"] == 3


@pytest.mark.parametrize("label", ["", "UPPER", "a b", "../x", "1st", "x" * 41, "é"])
def test_label_that_would_break_the_name_is_refused(local: Backups, image: Path, label: str) -> None:
    with pytest.raises(InvalidInput):
        local.create(image, at(1), label)


def test_label_is_part_of_the_name(local: Backups, image: Path) -> None:
    made = local.create(image, at(1), "pre-deploy")
    assert made.name.endswith("-pre-deploy.db.gz")
    assert [backup.label for backup in local.list()] == ["pre-deploy"]


def test_progress_goes_on_to_the_total(local: Backups, image: Path) -> None:
    size, seen = image.stat().st_size, {}
    made = local.create(image, at(1), progress=lambda phase, done, total: seen.update({phase: (done, total)}))
    assert seen == {"compress": (size, size), "download": (made.size, made.size)}


def test_no_room_to_work_in_is_a_clear_error(local: Backups, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    with pytest.raises(BackupError, match="TMPDIR names another"):
        local.create(image, at(1))


def test_other_files_beside_the_backups_are_left_alone(local: Backups, image: Path) -> None:
    for name in ("notes.txt", "app-99999999-9999.db.gz", "app-20260101-0000.db"):
        local.store.put(name, b"x")
    made = local.create(image, at(1))
    assert [backup.name for backup in local.list()] == [made.name]
    assert len(local.store.objects()) == 6


def test_backup_that_finds_no_room_leaves_nothing_behind(tmp_path: Path, image: Path) -> None:
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("CREATE TABLE more AS SELECT randomblob(1000000) AS bytes")
    place = tmp_path / "backups"
    done = subprocess.run(
        [sys.executable, "-c", BACK_UP, place.as_uri(), str(image)], cwd=ROOT, capture_output=True, text=True
    )
    assert "File too large" in done.stderr, done.stderr
    assert list(place.iterdir()) == []
