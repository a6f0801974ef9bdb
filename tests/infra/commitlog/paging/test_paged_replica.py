"""A private file that is opened page by page: the same promises, with a fraction of what is read."""

import os
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import apsw
import peewee
import pytest
from fastcrc.crc64 import go_iso

from core.errors import (
    DatabaseUnavailable,
    LogDamaged,
    LogInUse,
    NotServed,
    SnapshotGone,
    StoreUnavailable,
    TransactionTooLarge,
)
from infra.clock import Clock
from infra.commitlog import ltx, replica
from infra.commitlog.chain import LogObject
from infra.commitlog.log import open_log
from infra.commitlog.objects import SNAPSHOTS
from infra.commitlog.paging import btrees, paged_database
from infra.commitlog.paging.newest_snapshot import Paging
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.schema import AnySchema
from infra.commitlog.upkeep.compactor import Compactor
from infra.storage.object_store import ObjectStore
from tests.infra.commitlog.conftest import Instance, StartInstance, stored_in

ROWS = 400
_FILL = (
    "WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < {rows}) "
    "INSERT INTO t SELECT v, hex(randomblob(300)) FROM n"
)
_ALWAYS = Paging(above=0, cache=1024 * 1024)


@pytest.fixture
def full(start: StartInstance, url: str) -> Instance:
    """Writes the log that the others open."""
    instance = start("full", url)
    instance.sql("CREATE TABLE t (v INTEGER PRIMARY KEY, text)", "CREATE INDEX by_text ON t (text)")
    instance.sql(_FILL.format(rows=ROWS))
    return instance


def snapshot(url: str, directory: Path) -> LogObject:
    """Made of the newest state, with its sidecar."""
    directory.mkdir(exist_ok=True)
    image = directory / f"image-{len(list(directory.iterdir()))}.db"
    log = open_log(url, Clock())
    steps = Compactor(log, ObjectStore(url), Clock())
    return steps.store_snapshot(image, log.restore(image), directory)


@pytest.fixture
def made(full: Instance, url: str, tmp_path: Path) -> LogObject:
    return snapshot(url, tmp_path / "snapshots")


@pytest.fixture
def paged(start: StartInstance, url: str, made: LogObject) -> Callable[..., Instance]:
    def begin(name: str = "paged", paging: Paging = _ALWAYS, open: bool = True) -> Instance:
        return start(name, url, open=open, paging=paging)

    return begin


def counted(instance: Instance) -> list[str]:
    """The verbs of the requests since this was called last."""
    found = [verb for verb, _ in instance.store.requests]
    instance.store.requests.clear()
    return found


def names_of(url: str) -> list[str]:
    return [info.name for info in ObjectStore(url).objects(open_log(url, Clock()).objects.names.directory(SNAPSHOTS))]


def test_open_and_a_point_read_take_five_requests(paged: Callable[..., Instance]) -> None:
    instance = paged()
    assert counted(instance) == ["objects", "read"]  # the level of snapshots, and the sidecar
    assert instance.replica.snapshot
    instance.replica.refresh(instance.clock.now() + 0.001)
    [text] = instance.rows("SELECT length(text) FROM t WHERE v = 200")
    assert text == 600
    assert counted(instance) == ["read", "read_end", "read_range"]  # what would follow, what stands, a block
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]
    assert counted(instance) == []


def test_only_what_was_asked_for_is_read(paged: Callable[..., Instance], made: LogObject) -> None:
    instance = paged()
    instance.rows("SELECT length(text) FROM t WHERE v = 200")
    path = instance.path
    on_disk = sum(found.stat().st_blocks * 512 for found in path.parent.iterdir())
    assert path.stat().st_size > 250_000
    assert on_disk < path.stat().st_size / 2


def test_everything_can_be_read_and_is_what_was_written(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged(paging=replace(_ALWAYS, cache=1))  # as small as it gets
    both = [each.rows("SELECT v, text FROM t ORDER BY text") for each in (full, instance)]
    assert both[0] == both[1]
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


def test_what_has_followed_the_snapshot_is_read(
    paged: Callable[..., Instance], full: Instance, made: LogObject
) -> None:
    full.sql("UPDATE t SET text = 'new' WHERE v = 200", "DELETE FROM t WHERE v = 3")
    instance = paged()
    assert instance.replica.visible.txid == made.max_txid
    instance.clock.seconds += 0.001
    instance.replica.refresh(instance.clock.now())
    assert instance.replica.visible == full.replica.visible
    assert instance.rows("SELECT v FROM t WHERE text = 'new'") == [200]
    assert instance.rows("SELECT count(*) FROM t") == [ROWS - 1]


def test_writes_of_both_are_seen_by_both(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path
) -> None:
    instance = paged()
    for number in range(5):
        instance.sql(f"INSERT INTO t VALUES ({1000 + number}, 'paged')")
        full.sql(f"UPDATE t SET text = 'full' || {number} WHERE v = {number + 1}")
    for each in (instance, full):
        assert each.fresh_rows()[-1] == 1004
    assert instance.rows("SELECT v, text FROM t") == full.rows("SELECT v, text FROM t")
    assert instance.rows("PRAGMA integrity_check") == ["ok"]
    assert stored_in(url, tmp_path / "restored.db") == full.rows()


def test_conflict_runs_the_use_case_again_on_the_new_state(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged()
    full.sql("UPDATE t SET text = 'first' WHERE v = 7")
    seen = []

    def use_case(db: peewee.Database) -> Any:
        seen.append(db.execute_sql("SELECT text FROM t WHERE v = 7").fetchone()[0])
        db.execute_sql("UPDATE t SET text = text || '!' WHERE v = 7")

    instance.write(use_case)
    assert [len(seen), seen[-1]] == [2, "first"]
    assert instance.rows("SELECT text FROM t WHERE v = 7") == ["first!"]


def test_checkpoint_and_evictions_lose_nothing(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged(paging=replace(_ALWAYS, cache=1))
    for number in range(1, 60, 7):
        instance.sql(f"UPDATE t SET text = 'changed' WHERE v = {number}")
        instance.replica.file.checkpoint()
        assert instance.rows("SELECT sum(length(text)) FROM t WHERE text != 'changed'")
    assert len(instance.rows("SELECT v FROM t WHERE text = 'changed'")) == len(range(1, 60, 7))
    assert instance.rows("PRAGMA integrity_check") == ["ok"]
    full.fresh_rows()
    assert instance.rows("SELECT v, text FROM t") == full.rows("SELECT v, text FROM t")


def test_vacuum_is_right(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged()
    instance.sql("DELETE FROM t WHERE v % 2")
    instance.replica.run_alone(lambda db: db.execute_sql("VACUUM"), instance.clock.now() + 10)
    assert instance.rows("PRAGMA freelist_count") == [0]
    assert instance.rows("PRAGMA integrity_check") == ["ok"]
    full.fresh_rows()
    assert instance.rows("SELECT v, text FROM t") == full.rows("SELECT v, text FROM t")


def test_vacuum_of_what_no_commit_can_hold_is_refused(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged()
    instance.replica.committer.max_bytes = 100_000
    with pytest.raises(TransactionTooLarge, match="Nothing was stored"):
        instance.replica.run_alone(lambda db: db.execute_sql("VACUUM"), instance.clock.now() + 10)
    assert instance.rows("SELECT count(*) FROM t") == [ROWS]
    instance.sql("INSERT INTO t VALUES (1000, 'later')")
    assert full.fresh_rows()[-1] == 1000


def test_without_a_sidecar_the_snapshot_is_read_through_once(paged: Callable[..., Instance], url: str) -> None:
    [sidecar] = [name for name in names_of(url) if name.endswith(".pages")]
    ObjectStore(url).delete(sidecar)
    instance = paged()
    assert counted(instance) == ["objects", "read", "read_range"]  # and the schema's block
    assert instance.replica.snapshot
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


@pytest.mark.parametrize("damage", [b"", b"LSC9", b"x" * 1000])
def test_sidecar_that_cannot_be_used_is_as_good_as_none(
    paged: Callable[..., Instance], url: str, damage: bytes
) -> None:
    [sidecar] = [name for name in names_of(url) if name.endswith(".pages")]
    ObjectStore(url).put(sidecar, damage)
    instance = paged()
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]


def test_sidecar_that_is_far_too_large_is_not_read_to_its_end(
    paged: Callable[..., Instance], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    [sidecar] = [name for name in names_of(url) if name.endswith(".pages")]
    ObjectStore(url).put(sidecar, b"LTXPAGES" + bytes(40 * 1024 * 1024))
    instance = paged()
    assert f"the sidecar of {url}" in caplog.text
    assert "has more than 16," in caplog.text
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]


def test_upper_pages_that_cannot_be_uncompressed_are_read_as_others(
    paged: Callable[..., Instance], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    [sidecar] = [name for name in names_of(url) if name.endswith(".pages")]
    body = b"".join(ObjectStore(url).read(sidecar))[:-8]
    blocks, upper = struct.unpack_from(">II", body, 128)
    groups = 136 + 12 * blocks + 4 * upper + 4 * -(-upper // 16)
    wrong = body[:groups] + b"x" * len(body[groups:])
    ObjectStore(url).put(sidecar, wrong + struct.pack(">Q", go_iso(wrong)))
    instance = paged()
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]
    assert instance.rows("PRAGMA integrity_check") == ["ok"]
    said = [line for line in caplog.messages if "cannot be uncompressed" in line]
    assert [line.startswith(f"the sidecar of {url}") for line in said] == [True]


@pytest.mark.parametrize("place", [slice(0, 2), slice(-2, None)])
def test_sidecar_of_another_object_is_found_out(
    paged: Callable[..., Instance], url: str, made: LogObject, place: slice
) -> None:
    """Of one with the same name and size, whose blocks are not those of this one: the first is read by the opening."""
    store, names = ObjectStore(url), open_log(url, Clock()).objects.names
    reader = ltx.Reader([b"".join(store.read(names.name_of(made)))])
    pages = list(reader.pages())
    (before, content), (last, end) = pages[place]
    pages[place] = (before, end), (last, content)
    other, _ = ltx.encode(reader.header, pages)
    index = PageIndex.read_through([bytes(other)])
    index.object_size = made.size
    store.put(names.sidecar_of(made), index.encode())
    instance = paged()
    assert instance.sql("PRAGMA integrity_check") == [("ok",)]
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


def test_pruned_snapshot_is_read_on_in_the_newest(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path, made: LogObject
) -> None:
    instance = paged()
    instance.replica.refresh(instance.clock.now() + 0.001)
    full.sql("UPDATE t SET text = 'newer' WHERE v = 300")
    newest = snapshot(url, tmp_path / "snapshots")
    assert newest.max_txid > made.max_txid
    store = ObjectStore(url)
    for name in names_of(url):
        if f"{made.max_txid:016x}." in name:
            store.delete(name)

    def use_case(db: peewee.Database) -> Any:
        return db.execute_sql("SELECT text FROM t WHERE v = 300").fetchone()[0]

    assert instance.write(use_case) == "newer"
    assert instance.replica.visible == full.replica.visible
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


def test_reopened_file_is_never_older_than_it_was(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path, made: LogObject
) -> None:
    instance = paged()
    full.sql("DELETE FROM t WHERE v = 1")
    newest = snapshot(url, tmp_path / "snapshots")
    for number in range(3):
        full.sql(f"INSERT INTO t VALUES ({2000 + number}, 'x')")
    instance.replica.refresh(instance.clock.now() + 0.001)
    shown = instance.replica.visible
    assert shown.txid > newest.max_txid
    instance.replica.lose_pages()
    instance.replica.catch_up()
    assert instance.replica.visible == shown
    assert instance.replica.is_fresh(instance.clock.now())
    assert instance.rows("SELECT max(v) FROM t") == [2002]


def test_damaged_block_names_its_object_and_is_never_an_answer(
    paged: Callable[..., Instance], url: str, made: LogObject
) -> None:
    store, names = ObjectStore(url), open_log(url, Clock()).objects.names
    name = names.name_of(made)
    body = bytearray(b"".join(store.read(name)))
    for offset in range(3000, len(body) - 20_000, 5000):
        body[offset] ^= 1
    store.put(name, bytes(body))
    instance = paged()
    with pytest.raises(LogDamaged, match=name):
        instance.rows("SELECT sum(length(text)) FROM t")
    with pytest.raises(LogDamaged, match=name):
        instance.sql("DELETE FROM t")
    assert instance.replica.visible.txid == made.max_txid


def test_store_that_is_away_is_told_and_later_all_is_well(paged: Callable[..., Instance], full: Instance) -> None:
    instance = paged()

    def away(verb: str, name: str) -> None:
        if verb == "read_range" and ".ltx" in name:
            raise StoreUnavailable("the store is away")

    instance.store.before = away
    with pytest.raises(StoreUnavailable, match="away"):
        instance.rows("SELECT sum(length(text)) FROM t")
    with pytest.raises(StoreUnavailable, match="away"):
        instance.sql("UPDATE t SET text = 'x' WHERE v > 100")
    instance.store.before = lambda verb, name: None
    assert instance.rows("SELECT count(*) FROM t WHERE text = 'x'") == [0]
    instance.sql("UPDATE t SET text = 'x' WHERE v > 100")
    assert instance.rows("SELECT count(*) FROM t WHERE text = 'x'") == [ROWS - 100]
    assert full.fresh_rows() == list(range(1, ROWS + 1))
    assert full.rows("SELECT count(*) FROM t WHERE text = 'x'") == [ROWS - 100]


def test_small_log_is_restored_as_a_whole(paged: Callable[..., Instance]) -> None:
    instance = paged(paging=replace(_ALWAYS, above=10_000_000))
    assert not instance.replica.snapshot
    assert instance.replica.is_fresh(instance.clock.now())
    assert instance.rows("SELECT count(*) FROM t") == [ROWS]


def test_lasting_file_is_never_paged(start: StartInstance, url: str, made: LogObject) -> None:
    server = start("server", url, lasting=True, paging=_ALWAYS)
    assert not server.replica.snapshot
    server.replica.close()
    assert b"SQLite format 3" in server.path.read_bytes()[:16]


def test_dates_of_followers_ascend(paged: Callable[..., Instance], full: Instance) -> None:
    """The index knows when the snapshot's last commit was made, and the next one is not dated before it."""
    instance = paged()
    instance.clock.skew_ms = -3_600_000
    instance.sql("INSERT INTO t VALUES (1000, 'x')")
    full.fresh_rows()
    stamps = [full.log.objects.header(item).timestamp for item in full.log.objects.everything() if not item.level]
    assert all(one <= two for one, two in pairwise(stamps))


class OneVersion(AnySchema):
    """Knows no schema but that of version 0."""

    def check(self, connection: apsw.Connection) -> bool:
        if version := connection.pragma("user_version"):
            raise NotServed(f"schema version {version}")
        return True


@pytest.mark.parametrize("first", ["read", "write", "write one behind"])
def test_state_that_is_not_for_this_release_is_refused_though_the_snapshot_is_for_it(
    first: str, start: StartInstance, url: str, full: Instance, made: LogObject
) -> None:
    if first == "write one behind":
        full.sql("UPDATE t SET text = 'one' WHERE v = 1")
    full.sql("PRAGMA user_version = 7")
    full.sql("UPDATE t SET text = 'two' WHERE v = 2")
    instance = start("paged", url, schema=OneVersion(), paging=_ALWAYS)
    for ask in (first, first, "write", "write", "read", "read"):
        with pytest.raises(NotServed, match="schema version 7"):
            instance.fresh_rows() if ask == "read" else instance.sql("DELETE FROM t")
    with pytest.raises(DatabaseUnavailable):
        instance.rows()
    assert full.fresh_rows() == list(range(1, ROWS + 1))
    full.sql("PRAGMA user_version = 0")
    assert instance.fresh_rows() == list(range(1, ROWS + 1))
    instance.sql("DELETE FROM t WHERE v = 1")
    assert full.fresh_rows() == list(range(2, ROWS + 1))


class FailsOnce(OneVersion):
    """While the head is looked at."""

    def __init__(self) -> None:
        self._times = count(1)

    def check(self, connection: apsw.Connection) -> bool:
        if next(self._times) == 2:
            raise apsw.IOError("cannot be read")
        return super().check(connection)


def test_head_that_could_not_be_looked_at_is_not_served(
    start: StartInstance, url: str, full: Instance, made: LogObject
) -> None:
    full.sql("PRAGMA user_version = 7")
    instance = start("paged", url, schema=FailsOnce(), paging=_ALWAYS)
    with pytest.raises(DatabaseUnavailable, match="cannot be read"):
        instance.fresh_rows()
    with pytest.raises(NotServed, match="schema version 7"):
        instance.sql("DELETE FROM t")
    assert full.fresh_rows() == list(range(1, ROWS + 1))


@pytest.mark.parametrize("first", ["read", "write"])
def test_commit_of_another_program_behind_the_snapshot_is_refused_each_time(
    first: str, paged: Callable[..., Instance], full: Instance, made: LogObject, url: str
) -> None:
    store, names, theirs = ObjectStore(url), full.log.objects.names, made.max_txid + 1
    reader = ltx.Reader(store.read(names.name(0, made.max_txid, made.max_txid)))
    header = replace(reader.header, min_txid=theirs, max_txid=theirs, node_id=0, log_id=0, predecessor=0)
    body, _ = ltx.encode(header, reader.pages())
    store.put(names.name(0, theirs, theirs), bytes(body))
    instance = paged()
    for ask in (first, "write", "read", "write"):
        with pytest.raises(LogInUse, match="is being written by another program"):
            instance.fresh_rows() if ask == "read" else instance.sql("DELETE FROM t")


def test_who_has_written_on_the_snapshot_has_been_at_the_head(paged: Callable[..., Instance]) -> None:
    instance = paged()
    assert not instance.replica.has_looked_past
    assert not instance.replica.is_fresh(float("-inf"))
    instance.sql("DELETE FROM t WHERE v = 1")
    assert instance.replica.has_looked_past
    assert instance.replica.is_fresh(float("-inf"))


def test_snapshot_that_is_replaced_by_a_shorter_one_is_opened_anew(
    paged: Callable[..., Instance], full: Instance, made: LogObject, url: str, tmp_path: Path
) -> None:
    instance, image = paged(), tmp_path / "shorter.db"
    position = full.log.restore(image)
    with closing(apsw.Connection(str(image))) as connection:
        connection.execute("DELETE FROM t WHERE v > 10; VACUUM; PRAGMA journal_mode = delete").fetchall()
    ObjectStore(url).delete(full.log.objects.names.name_of(made))
    Compactor(full.log, ObjectStore(url), Clock()).store_snapshot(image, position, tmp_path)
    with pytest.raises(SnapshotGone, match="is not the object that its index was made of"):
        instance.rows("SELECT text FROM t")
    instance.replica.lose_pages()
    assert instance.fresh_rows() == list(range(1, 11))


def test_snapshot_that_was_cut_off_is_damage(paged: Callable[..., Instance], made: LogObject, url: str) -> None:
    instance, store = paged(), ObjectStore(url)
    name = instance.log.objects.names.name_of(made)
    store.put(name, b"".join(store.read(name))[: made.size // 3])
    with pytest.raises(SnapshotGone, match="is not the object that its index was made of"):
        instance.rows("SELECT text FROM t")
    instance.replica.lose_pages()
    with pytest.raises(LogDamaged, match=r"\.ltx"):
        instance.fresh_rows()


def test_snapshot_of_a_state_that_was_taken_back_is_no_reason_to_refuse_the_newest_one(
    start: StartInstance, url: str, full: Instance, tmp_path: Path
) -> None:
    full.sql("PRAGMA user_version = 7")
    snapshot(url, tmp_path / "snapshots")
    with pytest.raises(NotServed, match="schema version 7"):
        start("early", url, schema=OneVersion(), paging=_ALWAYS)
    full.sql("PRAGMA user_version = 0")
    assert start("paged", url, schema=OneVersion(), paging=_ALWAYS).rows() == full.rows()


def test_snapshot_that_is_left_behind_gives_way_to_the_newest_though_that_has_no_sidecar(
    paged: Callable[..., Instance], full: Instance, made: LogObject, url: str, tmp_path: Path
) -> None:
    instance = paged()
    full.sql("UPDATE t SET text = 'new'")
    newest = snapshot(url, tmp_path / "snapshots")
    names = full.log.objects.names
    store = ObjectStore(url)
    store.delete(names.sidecar_of(newest))
    for txid in range(1, newest.max_txid):
        store.delete(names.name(0, txid, txid))
    assert instance.fresh_rows() == list(range(1, ROWS + 1))
    assert instance.rows("SELECT DISTINCT text FROM t") == ["new"]


def test_snapshot_that_is_deleted_while_it_is_read_through_is_looked_for_again(
    paged: Callable[..., Instance], full: Instance, made: LogObject, url: str, tmp_path: Path
) -> None:
    names, store = full.log.objects.names, ObjectStore(url)
    store.delete(names.sidecar_of(made))
    instance = paged(open=False)
    read = instance.store.read

    def read_late(name: str) -> Iterator[bytes]:
        if name == names.name_of(made):
            full.sql("UPDATE t SET text = 'new' WHERE v = 1")
            snapshot(url, tmp_path / "snapshots")
            store.delete(name)
        return read(name)

    instance.store.read = read_late  # type: ignore[method-assign]
    instance.replica.open()
    assert instance.rows("SELECT text FROM t WHERE v = 1") == ["new"]


def test_reply_that_is_too_short_is_no_damage(paged: Callable[..., Instance], made: LogObject) -> None:
    instance = paged()
    read_range = instance.store.read_range
    instance.store.read_range = lambda name, begin, end: read_range(name, begin, end)[1:]  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match=r"\.ltx: [0-9,]+ bytes came where [0-9,]+ are"):
        instance.rows("SELECT length(text) FROM t WHERE v = 200")
    instance.store.read_range = read_range  # type: ignore[method-assign]
    assert instance.rows("SELECT length(text) FROM t WHERE v = 200") == [600]


def test_what_is_new_is_read_ahead(paged: Callable[..., Instance]) -> None:
    instance = paged()
    for _ in instance.replica.read_ahead():
        pass
    counted(instance)
    assert instance.rows("SELECT length(text) FROM t ORDER BY v DESC LIMIT 10") == [600] * 10
    assert counted(instance) == []
    assert instance.rows("SELECT sum(length(text)) FROM t") == [600 * ROWS]
    assert counted(instance)  # not everything was


def test_nothing_is_read_ahead_of_a_file_that_is_not_there_now_or_was_closed(
    paged: Callable[..., Instance], monkeypatch: pytest.MonkeyPatch
) -> None:
    instance = paged()
    path = instance.replica.path
    path.rename(path.with_suffix(".away"))
    assert list(instance.replica.read_ahead()) == []
    with monkeypatch.context() as patch:
        patch.setattr(btrees, "_roots", lambda *_: [2])  # it was there a moment ago
        with pytest.raises(DatabaseUnavailable, match="cannot be opened"):
            list(instance.replica.read_ahead())
    path.with_suffix(".away").rename(path)
    steps = instance.replica.read_ahead()
    next(steps)
    instance.replica.close()
    list(steps)  # which is no error
    assert list(instance.replica.read_ahead()) == []


def test_who_reads_ahead_keeps_no_file_on_disk_that_is_replaced(paged: Callable[..., Instance]) -> None:
    instance = paged()
    steps = instance.replica.read_ahead()
    next(steps)
    instance.replica.lose_pages()
    instance.fresh_rows()
    kept = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [name for name in kept if name.startswith(str(instance.path)) and name.endswith("(deleted)")]


def test_nothing_is_read_ahead_of_a_file_that_is_here(paged: Callable[..., Instance]) -> None:
    assert list(paged(paging=replace(_ALWAYS, above=10_000_000)).replica.read_ahead()) == []


def test_file_that_was_changed_much_is_opened_on_a_newer_snapshot(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paged_database, "_LEAST_ROOM", 100_000)
    instance = paged(paging=replace(_ALWAYS, cache=1))
    change = "UPDATE t SET text = hex(randomblob(300))"

    def taken() -> int:
        return instance.path.stat().st_blocks * 512

    instance.sql(change)
    instance.replica.file.checkpoint()
    assert taken() > 200_000
    counted(instance)
    instance.sql("DELETE FROM t WHERE v = 1")
    assert counted(instance)[0] == "objects"  # it looks for a newer one, and there is none
    instance.sql("DELETE FROM t WHERE v = 2")
    assert "objects" not in counted(instance)  # before it has grown it does not look again
    instance.sql("CREATE TABLE u AS SELECT * FROM t")
    instance.replica.file.checkpoint()
    snapshot(url, tmp_path / "snapshots")
    instance.sql("DELETE FROM t WHERE v = 3")
    assert taken() < 200_000
    full.fresh_rows()
    assert instance.rows("SELECT v, text FROM t") == full.rows("SELECT v, text FROM t")
    assert instance.rows("PRAGMA integrity_check") == ["ok"]


def test_new_instance_reads_what_followed_side_by_side(paged: Callable[..., Instance], full: Instance) -> None:
    for number in range(5):
        full.sql(f"INSERT INTO t VALUES ({1000 + number}, 'x')")
    instance = paged()
    together = threading.Barrier(2, timeout=10)  # broken unless two of them are under way at once
    first, last = (f"{full.replica.visible.txid - place:016x}" for place in (3, 2))

    def meet(verb: str, name: str) -> None:
        if verb == "read" and name.endswith((f"{first}.ltx", f"{last}.ltx")):
            together.wait()

    instance.store.before = meet
    instance.replica.refresh(instance.clock.now() + 0.001)
    instance.store.before = lambda verb, name: None
    assert instance.replica.visible == full.replica.visible
    assert instance.rows("SELECT max(v) FROM t") == [1004]


def test_instance_that_is_far_behind_is_opened_on_a_newer_snapshot(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "_MOST_BEHIND", 10_000)
    instance = paged()
    instance.replica.refresh(instance.clock.now() + 0.001)
    for number in range(9):
        full.sql(f"UPDATE t SET text = hex(randomblob(300)) WHERE v % 9 = {number}")
    newest = snapshot(url, tmp_path / "snapshots")
    full.sql("INSERT INTO t VALUES (1000, 'x')")
    counted(instance)
    instance.clock.seconds += 0.001
    instance.replica.refresh(instance.clock.now())
    assert instance.replica.visible == full.replica.visible
    names = [name for verb, name in instance.store.requests if verb == "read"]
    assert any(name.endswith(f"{newest.max_txid:016x}.pages") for name in names)
    assert not any("-" in name and name.endswith(f"{newest.max_txid:016x}.ltx") and "/9" in name for name in names)
    assert instance.rows("SELECT v, text FROM t") == full.rows("SELECT v, text FROM t")


def test_newest_snapshot_without_a_sidecar_gives_way_to_the_one_before(
    paged: Callable[..., Instance], full: Instance, url: str, tmp_path: Path, made: LogObject
) -> None:
    full.sql("INSERT INTO t VALUES (1000, 'x')")
    newest = snapshot(url, tmp_path / "snapshots")
    store, names = ObjectStore(url), open_log(url, Clock()).objects.names
    store.delete(names.sidecar_of(newest))
    instance = paged()
    assert instance.replica.visible.txid == made.max_txid
    assert instance.fresh_rows()[-1] == 1000
    store.delete(names.sidecar_of(made))
    later = paged("later")
    assert later.replica.visible.txid == newest.max_txid
