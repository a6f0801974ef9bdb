"""A store that shows some of what comes and goes while it lists, in any order."""

import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from core.errors import ObjectMissing
from infra.clock import Clock
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.objects import COMMITS, ObjectNames
from infra.commitlog.upkeep.compactor import Compactor
from infra.commitlog.upkeep.moments import commit_before
from infra.commitlog.upkeep.verify import verify_log
from infra.storage.object_store import ObjectInfo, ObjectStore
from tests.infra.commitlog.conftest import Instance, ManualClock, StartInstance, WatchedStore, log_over


class Busy:
    """A store of which something happens while it lists commits: of what was made meanwhile it shows all but the first.

    What was deleted it shows as well.
    """

    def __init__(self, store: ObjectStore, meanwhile: Callable[[], None]) -> None:
        self.store = store
        self.listings = 0
        self.meanwhile = meanwhile

    def __getattr__(self, name: str) -> object:
        return getattr(self.store, name)

    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
        before = self.store.objects(directory, after)
        if directory != ObjectNames(self.store.url).directory(COMMITS):
            return before
        self.listings += 1
        self.meanwhile()
        shown = {info.name for info in before}
        made = [info for info in self.store.objects(directory, after) if info.name not in shown]
        return [*before, *made[1:]]


@pytest.fixture
def writer(start: StartInstance, file_url: str) -> Instance:
    instance = start("writer", file_url)
    instance.sql("CREATE TABLE t (v)")
    return instance


@pytest.fixture
def busy(writer: Instance, file_url: str) -> Busy:
    def commit() -> None:
        for _ in range(3):
            writer.sql("INSERT INTO t VALUES (1)")

    return Busy(ObjectStore(file_url), commit)


@pytest.fixture
def log(busy: Busy) -> CommitLog:
    return log_over(busy, ManualClock())  # type: ignore[arg-type]


def txids(log: CommitLog, after: int = 0) -> list[int]:
    return [item.max_txid for item in log.objects.level(COMMITS, after)]


def test_none_is_missing_before_one_that_is_shown(log: CommitLog, writer: Instance) -> None:
    begun = writer.replica.visible.txid
    found = txids(log)
    assert found == list(range(1, found[-1] + 1))
    assert found[-1] >= begun + 3


def test_the_first_one_asked_for_is_not_missing_either(log: CommitLog, writer: Instance) -> None:
    """All of those that are asked for came meanwhile."""
    begun = writer.replica.visible.txid
    found = txids(log, begun)
    assert found == list(range(begun + 1, found[-1] + 1))
    assert found


def test_writes_meanwhile_are_no_missing_objects(log: CommitLog, busy: Busy, tmp_path: Path) -> None:
    assert log.restore(tmp_path / "newest.db").txid > 2
    assert busy.listings
    assert log.restore(tmp_path / "second.db", 2).txid == 2


def test_what_an_instance_catches_up_with_is_no_gap(log: CommitLog, writer: Instance, tmp_path: Path) -> None:
    position = log.restore(tmp_path / "app.db")
    for _ in range(20):  # more than are asked for by their names
        writer.sql("INSERT INTO t VALUES (2)")
    changes = list(log.changes(position))
    assert [change.header.min_txid for change in changes] == list(
        range(position.txid + 1, position.txid + 1 + len(changes))
    )
    for change in changes:
        change.close()


def test_no_run_is_passed_over_for_a_later_one(log: CommitLog, busy: Busy, writer: Instance, tmp_path: Path) -> None:
    """Of 2 commits each: of the first one that is new one commit is hidden, and the next one is all there."""
    steps = Compactor(log, busy, ManualClock(), run=2)  # type: ignore[arg-type]
    while writer.replica.visible.txid < 4:
        writer.sql("INSERT INTO t VALUES (3)")
    for _ in range(3):
        steps.merge(tmp_path)
        made = [item.min_txid for item in log.objects.level(1)]
        assert made == list(range(1, made[-1] + 1, 2))


def test_numbers_that_are_gone_are_no_reason_to_show_less(log: CommitLog, busy: Busy, writer: Instance) -> None:
    """Such as those before a leftover: there is a gap in each listing."""
    for _ in range(8):
        writer.sql("INSERT INTO t VALUES (4)")
    names = ObjectNames(busy.store.url)
    for txid in range(2, 6):
        busy.store.delete(names.name(COMMITS, txid, txid))
    begun = writer.replica.visible.txid
    found = txids(log)
    assert found == [1, *range(6, found[-1] + 1)]
    assert found[-1] >= begun


def test_log_without_a_gap_is_listed_once(log: CommitLog, busy: Busy, writer: Instance) -> None:
    busy.meanwhile = lambda: None
    for _ in range(8):
        writer.sql("INSERT INTO t VALUES (5)")
    assert txids(log, 3) == list(range(4, writer.replica.visible.txid + 1))
    assert busy.listings == 1


def test_commits_that_a_run_holds_are_not_looked_for(
    log: CommitLog, busy: Busy, writer: Instance, file_url: str, tmp_path: Path
) -> None:
    """They are gone in a log that is quiet: its starts list as often as others."""
    busy.meanwhile = lambda: None
    for _ in range(10):
        writer.sql("INSERT INTO t VALUES (8)")
    end = writer.replica.visible.txid // 2 * 2
    merged_and_deleted(file_url, tmp_path, end)
    writer.sql("INSERT INTO t VALUES (9)")
    assert log.objects.towards_the_head()[-1].max_txid == writer.replica.visible.txid
    assert busy.listings == 1


def test_sleep_in_the_middle_of_a_listing_hides_nothing_that_is_there(
    log: CommitLog, busy: Busy, writer: Instance
) -> None:
    """All that the first listing has shown was merged and deleted before the second."""
    names, end = ObjectNames(busy.store.url), writer.replica.visible.txid

    def sleep() -> None:
        busy.meanwhile = lambda: None
        for _ in range(3):
            writer.sql("INSERT INTO t VALUES (6)")

    def delete() -> None:
        for txid in range(1, end + 4):
            busy.store.delete(names.name(COMMITS, txid, txid))

    busy.meanwhile = sleep
    listed, calls = busy.objects, []

    def objects(directory: str = "", after: str = "") -> list[ObjectInfo]:
        found = listed(directory, after)
        calls.append(directory)
        if len(calls) == 1:
            writer.sql("INSERT INTO t VALUES (7)")
            delete()
        return found

    busy.objects = objects  # type: ignore[method-assign]
    assert txids(log, end - 1) == [end + 4]


def merged_and_deleted(url: str, scratch: Path, last: int) -> None:
    """All commits up to this one."""
    clock, store = Clock(), ObjectStore(url)
    Compactor(open_log(url, clock), store, clock, run=2).merge(scratch)
    for txid in range(1, last + 1):
        store.delete(ObjectNames(url).name(COMMITS, txid, txid))


@pytest.fixture
def watched(writer: Instance, file_url: str) -> WatchedStore:
    for n in range(8):
        writer.sql(f"INSERT INTO t VALUES ({n})")
    return WatchedStore(ObjectStore(file_url))


def test_what_maintenance_deletes_while_the_log_is_verified_is_no_finding(
    watched: WatchedStore, file_url: str, tmp_path: Path
) -> None:
    def delete(verb: str, name: str) -> None:
        if name == ObjectNames(file_url).name(COMMITS, 3, 3):  # 1 and 2 were read
            merged_and_deleted(file_url, tmp_path, 4)

    watched.before = delete
    findings = verify_log(log_over(watched, ManualClock()), tmp_path / "scratch.db")
    assert (findings.problems, findings.leftovers, findings.head) == ([], [], 10)


def test_object_that_is_listed_and_cannot_be_read_is_a_finding(
    watched: WatchedStore, file_url: str, tmp_path: Path
) -> None:
    name = ObjectNames(file_url).name(COMMITS, 3, 3)

    def lose(verb: str, asked: str) -> None:
        if verb == "read" and asked == name:
            raise ObjectMissing(asked)

    merged_and_deleted(file_url, tmp_path, 0)
    watched.before = lose
    findings = verify_log(log_over(watched, ManualClock()), tmp_path / "scratch.db")
    assert findings.problems == [f"{file_url}/{name} is listed, and cannot be read: it is missing"]


def test_moment_is_found_though_maintenance_deletes_meanwhile(
    watched: WatchedStore, file_url: str, tmp_path: Path
) -> None:
    def delete(verb: str, name: str) -> None:
        if verb == "read_range":
            watched.before = lambda verb, name: None
            merged_and_deleted(file_url, tmp_path, 9)

    watched.before = delete
    assert commit_before(log_over(watched, ManualClock()), datetime.now(UTC)).txid == 10


def _create(url: str, first: int, last: int) -> None:
    store, names = ObjectStore(url), ObjectNames(url)
    for txid in range(first, last + 1):
        store.create(names.name(COMMITS, txid, txid), b"")


@pytest.mark.e2e
def test_directory_in_which_another_process_writes_has_no_gaps(tmp_path: Path) -> None:
    """The more there are, the longer it takes to list them, and nearly each listing has a gap that is not looked at
    twice.
    """
    names, before, after = ObjectNames("file:"), 5000, 400
    (tmp_path / names.directory(COMMITS)).mkdir(parents=True)
    for txid in range(1, before + 1):
        (tmp_path / names.name(COMMITS, txid, txid)).touch()
    arguments = (tmp_path.as_uri(), before + 1, before + after)
    process = multiprocessing.get_context("spawn").Process(target=_create, args=arguments)
    process.start()
    log = open_log(tmp_path.as_uri(), Clock())
    end = before
    while end < before + after and process.is_alive():
        found = txids(log)
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= end
        end = len(found)
    process.join()
    assert process.exitcode == 0
    assert len(txids(log)) == before + after
