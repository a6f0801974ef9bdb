import asyncio
import logging

import apsw
import pytest

from core.errors import BackupCancelled, StoreUnavailable
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


async def until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_timer_backs_up_at_once_and_again_after_the_interval(job: BackupJob, backups: Backups) -> None:
    async def scenario() -> None:
        timer = asyncio.create_task(job.run_every(0.05))
        await until(lambda: len(backups.list()) >= 2)
        job.stop()
        timer.cancel()

    asyncio.run(scenario())
    assert 'backups_total{result="succeeded"}' in counted(job)


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

    async def scenario() -> None:
        timer = asyncio.create_task(job.run_every(0.01))
        await until(lambda: backups.list())
        job.stop()
        timer.cancel()

    asyncio.run(scenario())
    assert 'backups_total{result="failed"} 2.0' in counted(job)
    assert [record.levelno for record in caplog.records if "backup failed" in record.message] == [logging.ERROR] * 2


def test_stopping_ends_a_backup_under_way(job: BackupJob, backups: Backups) -> None:
    job.stop()
    with pytest.raises(BackupCancelled):
        job.run()
    assert backups.list() == []
    assert "backups_total{" not in counted(job)


def test_success_is_one_log_line_with_the_figures(job: BackupJob, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = job.run()
    record = next(record for record in caplog.records if record.message == "backup made")
    assert (record.__dict__["backup"], record.__dict__["bytes"]) == (made.name, made.size)
