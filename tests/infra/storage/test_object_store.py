import errno
import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core.errors import ObjectExists, ObjectMissing, SettingsError, StoreRefused, StoreUnavailable
from infra.disk import ownership
from infra.storage import object_store
from infra.storage.object_store import ObjectStore


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return ObjectStore(request.getfixturevalue("s3"))
    return ObjectStore((tmp_path / "a dir").as_uri())


def read(store: ObjectStore, name: str) -> bytes:
    return b"".join(store.read(name))


def test_put_replaces_create_does_not(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"from a file")
    store.create("a", b"one")
    with pytest.raises(ObjectExists):
        store.create("a", b"two")
    assert read(store, "a") == b"one"
    store.put("a", tmp_path / "body")
    assert read(store, "a") == b"from a file"


def test_large_objects_come_back_whole(store: ObjectStore, tmp_path: Path) -> None:
    body = bytes(range(256)) * 40_000
    (tmp_path / "body").write_bytes(body)
    store.create("a", tmp_path / "body")
    store.put("b", tmp_path / "body")
    assert read(store, "a") == read(store, "b") == body


def test_list_is_by_name_and_delete_is_idempotent(store: ObjectStore) -> None:
    for name in ("b", "a", "c"):
        store.put(name, name.encode() * 3)
    store.delete("b")
    store.delete("b")
    assert [(info.name, info.size) for info in store.objects()] == [("a", 3), ("c", 3)]
    assert all(info.modified.utcoffset() is not None for info in store.objects())


def test_missing_object_is_told_from_an_empty_one(store: ObjectStore) -> None:
    store.put("empty", b"")
    assert read(store, "empty") == b""
    with pytest.raises(ObjectMissing):
        read(store, "absent")


def test_a_healthy_store_passes_its_check(store: ObjectStore) -> None:
    store.check()


def test_missing_bucket_is_refused_by_name(s3: str) -> None:
    with pytest.raises(StoreRefused, match="s3://nowhere/x: there is no such bucket"):
        ObjectStore("s3://nowhere/x").check()


def test_unreachable_store_may_come_back(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    with pytest.raises(StoreUnavailable, match="s3://bucket/backups"):
        ObjectStore(s3).check()


def test_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreRefused, match="file"):
        ObjectStore((tmp_path / "file" / "backups").as_uri())


def test_ranges_end_with_the_object(store: ObjectStore) -> None:
    store.put("a", b"0123456789")
    assert store.read_range("a", 0, 4) == b"0123"
    assert store.read_range("a", 0, 100) == b"0123456789"
    assert store.read_range("a", 3, 5) == b"34"
    assert store.read_range("a", 8, 100) == b"89"
    assert store.read_range("a", 10, 100) == b""
    store.put("empty", b"")
    assert store.read_range("empty", 0, 4) == b""
    with pytest.raises(ObjectMissing):
        store.read_range("absent", 0, 4)


def test_directories_are_listed_apart_and_from_a_name_on(store: ObjectStore) -> None:
    for name in ("top", "x/1", "x/2", "x/3", "y/1"):
        store.create(name, b"")
    assert store.directories() == ["x", "y"]
    assert [info.name for info in store.objects()] == ["top"]
    assert [info.name for info in store.objects("x")] == ["x/1", "x/2", "x/3"]
    assert [info.name for info in store.objects("x", after="x/1")] == ["x/2", "x/3"]
    assert store.objects("absent") == store.objects("absent", after="absent/1") == []


@pytest.mark.parametrize("verb", ["create", "put"])
def test_name_appears_only_after_the_content_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    store = ObjectStore(tmp_path.as_uri())
    events: list[tuple[str, str]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        visible = "visible" if (tmp_path / "new/a").exists() else "hidden"
        events.append(("file" if path.suffix == ".partial" else str(path.relative_to(tmp_path)), visible))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    getattr(store, verb)("new/a", b"x")
    assert events == [(".", "hidden"), ("file", "hidden"), ("new", "visible")]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a"]


def test_directory_that_others_have_made_is_made_safe_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may not have come to it, and an object in a directory that is lost is lost."""
    (tmp_path / "ltx" / "0").mkdir(parents=True)
    store = ObjectStore(tmp_path.as_uri())
    synced: list[Path] = []
    for module in (object_store, ownership):
        monkeypatch.setattr(module, "fsync_directory", synced.append)
    store.create("ltx/0/a", b"x")
    store.create("ltx/0/b", b"x")
    top, of_both = tmp_path, tmp_path / "ltx"
    assert synced == [top, of_both, of_both / "0", of_both / "0"]


def test_directory_of_a_new_store_is_made_safe_and_what_it_lies_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr("infra.disk.ownership.fsync_directory", synced.append)
    ObjectStore((tmp_path / "data" / "log").as_uri()).check_directories()
    assert synced == [tmp_path, tmp_path / "data"]


@pytest.mark.parametrize("verb", ["read", "read_range"])
def test_name_that_was_found_is_made_safe_before_the_content_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Its writer may not have come to that: whoever has answered with it must find it there after a power cut."""
    store = ObjectStore(tmp_path.as_uri())
    events: list[str] = []
    fsync: Any = os.fsync
    open_file: Any = os.open

    def record_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            events.append(f"fsync of {path.relative_to(tmp_path)}")
        fsync(descriptor)

    def record_open(path: Path | str, *arguments: Any) -> Any:
        found = open_file(path, *arguments)
        if Path(path).is_file():
            events.append(f"{Path(path).relative_to(tmp_path)} is open")
        return found

    def interrupted(*arguments: Any) -> None:
        raise StoreUnavailable("the power fails")

    with monkeypatch.context() as patch, suppress(StoreUnavailable):
        patch.setattr(object_store, "_make_outlive_power_cuts", interrupted)
        store.create("x/a", b"content")
    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "open", record_open)
    if verb == "read":
        chunks = store.read("x/a")
        assert next(chunks) == b"content"
    else:
        assert store.read_range("x/a", 0, 7) == b"content"
    assert events == ["x/a is open", "fsync of x"]


def test_name_that_is_known_to_be_safe_is_not_made_safe_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a commit, which is looked at when the next one is stored: each time would be a third of the work."""
    store, other = ObjectStore(tmp_path.as_uri()), ObjectStore(tmp_path.as_uri())
    synced: list[Path] = []
    monkeypatch.setattr(object_store, "fsync_directory", synced.append)
    store.create("a", b"x")
    assert synced == [tmp_path]  # by the create
    assert store.read_end("a", 1)[0] == store.read_range("a", 0, 1) == read(store, "a") == b"x"
    assert synced == [tmp_path]
    for _ in range(2):
        assert other.read_end("a", 1)[0] == b"x"
    assert synced == [tmp_path, tmp_path]  # by the one that has not made it


def test_name_that_another_file_has_since_is_made_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path.as_uri())
    store.create("a", b"x")
    synced: list[Path] = []
    monkeypatch.setattr(object_store, "fsync_directory", synced.append)
    (tmp_path / "b").write_bytes(b"y")
    (tmp_path / "b").rename(tmp_path / "a")
    assert store.read_range("a", 0, 1) == b"y"
    assert synced == [tmp_path]


def test_content_whose_name_cannot_be_made_safe_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path.as_uri())
    (tmp_path / "a").write_bytes(b"x")

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(object_store, "fsync_directory", broken)
    uses: list[Callable[[], object]] = [
        lambda: read(store, "a"),
        lambda: store.read_range("a", 0, 1),
        lambda: store.read_end("a", 1),
    ]
    for use in uses:
        with pytest.raises(StoreUnavailable, match="Input/output error"):
            use()


def test_race_has_one_winner_and_what_is_there_has_none(store: ObjectStore) -> None:
    for name in ("a", "b", "c"):
        assert store.race(name, b"x", 3) == 1
        assert store.race(name, b"y", 3) == 0
        assert read(store, name) == b"x"


def test_failed_write_leaves_no_part_behind(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    store.create("a", b"x")
    with pytest.raises(ObjectExists):
        store.create("a", b"y")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_time_of_writing_is_a_files_modification_time(tmp_path: Path) -> None:
    store = ObjectStore(tmp_path.as_uri())
    moment = datetime(2030, 1, 2, 3, 4, 5, 678000, UTC)
    store.create("a", b"x", moment)
    assert (tmp_path / "a").stat().st_mtime == moment.timestamp()


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
def test_wrong_endpoint_is_a_wrong_setting(s3: str, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://KEY:SECRET@host")
    with pytest.raises(SettingsError) as caught:
        ObjectStore(s3)
    assert str(caught.value) == f"{name}='http://***': should be http://host:port or https://host"


def test_empty_endpoint_counts_as_unset(s3: str, moto_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    ObjectStore(s3).check()


def test_value_that_the_client_panics_over_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a\n")
    with pytest.raises(StoreRefused, match="an AWS_\\* variable"):
        ObjectStore(s3).check()


def test_check_of_a_store_that_does_not_answer_is_short(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_CHECK_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(StoreUnavailable):
            ObjectStore(s3).check()
        silent.accept()[0].close()
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):  # asked once, by that time
            silent.accept()


def test_directory_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path.as_uri())
    monkeypatch.setattr(os, "access", lambda path, mode, **options: False)
    with pytest.raises(StoreRefused, match="not writable"):
        store.check()


def test_directory_that_was_taken_away_is_not_made_anew(tmp_path: Path) -> None:
    """An unmounted disk must not become an empty log."""
    store = ObjectStore((tmp_path / "log").as_uri())
    store.create("a", b"x")
    (tmp_path / "log").rename(tmp_path / "moved")
    for use in (lambda: store.create("b", b"y"), lambda: read(store, "a"), store.objects):
        with pytest.raises(StoreRefused, match="moved, removed or unmounted"):
            use()
    assert not (tmp_path / "log").exists()
    (tmp_path / "moved").rename(tmp_path / "log")
    assert read(store, "a") == b"x"


def test_whoever_only_looks_makes_no_directory(tmp_path: Path) -> None:
    """Else what was moved away and is put back by `mv` would land in it."""
    store = ObjectStore((tmp_path / "log").as_uri())
    store.delete("a")
    assert (store.objects(), store.directories()) == ([], [])
    with pytest.raises(ObjectMissing):
        read(store, "a")
    with pytest.raises(StoreRefused, match="not there"):
        store.check_there()
    assert not (tmp_path / "log").exists()
    (tmp_path / "log").mkdir()
    store.check_there()


def test_name_that_is_taken_is_made_safe_before_it_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attempt that made it may have failed in its last fsync."""
    store = ObjectStore(tmp_path.as_uri())
    store.create("a", b"x")
    synced: list[Path] = []
    monkeypatch.setattr("infra.storage.object_store.fsync_directory", synced.append)
    with pytest.raises(ObjectExists):
        store.create("a", b"x")
    assert synced == [tmp_path]


def test_name_that_may_not_outlive_a_power_cut_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object is there, so nobody may be told that it is not; whatever goes wrong after that."""
    store = ObjectStore((tmp_path / "store").as_uri())

    def broken(path: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def read_only(path: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(object_store, "fsync_directory", broken)
        patch.setattr(os, "unlink", read_only)
        with pytest.raises(StoreUnavailable, match="power cut"):
            store.create("x", b"1")
    assert b"".join(store.read("x")) == b"1"


@pytest.mark.parametrize("is_file", [True, False])
def test_object_is_whole_where_the_system_takes_it_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    store, write = ObjectStore((tmp_path / "store").as_uri()), os.write
    (tmp_path / "body").write_bytes(b"12345")
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:2]))
    store.create("x", tmp_path / "body" if is_file else b"12345")
    assert read(store, "x") == b"12345"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_disk_that_takes_nothing_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    store = ObjectStore((tmp_path / "store").as_uri())
    store.check_directories()

    def full(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreRefused, match="nothing can be written"):
            store.create("x", b"1")
    with pytest.raises(ObjectMissing):
        list(store.read("x"))


def test_time_of_an_object_is_when_it_was_stored_whatever_date_the_writer_gives_it(store: ObjectStore) -> None:
    store.create("a", b"x", datetime(2020, 1, 1, tzinfo=UTC))
    [info] = store.objects()
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("number", "is_tolerated"), [(errno.EINVAL, True), (errno.EOPNOTSUPP, True), (errno.EIO, False)]
)
def test_file_system_that_syncs_no_directories_is_used_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, is_tolerated: bool
) -> None:
    store, fsync = ObjectStore(tmp_path.as_uri()), os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    if is_tolerated:
        store.create("a", b"x")
        assert read(store, "a") == b"x"
    else:
        with pytest.raises(StoreUnavailable):
            store.create("a", b"x")


def test_name_is_taken_by_an_empty_object_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> NoReturn:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", fail)
    store = ObjectStore(tmp_path.as_uri())
    store.create("a", b"")
    with pytest.raises(ObjectExists):
        store.create("a", b"")
    with pytest.raises(StoreRefused, match="its file system makes no hard links"):
        store.create("b", b"x")
    assert [info.name for info in store.objects()] == ["a"]


def test_each_request_is_told_with_its_verb_and_whether_it_was_answered(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, bool]] = []

    def note(verb: str, answered: bool, seconds: float) -> None:
        assert 0 <= seconds < 60
        asked.append((verb, answered))

    store = ObjectStore(store.url, retries=0, asked=note)
    store.create("a", b"1")
    with suppress(ObjectExists):
        store.create("a", b"1")
    store.put("b", b"2")
    assert next(store.read("a")) == b"1"  # and no more of it
    store.read_range("a", 0, 1)
    store.read_end("a", 1)
    with suppress(ObjectMissing):
        read(store, "missing")
    store.objects()
    store.objects(after="a")
    store.directories()
    store.delete("a")
    store.delete("a")
    verbs = ["put"] * 3 + ["get"] * 4 + ["list"] * 3 + ["delete"] * 2
    assert asked == [(verb, True) for verb in verbs]
    asked.clear()
    if store.url.startswith("s3:"):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
        away = ObjectStore(store.url, retries=0, asked=note)
        with pytest.raises(StoreUnavailable):
            away.objects()
        assert asked == [("list", False)]


def test_time_of_whoever_reads_is_not_the_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    told: list[float] = []
    monkeypatch.setattr("infra.storage.object_store.time.perf_counter", lambda: now)
    store = ObjectStore(tmp_path.as_uri(), asked=lambda verb, answered, seconds: told.append(seconds))
    store.put("a", b"1")
    for _ in store.read("a"):
        now += 100
    assert told == [0, 0]
