import random
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import LogDamaged, MaintenanceOutOfTime, ObjectExists, StoreUnavailable, TxidNotKept
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.objects import SNAPSHOTS, ObjectNames
from infra.commitlog.upkeep import compactor
from infra.commitlog.upkeep.compactor import Compactor
from infra.commitlog.upkeep.merge import write_merged
from infra.commitlog.upkeep.retention import Keep, expired
from infra.commitlog.upkeep.verify import verify_log
from infra.storage.object_store import ObjectInfo, ObjectStore
from tests.conftest import spoiled
from tests.infra.commitlog.conftest import (
    Instance,
    ManualClock,
    StartInstance,
    WatchedStore,
    litestream_restore,
    log_over,
)

RUN = 16
PAGE_SIZE = 512
A_WHILE = Keep(timedelta(hours=24), timedelta(days=7), timedelta(days=30))


class Watched(WatchedStore):
    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None:
        self._around("put", name, lambda: self.store.put(name, body, written_at))

    def delete(self, name: str) -> None:
        self._around("delete", name, lambda: self.store.delete(name))

    def remove_unfinished(self) -> None:
        self.store.remove_unfinished()


def maintenance_of(url: str, **options: int) -> Compactor:
    clock = Clock()
    return Compactor(open_log(url, clock), ObjectStore(url), clock, **options)


def names(url: str, level: int) -> list[str]:
    directory = ObjectNames(url).directory(level)
    return [info.name.rpartition("/")[2] for info in ObjectStore(url).objects(directory)]


def name(low: int, high: int) -> str:
    return f"{low:016x}-{high:016x}.ltx"


@pytest.fixture
def writer(start: StartInstance, url: str) -> Callable[[int], Instance]:
    """Writes until the log has so many commits."""
    instance = start("writer", url)
    instance.sql("CREATE TABLE t (v)")

    def write(end: int) -> Instance:
        for n in range(instance.replica.visible.txid + 1, end + 1):
            instance.sql(f"INSERT INTO t VALUES ({n})")
        return instance

    return write


def synthetic_log(directory: Path, commits: int) -> str:
    """One page in each, the first two being the whole database."""
    store = directory / "ltx" / "0"
    store.mkdir(parents=True)
    predecessor = 0
    for txid in range(1, commits + 1):
        pages = [1, 2] if txid == 1 else [txid % 2 + 1]
        header = ltx.Header(PAGE_SIZE, 2, txid, txid, 1_700_000_000_000 + txid, predecessor, txid)
        body, predecessor = ltx.encode(header, [(page, str(txid).encode().ljust(PAGE_SIZE, b".")) for page in pages])
        (store / name(txid, txid)).write_bytes(body)
    return directory.as_uri()


@pytest.mark.e2e
def test_start_after_ten_thousand_commits_reads_a_few_dozen_objects(tmp_path: Path) -> None:
    commits = 2 * RUN**3 + 7 * RUN**2 + 15 * RUN + 15  # 10,239; only more of the larger runs would be worse
    url = synthetic_log(tmp_path / "log", commits)
    assert maintenance_of(url).merge(tmp_path) == sum(commits // RUN**level for level in (1, 2, 3))
    store = WatchedStore(ObjectStore(url))
    log = CommitLog(store, store, ManualClock(), random.Random(), parallel=1)
    assert log.restore(tmp_path / "restored").txid == commits
    verbs = [verb for verb, _ in store.requests]
    assert verbs.count("read") == 2 + 7 + 15 + 15
    assert verbs.count("objects") == 4  # one for each level that is there
    assert len(log.objects.towards_the_head()) < 45


def test_runs_are_aligned_and_everybody_makes_the_same(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    writer(2 * RUN + 5)
    first = maintenance_of(url)
    assert first.merge(tmp_path) == 2
    assert names(url, 1) == [name(1, 16), name(17, 32)]
    path = ObjectNames(url).name(1, 17, 32)
    store = ObjectStore(url)
    made = b"".join(store.read(path))
    store.delete(path)
    assert maintenance_of(url).merge(tmp_path) == 1
    assert b"".join(store.read(path)) == made
    assert maintenance_of(url).merge(tmp_path) == 0
    assert (first.has_run(47), first.has_run(48)) == (False, True)


def test_conflict_of_several_that_merge_leaves_the_run_there(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """The store says so, and has stored none of them."""
    writer(RUN)
    watched, clock = Watched(ObjectStore(url)), Clock()

    def conflict(verb: str, name: str) -> None:
        if verb == "create":
            raise ObjectExists(name)

    watched.before = conflict
    assert Compactor(open_log(url, clock), watched, clock).merge(tmp_path) == 1
    assert names(url, 1) == [name(1, RUN)]


@pytest.mark.e2e
def test_litestream_restores_after_every_kind_of_step(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    instance = writer(70)
    steps = maintenance_of(url, run=4)
    expected = open_log(url, Clock())

    def check(what: str) -> None:
        ours, theirs = tmp_path / f"ours-{what}", tmp_path / f"theirs-{what}"
        expected.restore(ours)
        assert litestream_restore(url, theirs).read_bytes() == ours.read_bytes()

    steps.merge(tmp_path)
    assert [len(names(url, level)) for level in (1, 2, 3, 4)] == [17, 4, 1, 0]
    check("merged")
    image = tmp_path / "image"
    position = steps.log.restore(image)
    snapshot = steps.store_snapshot(image, position, tmp_path)
    check("snapshot")
    instance.sql("INSERT INTO t VALUES ('later')")
    check("commit on top")
    later = datetime.now(UTC) + timedelta(hours=25)
    steps.delete(expired(steps.everything(), snapshot.max_txid, later, A_WHILE))
    assert len(names(url, 0)) == 71 - 68
    check("commits deleted")
    steps.delete(expired(steps.everything(), snapshot.max_txid, later + timedelta(days=10), A_WHILE))
    assert names(url, 1) == []
    check("runs deleted")


def test_large_objects_go_up_in_parts_and_are_dated(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    instance = writer(RUN)
    steps = maintenance_of(url, one_request=0)
    steps.merge(tmp_path)
    image = tmp_path / "image"
    steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    for seconds in (0.002, 1.1):  # Litestream refuses what is past the last one, by a clock of whole seconds
        time.sleep(seconds)
        instance.sql("INSERT INTO t VALUES ('later')")
    ObjectStore(url).delete(ObjectNames(url).name(0, 5, 5))  # so that the run or the snapshot is read
    [later] = [item for item in steps.everything() if item.max_txid == RUN + 1]
    moment = datetime.fromtimestamp(steps.log.objects.header(later).timestamp / 1000, UTC).isoformat()
    restored = litestream_restore(url, tmp_path / "at", "-timestamp", moment.replace("+00:00", "Z"))
    assert restored.read_bytes() == image.read_bytes()


YEAR_MS = 365 * 24 * 3600 * 1000


def date(url: str, level: int, low: int, high: int) -> int:
    return ltx.decode_header(ObjectStore(url).read_range(ObjectNames(url).name(level, low, high), 0, 100)).timestamp


@pytest.mark.e2e
def test_runs_and_snapshots_are_dated_by_the_store_where_a_writer_cannot_be_right(
    writer: Callable[[int], Instance], start: StartInstance, url: str, tmp_path: Path
) -> None:
    began = int(time.time() * 1000)
    instance = writer(4)
    clock = instance.clock
    clock.skew_ms = YEAR_MS
    for txid in range(5, RUN + 1):
        start(f"writer of {txid}", url).sql(f"INSERT INTO t VALUES ({txid})")
    clock.skew_ms = 0
    instance.fresh_rows()
    writer(RUN + 1)
    assert date(url, 0, RUN, RUN) > began + YEAR_MS - 1000
    steps = maintenance_of(url, run=4)
    steps.merge(tmp_path)
    image = tmp_path / "image"
    position = steps.log.restore(image)
    steps.store_snapshot(image, position, tmp_path)
    for made in ((1, 5, 8), (1, 13, 16), (2, 1, 16), (9, 1, RUN + 1)):
        assert began <= date(url, *made) <= time.time() * 1000 + 1010, made
    assert steps.misdated
    assert (steps.misdated.count, steps.misdated.first, steps.misdated.last) == (12, 5, 16)
    assert steps.misdated.ahead > YEAR_MS // 1000 - 60
    store, path = ObjectStore(url), ObjectNames(url).name(1, 5, 8)
    made_first = b"".join(store.read(path))
    store.delete(path)
    maintenance_of(url, run=4).merge(tmp_path)
    assert b"".join(store.read(path)) == made_first, "whoever else makes it makes the same"
    moment = datetime.now(UTC) + timedelta(seconds=1)
    time.sleep(2.1)  # Litestream refuses what is past the last one, by a clock of whole seconds
    writer(RUN + 2)
    theirs = litestream_restore(url, tmp_path / "theirs", "-timestamp", moment.isoformat().replace("+00:00", "Z"))
    assert theirs.read_bytes() == image.read_bytes()


def test_run_keeps_the_date_of_its_writer_when_the_stores_clock_went_back(
    tmp_path: Path,
) -> None:
    url = synthetic_log(tmp_path / "log", RUN + 1)

    class Back(ObjectStore):
        def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
            last = f"{RUN:016x}.ltx"
            return [
                replace(info, modified=datetime(1970, 1, 2, tzinfo=UTC)) if info.name.endswith(last) else info
                for info in super().objects(directory, after)
            ]

    clock = Clock()
    Compactor(open_log(url, clock), Back(url), clock).merge(tmp_path)
    assert date(url, 1, 1, RUN) == date(url, 0, RUN, RUN)


def test_date_after_that_of_a_later_commit_is_named_though_the_store_tells_nothing(tmp_path: Path) -> None:
    """As in a log that was copied."""
    url = synthetic_log(tmp_path / "log", 2)
    store, path = ObjectStore(url), ObjectNames(url).name(0, 2, 2)
    header = replace(ltx.decode_header(store.read_range(path, 0, 100)), timestamp=1_600_000_000_000)
    store.put(path, bytes(ltx.encode(header, [(1, bytes(PAGE_SIZE))])[0]))
    findings = verify_log(open_log(url, Clock()), tmp_path / "restored")
    [warning] = findings.warnings
    assert warning.startswith("1 commit (TXID 0000000000000001) cannot be of the date")


def test_run_that_is_too_large_stays_as_it_is(
    writer: Callable[[int], Instance], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer(RUN)
    monkeypatch.setattr(compactor, "_LARGEST_RUN", 100)
    assert maintenance_of(url).merge(tmp_path) == 0


def test_commit_that_its_successor_does_not_name_is_not_merged(tmp_path: Path) -> None:
    """Created under a number whose object was merged and deleted long ago, by an instance that has slept."""
    url = synthetic_log(tmp_path / "log", 2 * RUN + 1)
    store = ObjectStore(url)
    predecessor = ltx.decode_header(store.read_range(ObjectNames(url).name(0, 32, 32), 0, 100)).predecessor
    leftover, _ = ltx.encode(ltx.Header(PAGE_SIZE, 2, 32, 32, 1_700_000_000_032, predecessor, 99), [(1, bytes(512))])
    store.put(ObjectNames(url).name(0, 32, 32), bytes(leftover))
    assert maintenance_of(url).merge(tmp_path) == 1
    assert names(url, 1) == [name(1, 16)]
    with pytest.raises(TxidNotKept):
        open_log(url, Clock()).restore(tmp_path / "leftover", 32)


def test_run_with_a_commit_of_another_history_is_an_error(tmp_path: Path) -> None:
    url = synthetic_log(tmp_path / "log", RUN + 1)
    other, _ = ltx.encode(ltx.Header(PAGE_SIZE, 2, 5, 5, 1_700_000_000_005, 99, 1), [(1, bytes(PAGE_SIZE))])
    ObjectStore(url).put(ObjectNames(url).name(0, 5, 5), bytes(other))
    with pytest.raises(LogDamaged, match="belongs to another history"):
        maintenance_of(url).merge(tmp_path)
    assert names(url, 1) == []


def test_run_whose_commits_were_deleted_meanwhile_is_left_alone(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """By another run of maintenance, while this one slept."""
    writer(RUN)
    store = Watched(ObjectStore(url))
    clock = ManualClock()
    steps = Compactor(log_over(store, clock), store, clock)
    store.before = lambda verb, path: store.store.delete(ObjectNames(url).name(0, 5, 5)) if verb == "read" else None
    assert steps.merge(tmp_path) == 0


def test_leftover_just_before_commits_that_are_kept_hides_only_what_it_has_replaced(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """A run of maintenance has deleted one commit, and a sleeper who wanted to begin the log has taken its number."""
    writer(RUN + 4)
    steps = maintenance_of(url)
    steps.merge(tmp_path)
    image = tmp_path / "image"
    snapshot = steps.store_snapshot(image, steps.log.restore(image, RUN), tmp_path)
    store, path = ObjectStore(url), ObjectNames(url).name(0, 1, 1)
    header = ltx.decode_header(store.read_range(path, 0, ltx.HEADER_SIZE))
    store.delete(path)
    body, _ = ltx.encode(replace(header, log_id=99), [(1, bytes(header.page_size))])
    store.create(path, bytes(body))
    for number in (1, 2, RUN - 1):
        with pytest.raises(TxidNotKept):
            open_log(url, Clock()).restore(tmp_path / f"at-{number}", number)
    assert open_log(url, Clock()).restore(tmp_path / f"at-{RUN + 2}", RUN + 2).txid == RUN + 2
    findings = verify_log(open_log(url, Clock()), tmp_path / "scratch")
    assert (findings.problems, len(findings.leftovers)) == ([], 1)
    store.delete(ObjectNames(url).name(1, 1, RUN))
    assert maintenance_of(url).merge(tmp_path) == 0
    store.delete(ObjectNames(url).name(SNAPSHOTS, 1, snapshot.max_txid))
    with pytest.raises(LogDamaged, match="is of the log"):  # nothing could have freed the number
        maintenance_of(url).merge(tmp_path)


@pytest.mark.parametrize("starts_anew", [False, True])
def test_sleep_in_the_middle_of_a_read_takes_no_leftover_before_a_commit_for_damage(
    start: StartInstance, file_url: str, tmp_path: Path, starts_anew: bool
) -> None:
    """The same, and the commit after it is still there."""
    sleeper = start("sleeper", file_url)
    sleeper.sql("CREATE TABLE t (v)")
    other = start("other", file_url)
    for number in range(4):
        other.sql(f"INSERT INTO t VALUES ({number})")
    steps, store, names = maintenance_of(file_url), ObjectStore(file_url), ObjectNames(file_url)

    def snapshot(txid: int) -> None:
        image = tmp_path / f"at-{txid}"
        steps.store_snapshot(image, steps.log.restore(image, txid), tmp_path)

    snapshot(4)
    for txid in (1, 2, 3):
        store.delete(names.name(0, txid, txid))
    slept: list[str] = []

    def sleep(verb: str, name: str) -> None:
        if verb == "read" and name == names.name(0, 5, 5) and not slept:
            slept.append(name)
            snapshot(6)
            header = ltx.decode_header(store.read_range(name, 0, ltx.HEADER_SIZE))
            body, _ = ltx.encode(replace(header, node_id=99), [(2, bytes(header.page_size))])
            for txid in (4, 5):
                store.delete(names.name(0, txid, txid))
            store.create(name, bytes(body))

    reader = start("anew", file_url, open=False) if starts_anew else sleeper
    reader.store.before = sleep
    if starts_anew:
        reader.replica.open()
    assert (reader.rows() if starts_anew else reader.fresh_rows()) == [0, 1, 2, 3]
    assert slept


@pytest.mark.parametrize("starts_anew", [False, True])
def test_sleep_in_the_middle_of_a_read_takes_no_leftover_for_a_commit(
    start: StartInstance, file_url: str, tmp_path: Path, starts_anew: bool
) -> None:
    """While the request is on its way the commit is merged and deleted, and its number used again."""
    sleeper = start("sleeper", file_url)
    sleeper.sql("CREATE TABLE t (v)")
    other = start("other", file_url)
    other.sql("INSERT INTO t VALUES ('real')")
    store = ObjectStore(file_url)
    path = ObjectNames(file_url).name(0, 3, 3)
    header = ltx.decode_header(store.read_range(path, 0, 100))
    seen: list[int] = []

    def sleep(verb: str, name: str) -> None:
        if verb == "read" and name == path and not seen:
            seen.append(0)
            sleeper.clock.seconds += 30 * 3600
            for _ in range(13):
                other.sql("INSERT INTO t VALUES ('later')")
            maintenance_of(file_url).merge(tmp_path)
            for txid in range(1, RUN):
                store.delete(ObjectNames(file_url).name(0, txid, txid))
            body, _ = ltx.encode(replace(header, node_id=99), [(2, bytes(header.page_size))])
            store.put(path, bytes(body))
        elif seen and verb == "directories":
            seen.append(sleeper.replica.visible.txid)

    reader = start("anew", file_url, open=False) if starts_anew else sleeper
    reader.store.before = sleep
    if starts_anew:
        reader.replica.open()
    else:
        sleeper.sql("INSERT INTO t VALUES ('own')")  # it loses the number to the other one, and reads what that was
        assert 3 not in seen
    assert reader.rows() == ["later"] * 13 + ["own"] * (not starts_anew) + ["real"]


@pytest.mark.parametrize("damage", ["a byte", "another run"])
def test_commits_stay_when_the_run_that_holds_them_is_damaged(
    writer: Callable[[int], Instance], url: str, tmp_path: Path, damage: str
) -> None:
    writer(2 * RUN + 1)
    steps = maintenance_of(url)
    steps.merge(tmp_path)
    image = tmp_path / "image"
    snapshot = steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    store = ObjectStore(url)
    body, other = (b"".join(store.read(ObjectNames(url).name(1, low, low + RUN - 1))) for low in (1, RUN + 1))
    store.put(ObjectNames(url).name(1, 1, RUN), spoiled(body) if damage == "a byte" else other)
    gone = expired(steps.everything(), snapshot.max_txid, datetime.now(UTC) + timedelta(hours=25), A_WHILE)
    assert len(gone) == 2 * RUN
    with pytest.raises(LogDamaged, match=name(1, RUN)):
        steps.delete(gone)
    assert len(names(url, 0)) == 2 * RUN + 1


def test_nothing_goes_for_a_snapshot_that_is_damaged(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """The old one that a restore to the beginning of the week needs."""
    instance = writer(RUN)
    steps = maintenance_of(url)
    steps.merge(tmp_path)
    image, later = tmp_path / "image", tmp_path / "later"
    base = steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    instance.sql("INSERT INTO t VALUES (1)")
    newest = steps.store_snapshot(later, steps.log.restore(later), tmp_path)
    store, path = ObjectStore(url), ObjectNames(url).name(9, 1, base.max_txid)
    store.put(path, spoiled(b"".join(store.read(path))))
    week = datetime.now(UTC) + timedelta(days=8)
    items = [replace(item, modified=week) if item.max_txid > RUN else item for item in steps.everything()]
    gone = expired(items, newest.max_txid, week, A_WHILE)
    assert len(gone) == RUN + 1
    with pytest.raises(LogDamaged, match=name(1, RUN)):
        steps.delete(gone)
    assert len(names(url, 0)) == RUN + 1


def test_commits_are_deleted_one_by_one_and_none_before_the_one_below_it_is_gone(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """All that says that a number was never free again rests on this order: no bulk delete, no second thread."""
    writer(2 * RUN + 1)
    store, clock = Watched(ObjectStore(url)), ManualClock()
    steps = Compactor(open_log(url, clock), store, clock)
    steps.merge(tmp_path)
    left = []
    store.before = lambda verb, name: left.append((name, names(url, 0))) if verb == "delete" else None
    keep = Keep(timedelta(0), timedelta(0), timedelta(0))
    log = open_log(url, clock)
    image = tmp_path / "image.db"
    snapshot = steps.store_snapshot(image, log.restore(image), tmp_path)
    now = datetime.now(UTC) + timedelta(days=2)
    steps.delete(one for one in expired(steps.everything(), snapshot.max_txid, now, keep) if not one.item.level)
    assert [gone.rpartition("/")[2] for gone, _ in left] == [name(n, n) for n in range(1, 2 * RUN + 1)]
    assert all(gone.endswith(there[0]) for gone, there in left)
    assert names(url, 0) == [name(2 * RUN + 1, 2 * RUN + 1)]


def test_out_of_time_it_stops_between_two_runs_and_goes_on_later(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    writer(3 * RUN)
    steps = maintenance_of(url)
    checks = iter([None, None, MaintenanceOutOfTime("now")])

    def check() -> None:
        if error := next(checks):
            raise error

    with pytest.raises(MaintenanceOutOfTime):
        steps.merge(tmp_path, check)
    assert len(names(url, 1)) == 2
    assert steps.merge(tmp_path) == 1
    assert list(tmp_path.glob("*.ltx")) == []


def test_failing_store_leaves_no_hole_between_runs(
    writer: Callable[[int], Instance], file_url: str, url: str, tmp_path: Path
) -> None:
    writer(3 * RUN)
    store = Watched(ObjectStore(url))
    clock = Clock()
    steps = Compactor(open_log(url, clock), store, clock)

    def fail(verb: str, path: str) -> None:
        if verb == "create" and path.endswith(name(17, 32)):
            raise StoreUnavailable("away")

    store.before = fail
    with pytest.raises(StoreUnavailable):
        steps.merge(tmp_path)
    assert names(url, 1) == [name(1, 16)]
    store.before = lambda verb, path: None
    assert steps.merge(tmp_path) == 2


def test_snapshot_is_due_when_much_has_followed_or_a_day_has_passed(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    instance = writer(3)
    steps = maintenance_of(url)
    now = datetime.now(UTC)
    assert steps.snapshots().is_due(now)
    instance.sql("INSERT INTO t VALUES (randomblob(100000))")
    image = tmp_path / "image"
    steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    assert not steps.snapshots().is_due(now + timedelta(days=2)), "nothing has followed"
    instance.sql("INSERT INTO t VALUES (1)")
    assert not steps.snapshots().is_due(now)
    assert steps.snapshots().is_due(now + timedelta(hours=25))
    instance.sql("INSERT INTO t VALUES (randomblob(60000))")
    assert steps.snapshots().is_due(now)


def test_log_with_runs_that_begin_elsewhere_is_read_as_well(
    writer: Callable[[int], Instance], url: str, tmp_path: Path
) -> None:
    """Litestream's own are not aligned."""
    writer(40)
    log, store, steps = open_log(url, Clock()), ObjectStore(url), maintenance_of(url)
    changes = [log.objects.read(item) for item in log.objects.everything()[4:30]]
    write_merged(changes, tmp_path / "run.ltx", changes[-1].header.timestamp)
    for change in changes:
        change.close()
    store.put(ObjectNames(url).name(1, 5, 30), tmp_path / "run.ltx")
    image, at_20, again = tmp_path / "image", tmp_path / "at 20", tmp_path / "again"
    expected = log.restore(image)
    steps.store_snapshot(at_20, log.restore(at_20, 20), tmp_path)
    for txid in range(5, 31):
        store.delete(ObjectNames(url).name(0, txid, txid))
    assert log.restore(again) == expected
    assert again.read_bytes() == image.read_bytes()


def test_raced_objects_go_when_they_are_a_day_old_and_nothing_else_does(url: str) -> None:
    store, steps = ObjectStore(url), maintenance_of(url)
    litter = {f"create-if-absent-{number:016x}" for number in range(3)}
    others = {
        "create-if-absent",
        "create-if-absent-",
        "create-if-absent-0123456789ABCDEF",
        "maintenance.json",
        "drill.json",
    }
    for name in litter | others:
        store.create(name, b"x")
    now = datetime.now(UTC)
    steps.delete_raced(now + timedelta(hours=23))
    assert {info.name for info in store.objects()} == litter | others
    steps.delete_raced(now + timedelta(hours=25))
    assert {info.name for info in store.objects()} == others


def test_leftover_under_a_number_that_a_snapshot_has_is_no_gap(
    start: StartInstance, file_url: str, tmp_path: Path
) -> None:
    """A sleeper's, made after the true commit was merged and deleted: it follows what the sleeper has seen last."""
    writer, sleeper = start("writer", file_url), start("sleeper", file_url)
    writer.sql("CREATE TABLE t (v)")
    sleeper.replica.catch_up()
    before = sleeper.replica.visible
    writer.sql("INSERT INTO t VALUES (1)")
    store, image = ObjectStore(file_url), tmp_path / "image.db"
    steps = Compactor(open_log(file_url, Clock()), store, Clock())
    steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    writer.sql("INSERT INTO t VALUES (2)")
    names = ObjectNames(file_url)
    true = names.name(0, before.txid + 1, before.txid + 1)
    header = replace(ltx.decode_header(store.read_range(true, 0, ltx.HEADER_SIZE)), node_id=1)
    leftover, _ = ltx.encode(header, [(1, bytes(header.page_size))])
    for txid in range(1, before.txid + 2):
        store.delete(names.name(0, txid, txid))
    store.create(true, leftover)
    sleeper.replica.catch_up()
    assert sleeper.rows() == [1, 2]
    assert sleeper.replica.visible == writer.replica.visible
