import random
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import apsw

from infra.clock import Clock
from infra.commitlog.at_rest.publish import publish_file
from infra.commitlog.chain import LogObject
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.objects import SNAPSHOTS
from infra.commitlog.observer import Unobserved
from infra.commitlog.upkeep.cold_start import ColdStart, cold_start, cold_start_of
from infra.commitlog.upkeep.compactor import Compactor
from infra.storage.object_store import READ_PART, ObjectStore
from tests.infra.commitlog.conftest import ManualClock, StartInstance, WatchedStore

NOW = datetime.now(UTC)


def item(level: int, low: int, high: int, size: int) -> LogObject:
    return LogObject(level, low, high, size, NOW)


def test_empty_log_costs_its_listing() -> None:
    assert cold_start([], []) == ColdStart(1, 0, None, None)


def test_only_a_snapshot_with_a_sidecar_is_read_page_by_page() -> None:
    snapshot, old = item(9, 1, 7, 900_000), item(9, 1, 4, 800_000)
    found = [old, snapshot, item(0, 7, 7, 70), item(0, 8, 8, 80)]
    assert cold_start(found, [item(9, 1, 4, 1000)]) == ColdStart(3 + 2 + 1, 900_080, None, None)
    start = cold_start(found, [item(9, 1, 4, 1000), item(9, 1, 7, 2000)])
    assert start == ColdStart(6, 900_080, 2 + 1 + 3, 2000 + 80 + 65536)
    assert str(start) == "6 requests, 900,080 bytes; page by page 6 requests, 67,616 bytes"


def test_large_objects_are_counted_by_their_parts() -> None:
    found = [item(9, 1, 7, 10 * READ_PART), item(0, 8, 8, READ_PART + 1)]
    start = cold_start(found, [item(9, 1, 7, 2 * READ_PART)])
    assert (start.requests, start.paged_requests) == (3 + 10 + 2 + 1, 1 + 2 + 2 + 3)


def test_parts_are_what_a_start_asks_a_bucket_for(s3: str, tmp_path: Path) -> None:
    path = tmp_path / "large.db"
    asked: list[str] = []
    for size in (2 * READ_PART, 10):
        with closing(apsw.Connection(str(path))) as connection:
            connection.execute("CREATE TABLE IF NOT EXISTS t (v)")
            connection.execute("INSERT INTO t VALUES (randomblob(?))", (size,))
        publish_file(path, open_log(s3, Clock()), Clock())

    class Counting(Unobserved):
        def log_asked(self, verb: str, answered: bool, seconds: float) -> None:
            asked.append(verb)

    open_log(s3, Clock(), observer=Counting()).restore(tmp_path / "restored.db")
    assert cold_start_of(ObjectStore(s3)).requests == len(asked) == 2 + (3 + 1) + 1


def test_it_is_what_a_start_does(start: StartInstance, file_url: str, tmp_path: Path) -> None:
    instance = start("writer", file_url)
    instance.sql("CREATE TABLE t (v)")
    instance.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "INSERT INTO t SELECT hex(randomblob(200)) FROM n"
    )
    for n in range(14):
        instance.sql(f"INSERT INTO t VALUES ({n})")
    clock, store = Clock(), ObjectStore(file_url)
    steps, image = Compactor(open_log(file_url, clock), store, clock), tmp_path / "image.db"
    steps.store_snapshot(image, steps.log.restore(image), tmp_path)
    for n in range(34):
        instance.sql(f"INSERT INTO t VALUES ({n})")
    assert steps.merge(tmp_path) == 3
    watched = WatchedStore(store)
    CommitLog(watched, watched, ManualClock(), random.Random(), parallel=1).restore(tmp_path / "restored.db")
    expected = cold_start_of(store)
    assert expected.requests == len(watched.requests)
    read = [name for verb, name in watched.requests if verb == "read"]
    assert expected.bytes == sum(len(b"".join(store.read(name))) for name in read)
    assert expected.paged_bytes
    assert expected.paged_bytes < expected.bytes
    [(snapshot, has_sidecar)] = steps.log.objects.snapshots()
    assert has_sidecar
    assert snapshot.level == SNAPSHOTS
