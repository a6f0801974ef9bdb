import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import LogDamaged, MomentNotKept, TxidNotKept
from infra.clock import Clock
from infra.commitlog.chain import LogObject, restorable
from infra.commitlog.log import CommitLog, open_log
from infra.commitlog.objects import ObjectNames
from infra.commitlog.upkeep.compactor import Compactor
from infra.commitlog.upkeep.moments import Found, commit_before
from infra.storage.object_store import ObjectStore
from tests.infra.commitlog.conftest import StartInstance, litestream_restore

HEAD = 36  # TXID


@pytest.fixture
def log(start: StartInstance, url: str) -> CommitLog:
    instance = start("writer", url)
    instance.sql("CREATE TABLE t (v)")
    for n in range(3, HEAD + 1):
        time.sleep(0.002)
        instance.sql(f"INSERT INTO t VALUES ({n})")
    return open_log(url, Clock())


def moment_of(log: CommitLog, txid: int) -> datetime:
    [item] = [item for item in log.objects.everything() if item.level == 0 and item.max_txid == txid]
    return datetime.fromtimestamp(log.objects.header(item).timestamp / 1000, UTC)


def merge(url: str, scratch: Path, *deleted: int) -> None:
    """Into two runs of 16."""
    clock = Clock()
    Compactor(open_log(url, clock), ObjectStore(url), clock).merge(scratch)
    for txid in deleted:
        ObjectStore(url).delete(ObjectNames(url).name(0, txid, txid))


def test_moment_is_that_of_the_last_commit_before_it(log: CommitLog) -> None:
    moment = moment_of(log, 7)
    assert commit_before(log, moment).txid == 6
    assert commit_before(log, moment + timedelta(milliseconds=1)).txid == 7
    assert commit_before(log, moment + timedelta(days=1)).txid == HEAD


@pytest.mark.e2e
def test_litestream_makes_the_same_file_of_the_same_moment(
    log: CommitLog, start: StartInstance, url: str, tmp_path: Path
) -> None:
    time.sleep(1.1)  # Litestream refuses what is past the last commit, of which it knows the second
    start("another", url).sql("INSERT INTO t VALUES ('last')")
    merge(url, tmp_path)
    for txid in (2, 9, 17, HEAD):
        for offset in (0, 1):
            moment = moment_of(log, txid) + timedelta(milliseconds=offset)
            ours, theirs = tmp_path / f"ours-{txid}-{offset}", tmp_path / f"theirs-{txid}-{offset}"
            log.restore(ours, commit_before(log, moment).txid)
            litestream_restore(url, theirs, "-timestamp", moment.isoformat().replace("+00:00", "Z"))
            assert theirs.read_bytes() == ours.read_bytes()


def test_moment_before_all_commits_is_refused_with_what_there_is(log: CommitLog) -> None:
    first, last = moment_of(log, 1), moment_of(log, HEAD)
    with pytest.raises(MomentNotKept) as refused:
        commit_before(log, first)
    for bound in (first, last):
        assert bound.isoformat(timespec="milliseconds") in str(refused.value)


def test_moment_within_a_run_of_merged_commits_is_refused_with_its_neighbours(
    log: CommitLog, url: str, tmp_path: Path
) -> None:
    inside, before, after = (moment_of(log, txid) for txid in (25, 16, 32))
    merge(url, tmp_path, *range(1, 32))
    with pytest.raises(MomentNotKept, match="only together: before it there is TXID 0000000000000010") as refused:
        commit_before(log, inside)
    for bound in (before, after):
        assert bound.isoformat(timespec="milliseconds") in str(refused.value)
    assert commit_before(log, after + timedelta(milliseconds=1)).txid == 32
    with pytest.raises(TxidNotKept):
        log.restore(tmp_path / "merged", 25)
    log.restore(tmp_path / "end of the run", 16)


def test_time_at_which_a_run_was_merged_says_nothing_against_its_date(
    log: CommitLog, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after, later_still = (moment_of(log, txid) + timedelta(milliseconds=1) for txid in (32, 33))
    merge(url, tmp_path, *range(1, 33))
    later = [replace(item, modified=item.modified + timedelta(days=1)) for item in log.objects.everything()]
    monkeypatch.setattr(log.objects, "everything", lambda: later)
    assert commit_before(log, after) == Found(32)
    found = commit_before(log, later_still)
    assert found.txid == 33
    assert found.doubt, "but of a commit's own object it does"
    assert found.doubt.other == 0


def test_commit_that_is_merged_can_be_restored_as_long_as_its_object_is_there(
    log: CommitLog, url: str, tmp_path: Path
) -> None:
    expected = tmp_path / "expected"
    log.restore(expected, 9)
    merge(url, tmp_path)
    log.restore(tmp_path / "again", 9)
    assert (tmp_path / "again").read_bytes() == expected.read_bytes()


def test_commit_past_the_end_is_an_error(log: CommitLog, tmp_path: Path) -> None:
    with pytest.raises(LogDamaged, match="ends at TXID 0000000000000024, before 00000000000003e7"):
        log.restore(tmp_path / "future", 999)


def test_empty_log_has_no_moments(url: str) -> None:
    with pytest.raises(MomentNotKept, match="is empty"):
        commit_before(open_log(url, Clock()), datetime.now(UTC))


Made = Callable[[int, int, int], LogObject]


@pytest.fixture
def made() -> Made:
    return lambda level, low, high: LogObject(level, low, high, 1, datetime.now(UTC))


def test_what_is_restorable_ends_where_an_object_does_to_which_others_lead(made: Made) -> None:
    objects = [made(9, 1, 5), made(1, 5, 8), made(1, 9, 12), made(2, 1, 16), made(1, 21, 24)]
    assert [item.max_txid for item in restorable(objects)] == [5, 8, 12, 16]


def test_leftover_before_a_gap_is_nothing_to_restore_to(made: Made) -> None:
    objects = [made(1, 1, 4), made(0, 5, 5), made(1, 5, 8), made(0, 7, 7), made(0, 8, 8)]
    assert [(item.level, item.max_txid) for item in restorable(objects)] == [(1, 4), (1, 8)]
