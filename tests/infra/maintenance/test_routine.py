import asyncio
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from core import items
from core.errors import MaintenanceCancelled, StoreRefused, StoreUnavailable
from core.schemas import NewItem
from infra.backups.backups import Backups, Manifest, open_backups
from infra.clock import Clock
from infra.commitlog import open_log
from infra.commitlog.upkeep import Compactor, Keep
from infra.maintenance import routine
from infra.maintenance.job import Maintenance, open_maintenance
from infra.maintenance.report import Report
from infra.maintenance.routine import MaintenanceRoutine
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase
from infra.storage.object_store import ObjectInfo, ObjectStore
from infra.telemetry.metrics import Metrics
from tests.conftest import open_at, spoiled

RUN = 16  # commits


@pytest.fixture
def database(settings: Settings) -> Iterator[SqliteDatabase]:
    database = open_at(settings.database_path)
    yield database
    database.close()


@pytest.fixture
def backups(database: SqliteDatabase, settings: Settings) -> Backups:
    return open_backups(settings)


@pytest.fixture
def job(database: SqliteDatabase, settings: Settings, backups: Backups) -> Iterator[MaintenanceRoutine]:
    job = MaintenanceRoutine(open_maintenance(settings, backups), Metrics(), lambda: database.txid)
    yield job
    job.stop()


@pytest.fixture
def log(settings: Settings) -> Path:
    return settings.database_path.parent / "replica" / "ltx"


def reach(database: SqliteDatabase, txid: int) -> None:
    while database.txid < txid:
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name="x"))))


def counted(job: MaintenanceRoutine) -> str:
    return job._metrics.exposition(dict)[0].decode()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits_of(job: MaintenanceRoutine, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[float]:
    """What the timer waits, before each of its first steps."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > steps

    monkeypatch.setattr(job, "_wait", wait)
    job._run_every(3600)
    return waits[1:]


def test_timer_runs_at_once_and_again_after_the_interval(
    job: MaintenanceRoutine, backups: Backups, database: SqliteDatabase
) -> None:
    job.start(0.05)
    until(backups.list)
    reach(database, database.txid + 1)
    until(lambda: len(backups.list()) == 2)
    job.stop()
    assert 'maintenance_runs_total{result="succeeded"}' in counted(job)


def test_timer_waits_while_the_last_run_is_young_whoever_did_it(
    job: MaintenanceRoutine, settings: Settings, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    MaintenanceRoutine(open_maintenance(settings, backups), Metrics()).run()
    first, second = waits_of(job, monkeypatch, 2)
    assert 3590 < first <= 3600
    assert second == 3600


@pytest.mark.parametrize("hours", [-1e5, 1e5])
def test_wrong_clock_in_the_store_does_not_make_runs_follow_each_other_without_a_pause(
    hours: float, settings: Settings, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(ObjectStore):
        def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]:
            found = super().objects(directory, after)
            return [replace(info, modified=info.modified + timedelta(hours=hours)) for info in found]

        def read_end(self, name: str, size: int) -> tuple[bytes, datetime]:
            end, modified = super().read_end(name, size)
            return end, modified + timedelta(hours=hours)

    clock, store = Clock(), Wrong(settings.replica_url)
    keep = Keep(timedelta(hours=24), timedelta(days=7), timedelta(days=30))
    log = Compactor(open_log(settings.replica_url, clock), store, clock)
    job = MaintenanceRoutine(Maintenance(log, store, backups, keep, clock), Metrics())
    job.run()
    assert waits_of(job, monkeypatch, 3) == [0, 3600, 3600]


def test_timer_outlives_a_store_that_cannot_be_read_and_a_bug(
    job: MaintenanceRoutine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(maintenance: Maintenance) -> NoReturn:
        raise (StoreUnavailable("the store is away") if not caplog.records else RuntimeError("a bug"))

    monkeypatch.setattr(Maintenance, "last_report", fail)
    assert waits_of(job, monkeypatch, 2) == [300, 600]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


def test_run_that_cannot_begin_is_logged_counted_and_tried_again(
    job: MaintenanceRoutine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    errors = [StoreUnavailable("the store is away"), RuntimeError("a bug")]
    run = Maintenance.run

    def fail_twice(maintenance: Maintenance, *arguments: Any, **named: Any) -> Report:
        if errors:
            raise errors.pop(0)
        return run(maintenance, *arguments, **named)

    monkeypatch.setattr(Maintenance, "run", fail_twice)
    assert waits_of(job, monkeypatch, 4) == [0, 300, 600, 3600]
    assert 'maintenance_runs_total{result="failed"} 2.0' in counted(job)
    assert 'maintenance_runs_total{result="succeeded"} 1.0' in counted(job)
    failed = [record for record in caplog.records if record.message.startswith("maintenance failed: ")]
    assert [(record.levelno, bool(record.exc_info)) for record in failed] == [
        (logging.ERROR, False),
        (logging.ERROR, True),
    ]


def test_each_failure_in_a_row_is_followed_by_a_longer_pause_until_a_run_succeeds(
    job: MaintenanceRoutine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, fails = Maintenance.run, iter([True] * 5 + [False, True])

    def fail(maintenance: Maintenance, *arguments: Any, **named: Any) -> Report:
        if next(fails):
            raise StoreRefused("nothing can be written: No space left on device")
        return run(maintenance, *arguments, **named)

    monkeypatch.setattr(Maintenance, "run", fail)
    assert waits_of(job, monkeypatch, 8) == [0, 300, 600, 1200, 2400, 3600, 3600, 300]


def test_log_is_unsound_until_a_run_finds_it_sound_again(
    job: MaintenanceRoutine, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = log / "0" / f"{2:016x}-{2:016x}.ltx"
    sound = commit.read_bytes()
    commit.write_bytes(spoiled(sound))
    job.run()

    def away(*arguments: Any) -> None:
        raise StoreUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(Maintenance, "_work", away)  # which tells nothing of the log
        assert job.run().problems == ["away"]
    assert job.gauges()["commit_log_unsound"] == 1
    commit.write_bytes(sound)
    job.run()
    assert job.gauges()["commit_log_unsound"] == 0


def test_problem_is_logged_counted_and_looked_at_again_after_five_minutes(
    job: MaintenanceRoutine, log: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit = log / "0" / f"{2:016x}-{2:016x}.ltx"
    commit.write_bytes(spoiled(commit.read_bytes()))
    assert waits_of(job, monkeypatch, 2) == [0, 300]
    assert 'maintenance_runs_total{result="failed"} 1.0' in counted(job)
    assert job.gauges() == {"commit_log_unsound": 1, "commit_log_commits_since_compaction": 2}
    [error] = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert error.startswith(f"maintenance found a problem, and deletes nothing: file://{commit} ")


def test_stopping_ends_a_run_in_the_middle_and_is_no_failure(
    job: MaintenanceRoutine,
    settings: Settings,
    backups: Backups,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    create = Backups.create

    def stopped_meanwhile(*arguments: Any, **options: Any) -> Manifest:
        job.stop()
        return create(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Backups, "create", stopped_meanwhile)
        with pytest.raises(MaintenanceCancelled):
            job.run()
    assert backups.list() == []
    assert job._maintenance.last_report().problems == []
    assert not re.search(r"^maintenance_runs_total{.*} [1-9]", counted(job), re.MULTILINE)
    assert caplog.records == []
    assert MaintenanceRoutine(open_maintenance(settings, backups), Metrics()).run().backup, "the next goes on"


def test_stopping_ends_merging(job: MaintenanceRoutine, database: SqliteDatabase, log: Path) -> None:
    reach(database, RUN)
    job.stop()
    with pytest.raises(MaintenanceCancelled):
        job.merge()
    assert not (log / "1").exists()


def test_stop_waits_for_the_run_to_clean_up_but_not_for_ever(
    job: MaintenanceRoutine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entered, release = threading.Event(), threading.Event()

    def hang(*_: object, **__: object) -> NoReturn:
        entered.set()
        assert release.wait(20)
        raise MaintenanceCancelled("stopping")

    monkeypatch.setattr(Maintenance, "run", hang)
    monkeypatch.setattr(routine, "_STOP_SECONDS", 0.1)
    job.start(3600)
    assert entered.wait(20)
    job.stop()
    assert job._timer is not None
    assert job._timer.is_alive()
    assert job._timer.daemon, "a thread that hangs must not keep the process"
    release.set()
    monkeypatch.setattr(routine, "_STOP_SECONDS", 20)
    job.stop()
    assert not job._timer.is_alive()
    assert caplog.records == []


def test_between_the_runs_commits_are_merged_as_soon_as_a_run_of_them_is_there(
    job: MaintenanceRoutine, database: SqliteDatabase, backups: Backups, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reach(database, database.txid + 1)  # what is not empty is backed up by the interval alone
    monkeypatch.setattr(routine, "_LOOK_SECONDS", 0.01)
    job.start(3600)
    until(job.gauges)
    for n in (1, 2):
        reach(database, n * RUN)
        until(lambda n=n: (log / "1" / f"{(n - 1) * RUN + 1:016x}-{n * RUN:016x}.ltx").exists())  # type: ignore[misc]
    job.stop()
    assert len(backups.list()) == 1
    assert counted(job).count('maintenance_runs_total{result="succeeded"} 1.0') == 1


def test_first_rows_are_backed_up_before_the_interval_is_over_and_later_ones_are_not(
    job: MaintenanceRoutine, database: SqliteDatabase, backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routine, "_LOOK_SECONDS", 0.01)
    job.start(3600)
    until(job.gauges)
    assert not job._has_first_rows()
    reach(database, database.txid + 1)
    until(lambda: (newest := backups.newest_manifest()) and newest.rows["items"] == 1)
    job.stop()
    reach(database, database.txid + 1)
    assert not job._has_first_rows()


def test_emptied_database_is_no_new_one(job: MaintenanceRoutine, database: SqliteDatabase) -> None:
    job._hurried = True
    job.run()
    reach(database, database.txid + 1)
    assert not job._has_first_rows(), "or each minute would have a backup"


def test_store_is_not_asked_before_a_run_of_commits_is_there(
    job: MaintenanceRoutine, database: SqliteDatabase, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(store: ObjectStore, directory: str = "", after: str = "") -> NoReturn:
        raise StoreUnavailable("the store is away")

    reach(database, RUN - 1)
    monkeypatch.setattr(routine, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(ObjectStore, "objects", fail)
    assert job._wait(0.1) is False
    assert caplog.records == []
    reach(database, RUN)
    assert job._wait(0.1) is False, "a failure is no reason to stop"
    assert {record.message for record in caplog.records} == {"merging failed: the store is away"}


def test_success_is_one_log_line_with_the_report(
    job: MaintenanceRoutine, backups: Backups, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    report = job.run()
    (record,) = [record for record in caplog.records if record.message == "maintenance done"]
    assert record.__dict__["report"] == asdict(report)
    assert report.verified
    newest = backups.newest()
    assert newest
    assert job.gauges() == {
        "maintenance_last_success_timestamp_seconds": report.last_success,
        "verification_last_success_timestamp_seconds": report.verified.at,
        "commit_log_unsound": 0,
        "commit_log_commits_since_compaction": 2,
        "commit_log_commits_since_snapshot": 0,
        "backup_lag_seconds": 0,
        "backup_newest_timestamp_seconds": backups.timed(newest).time.timestamp(),
        "backup_newest_size_bytes": newest.size,
    }
