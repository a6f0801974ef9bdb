import logging
import os
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import apsw
import pytest

from core.errors import BackupCancelled, StoreUnavailable
from infra import backup_job
from infra.backup_job import BackupJob
from infra.backups import Backups, open_backups
from infra.prometheus import PrometheusMetrics
from infra.settings import Settings


@pytest.fixture
def backups(settings: Settings) -> Backups:
    settings.database_path.parent.mkdir()
    with apsw.Connection(str(settings.database_path)) as connection:
        connection.execute("CREATE TABLE items (id INTEGER PRIMARY KEY)")
    connection.close()
    return open_backups(settings)


@pytest.fixture
def job(backups: Backups, settings: Settings) -> BackupJob:
    return BackupJob(backups, settings.database_path, PrometheusMetrics())


def counted(job: BackupJob) -> str:
    return job._metrics.exposition(dict)[0].decode()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waits_of(job: BackupJob, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[float]:
    """What the timer waits, before each of its first steps."""
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        return len(waits) > steps

    monkeypatch.setattr(job._stopping, "wait", wait)
    job._run_every(3600)
    return waits[1:]


def test_timer_backs_up_at_once_and_again_after_the_interval(job: BackupJob, backups: Backups) -> None:
    job.start(0.05)
    until(lambda: len(backups.list()) >= 2)
    job.stop()
    assert 'backups_total{result="succeeded"}' in counted(job)


def test_backup_with_a_time_to_come_does_not_start_one_after_another(
    job: BackupJob, backups: Backups, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    backups.create(settings.database_path)
    for name in ("app-20990101-0000.db.gz", "app-20990101-0000.db.gz.json"):
        backups.store.put(name, b"x")
        past = time.time() - 7200
        os.utime(settings.database_path.parent / "backups" / name, (past, past))
    first, second = waits_of(job, monkeypatch, 2)
    assert 3590 < first <= 3600, "the age is that of the backup that was stored last"
    assert second == 3600


def test_after_a_backup_the_timer_waits_whatever_the_store_says(
    job: BackupJob, backups: Backups, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backups, "list", lambda backups: [])
    assert waits_of(job, monkeypatch, 3) == [0, 3600, 3600]


def test_timer_outlives_a_store_that_cannot_be_listed(
    job: BackupJob, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(backups: Backups) -> NoReturn:
        raise (StoreUnavailable("the store is away") if not caplog.records else RuntimeError("a bug"))

    monkeypatch.setattr(Backups, "list", fail)
    assert waits_of(job, monkeypatch, 2) == [300, 300]
    assert [bool(record.exc_info) for record in caplog.records] == [False, True]


def test_failed_backup_is_tried_again_after_five_minutes(job: BackupJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> NoReturn:
        raise StoreUnavailable("the store is away")

    monkeypatch.setattr(Backups, "create", fail)
    assert waits_of(job, monkeypatch, 2) == [0, 300]


def test_timer_waits_while_the_newest_backup_is_young(job: BackupJob, backups: Backups, settings: Settings) -> None:
    backups.create(settings.database_path)
    assert 3590 < job._seconds_until_due(3600) <= 3600
    assert job.last_success is not None


def test_failed_backup_is_logged_counted_and_tried_again(
    job: BackupJob, backups: Backups, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    create, failures = Backups.create, 2

    def fail_twice(*arguments: object, **options: object) -> object:
        nonlocal failures
        if failures:
            failures -= 1
            raise (StoreUnavailable("the store is away") if failures else RuntimeError("a bug"))
        return create(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Backups, "create", fail_twice)

    job.start(0.01)
    until(backups.list)
    job.stop()
    assert 'backups_total{result="failed"} 2.0' in counted(job)
    assert [record.levelno for record in caplog.records if "backup failed" in record.message] == [logging.ERROR] * 2


def test_stopping_ends_a_backup_under_way(job: BackupJob, backups: Backups) -> None:
    job.stop()
    with pytest.raises(BackupCancelled):
        job.run()
    assert backups.list() == []
    assert "backups_total{" not in counted(job)


def test_stop_waits_for_the_backup_to_clean_up_but_not_for_ever(
    job: BackupJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, release = threading.Event(), threading.Event()

    def hang(*arguments: object, **options: object) -> NoReturn:
        entered.set()
        assert release.wait(20)
        raise BackupCancelled("stopping")

    monkeypatch.setattr(Backups, "create", hang)
    monkeypatch.setattr(backup_job, "_STOP_SECONDS", 0.1)
    job.start(3600)
    assert entered.wait(20)
    job.stop()
    assert job._timer is not None
    assert job._timer.is_alive()
    assert job._timer.daemon, "a thread that hangs must not keep the process"
    release.set()
    monkeypatch.setattr(backup_job, "_STOP_SECONDS", 20)
    job.stop()
    assert not job._timer.is_alive()


def test_success_is_one_log_line_with_the_figures(job: BackupJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = job.run()
    record = next(record for record in caplog.records if record.message == "backup made")
    assert (record.__dict__["backup"], record.__dict__["bytes"]) == (made.name, made.size)
