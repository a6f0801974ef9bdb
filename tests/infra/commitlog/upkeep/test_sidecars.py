"""A snapshot's sidecar is there with it, made anew when it is of no use, and goes with it."""

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import LogDamaged, MaintenanceOutOfTime, ObjectMissing, StoreUnavailable
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import LogObject
from infra.commitlog.log import open_log
from infra.commitlog.objects import SNAPSHOTS, ObjectNames
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.paging.sidecar import LEAST_SNAPSHOT
from infra.commitlog.upkeep.compactor import Compactor, Snapshots
from infra.commitlog.upkeep.retention import ExpiredObject
from infra.commitlog.upkeep.verify import verify_log
from infra.storage.object_store import ObjectStore
from tests.conftest import spoiled
from tests.infra.commitlog.conftest import Instance, StartInstance
from tests.infra.commitlog.upkeep.test_compactor import Watched

NOW = datetime.now(UTC)
TWO_DAYS = timedelta(days=2)


@pytest.fixture
def writer(start: StartInstance, url: str) -> Instance:
    """Of a log whose snapshot is large enough."""
    instance = start("writer", url)
    instance.sql("CREATE TABLE t (id INTEGER PRIMARY KEY, v)", "CREATE INDEX by_v ON t (v)")
    instance.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1500) "
        "INSERT INTO t (v) SELECT hex(randomblob(200)) FROM n"
    )
    return instance


class Upkeep:
    """Maintenance's steps over a store that is watched."""

    def __init__(self, url: str, scratch: Path, **options: int) -> None:
        self.url = url
        self.names = ObjectNames(url)
        self.watched = Watched(ObjectStore(url))
        clock = Clock()
        self.steps = Compactor(open_log(url, clock), self.watched, clock, **options)
        self.scratch = scratch
        scratch.mkdir()

    def snapshot(self) -> LogObject:
        image = self.scratch / "image.db"
        try:
            return self.steps.store_snapshot(image, self.steps.log.restore(image), self.scratch)
        finally:
            image.unlink()

    def mend(self, snapshot: LogObject, now: datetime = NOW) -> LogObject | None:
        found = self.steps.mend_sidecars(snapshot, self.scratch, now)
        assert list(self.scratch.iterdir()) == []
        return found

    def read(self, name: str) -> bytes:
        return b"".join(self.watched.store.read(name))

    def sidecar(self, snapshot: LogObject) -> bytes:
        return self.read(self.names.sidecar_of(snapshot))

    def replace(self, snapshot: LogObject, body: bytes) -> None:
        self.watched.store.put(self.names.sidecar_of(snapshot), body)

    def stored(self) -> list[str]:
        """The names of what is in the directory of snapshots."""
        return sorted(info.name for info in self.watched.store.objects(self.names.directory(SNAPSHOTS)))

    def names_of(self, *snapshots: LogObject) -> list[str]:
        return sorted(name for item in snapshots for name in (self.names.name_of(item), self.names.sidecar_of(item)))


@pytest.fixture
def upkeep(writer: Instance, url: str, tmp_path: Path) -> Upkeep:
    return Upkeep(url, tmp_path / "scratch")


@pytest.mark.parametrize("one_request", [0, 1 << 30])
def test_snapshot_is_never_seen_without_its_sidecar(
    writer: Instance, url: str, tmp_path: Path, one_request: int
) -> None:
    upkeep = Upkeep(url, tmp_path / "scratch", one_request=one_request)
    seen: list[list[str]] = []
    upkeep.watched.after = lambda verb, name: seen.append(upkeep.stored())
    snapshot = upkeep.snapshot()
    name, sidecar = upkeep.names_of(snapshot)
    assert seen == [[sidecar], [name, sidecar]]


def test_sidecar_says_what_the_snapshot_says(upkeep: Upkeep) -> None:
    snapshot = upkeep.snapshot()
    assert snapshot.size >= LEAST_SNAPSHOT
    body = upkeep.read(upkeep.names.name_of(snapshot))
    index, read = PageIndex.decode(upkeep.sidecar(snapshot)), PageIndex.read_through([body])
    assert (index.header, index.checksum, index.object_size) == (read.header, read.checksum, snapshot.size)
    assert index.blocks > 4
    pages = dict(ltx.Reader([body]).pages())
    for block in range(index.blocks):
        begin, end = index.span(block, block)
        assert (begin, end) == read.span(block, block)
        assert index.pages(block, body[begin:end])
    upper = {number: page for number in pages if (page := index.upper(number))}
    assert len(upper) > 5
    assert upper.items() <= pages.items()


def test_small_snapshot_has_none(start: StartInstance, url: str, tmp_path: Path) -> None:
    start("small", url).sql("CREATE TABLE t (v)")
    upkeep = Upkeep(url, tmp_path / "scratch")
    snapshot = upkeep.snapshot()
    assert upkeep.stored() == [upkeep.names.name_of(snapshot)]
    upkeep.watched.requests.clear()
    assert upkeep.mend(snapshot) is None
    assert not upkeep.steps.misses_sidecar(snapshot)
    assert upkeep.watched.requests == []


def another_snapshot(data: bytes) -> bytes:
    """What a sidecar would hold of a snapshot with the same header and size, and another checksum."""
    index = PageIndex.decode(data)
    index.checksum ^= 1
    return index.encode()


def another_size(data: bytes) -> bytes:
    index = PageIndex.decode(data)
    index.object_size += 1
    return index.encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        spoiled,
        lambda data: data[:-1],
        lambda data: data[:8] + struct.pack(">I", 2) + data[12:],
        another_snapshot,
        another_size,
    ],
    ids=["empty", "damaged", "cut off", "of another version", "of another snapshot", "of another size"],
)
def test_sidecar_of_no_use_is_made_anew(upkeep: Upkeep, spoil: Callable[[bytes], bytes]) -> None:
    snapshot = upkeep.snapshot()
    made = upkeep.sidecar(snapshot)
    upkeep.replace(snapshot, spoil(made))
    assert upkeep.steps.misses_sidecar(snapshot)
    mended = upkeep.mend(snapshot)
    assert mended
    assert mended.max_txid == snapshot.max_txid
    assert upkeep.sidecar(snapshot) == made
    assert not upkeep.steps.misses_sidecar(snapshot)


def test_missing_sidecar_of_the_newest_snapshot_is_made(upkeep: Upkeep, writer: Instance) -> None:
    older = upkeep.snapshot()
    writer.sql("INSERT INTO t (v) VALUES ('later')")
    newest = upkeep.snapshot()
    made = upkeep.sidecar(newest)
    for snapshot in (older, newest):
        upkeep.watched.store.delete(upkeep.names.sidecar_of(snapshot))
    assert upkeep.mend(newest)
    assert upkeep.sidecar(newest) == made
    with pytest.raises(ObjectMissing):
        upkeep.sidecar(older)


def test_sound_sidecar_is_left_alone(upkeep: Upkeep) -> None:
    snapshot = upkeep.snapshot()
    upkeep.watched.requests.clear()
    assert upkeep.mend(snapshot, NOW + TWO_DAYS) is None
    assert upkeep.watched.requests == [("objects", upkeep.names.directory(SNAPSHOTS))]
    assert upkeep.stored() == upkeep.names_of(snapshot)


def test_sidecar_without_a_snapshot_goes_after_a_day(upkeep: Upkeep, writer: Instance) -> None:
    """Whoever was killed before the snapshot was there has left it, or whoever has just not stored that."""
    gone = upkeep.snapshot()
    upkeep.watched.store.delete(upkeep.names.name_of(gone))
    writer.sql("INSERT INTO t (v) VALUES ('later')")
    newest = upkeep.snapshot()
    foreign = f"{upkeep.names.directory(SNAPSHOTS)}/notes.pages"
    upkeep.watched.store.put(foreign, b"somebody's")
    assert upkeep.mend(newest) is None
    assert upkeep.names.sidecar_of(gone) in upkeep.stored()
    assert upkeep.mend(newest, NOW + TWO_DAYS) is None
    assert upkeep.stored() == sorted([*upkeep.names_of(newest), foreign])


def test_killed_before_the_snapshot_is_stored_it_is_made_as_if_nothing_had_been(upkeep: Upkeep) -> None:
    def die(verb: str, name: str) -> None:
        if name.endswith(".ltx"):
            raise StoreUnavailable("as if it had been killed")

    upkeep.watched.before = die
    with pytest.raises(StoreUnavailable):
        upkeep.snapshot()
    assert upkeep.steps.log.objects.snapshots() == []
    upkeep.watched.before = lambda verb, name: None
    snapshot = upkeep.snapshot()
    assert upkeep.stored() == upkeep.names_of(snapshot)
    assert upkeep.mend(snapshot) is None


@pytest.mark.parametrize("ending", [".ltx", ".pages"])
def test_several_that_make_the_same_at_once_do_no_harm(upkeep: Upkeep, tmp_path: Path, ending: str) -> None:
    other = Upkeep(upkeep.url, tmp_path / "other")

    def meanwhile(verb: str, name: str) -> None:
        if name.endswith(ending):
            upkeep.watched.before = lambda verb, name: None
            other.snapshot()

    upkeep.watched.before = meanwhile
    snapshot = upkeep.snapshot()
    assert upkeep.stored() == upkeep.names_of(snapshot)
    assert not upkeep.steps.misses_sidecar(snapshot)


def test_sidecar_goes_before_its_snapshot(upkeep: Upkeep, writer: Instance) -> None:
    """Killed in between, it leaves a snapshot that everybody can read."""
    old = upkeep.snapshot()
    writer.sql("INSERT INTO t (v) VALUES ('later')")
    newest = upkeep.snapshot()

    def die(verb: str, name: str) -> None:
        if verb == "delete" and name.endswith(".ltx"):
            raise StoreUnavailable("as if it had been killed")

    upkeep.watched.before = die
    with pytest.raises(StoreUnavailable):
        upkeep.steps.delete([ExpiredObject(old, "old", newest)])
    assert upkeep.stored() == sorted([upkeep.names.name_of(old), *upkeep.names_of(newest)])
    upkeep.watched.before = lambda verb, name: None
    for _ in range(2):
        upkeep.steps.delete([ExpiredObject(old, "old", newest)])
        assert upkeep.stored() == upkeep.names_of(newest)


def test_snapshot_that_was_not_what_was_written_goes_with_its_sidecar(upkeep: Upkeep) -> None:
    upkeep.steps.discard(upkeep.snapshot())
    assert upkeep.stored() == []


def test_snapshot_that_is_gone_needs_no_sidecar(upkeep: Upkeep) -> None:
    snapshot = upkeep.snapshot()
    upkeep.watched.after = lambda verb, name: upkeep.watched.store.delete(upkeep.names.name_of(snapshot))
    assert upkeep.mend(snapshot) is None
    upkeep.watched.store.delete(upkeep.names.sidecar_of(snapshot))
    assert upkeep.mend(snapshot) is None
    assert upkeep.stored() == []


def test_snapshot_that_is_damaged_gets_no_sidecar(upkeep: Upkeep) -> None:
    snapshot = upkeep.snapshot()
    name = upkeep.names.name_of(snapshot)
    upkeep.watched.store.delete(upkeep.names.sidecar_of(snapshot))
    upkeep.watched.store.put(name, spoiled(upkeep.read(name)))
    with pytest.raises(LogDamaged, match=name):
        upkeep.mend(snapshot)
    assert upkeep.stored() == [name]


def test_time_that_is_over_ends_it_without_a_trace(upkeep: Upkeep) -> None:
    snapshot = upkeep.snapshot()
    upkeep.watched.store.delete(upkeep.names.sidecar_of(snapshot))

    def check() -> None:
        raise MaintenanceOutOfTime("over")

    with pytest.raises(MaintenanceOutOfTime):
        upkeep.steps.mend_sidecars(snapshot, upkeep.scratch, NOW, check)
    assert list(upkeep.scratch.iterdir()) == []
    assert upkeep.stored() == [upkeep.names.name_of(snapshot)]


def test_listings_tell_which_snapshots_have_one(upkeep: Upkeep, writer: Instance) -> None:
    made = []
    for n in range(3):
        writer.sql(f"INSERT INTO t (v) VALUES ('{n}')")
        made.append(upkeep.snapshot())
    upkeep.watched.store.delete(upkeep.names.sidecar_of(made[2]))
    upkeep.watched.store.delete(upkeep.names.name_of(made[0]))
    objects = upkeep.steps.log.objects
    assert [(item.max_txid, has) for item, has in objects.snapshots()] == [
        (made[2].max_txid, False),
        (made[1].max_txid, True),
    ]
    assert {item.max_txid for item in objects.everything() if item.level == SNAPSHOTS} == {
        item.max_txid for item in made[1:]
    }
    assert objects.checksum(made[1]) == PageIndex.decode(objects.sidecar(made[1])).checksum


def test_log_with_bad_sidecars_is_sound(upkeep: Upkeep, tmp_path: Path) -> None:
    snapshot = upkeep.snapshot()
    log = upkeep.steps.log
    found = verify_log(log, tmp_path / "1.db")
    assert (found.problems, found.warnings) == ([], [])
    good = upkeep.sidecar(snapshot)
    for n, bad in enumerate([spoiled(good), another_snapshot(good), with_another_upper_page(good)]):
        upkeep.replace(snapshot, bad)
        found = verify_log(log, tmp_path / f"bad-{n}.db")
        [warning] = found.warnings
        assert f"{log.url}/{upkeep.names.sidecar_of(snapshot)}" in warning
        if "delete it" in warning:
            upkeep.watched.store.delete(upkeep.names.sidecar_of(snapshot))
        assert upkeep.mend(snapshot) is not None  # as the warning promises
        assert found.problems == []
    orphan = LogObject(SNAPSHOTS, 1, snapshot.max_txid + 1, 0, NOW)
    upkeep.replace(snapshot, good)
    upkeep.replace(orphan, good)
    assert verify_log(log, tmp_path / "orphan.db").leftovers == [
        f"{log.url}/{upkeep.names.sidecar_of(orphan)} is without its snapshot"
    ]


def test_half_of_a_large_snapshot_is_not_waited_for() -> None:
    """What follows a snapshot is read by every start."""
    mib = 1024 * 1024
    for size, follows, is_due in [
        (100 * mib, 50 * mib - 1, False),
        (100 * mib, 50 * mib, True),
        (1000 * mib, 64 * mib - 1, False),
        (1000 * mib, 64 * mib, True),
    ]:
        assert Snapshots(LogObject(SNAPSHOTS, 1, 7, size, NOW), follows, 9).is_due(NOW) is is_due


def with_another_upper_page(data: bytes) -> bytes:
    """As only a fault in what makes them can do it: whole, and not what the snapshot has."""
    index = PageIndex.decode(data)
    first, second = index._upper.numbers[1:3]
    index._upper.numbers[1], index._upper.numbers[2] = second, first
    return index.encode()
