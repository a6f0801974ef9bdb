"""A server's maintenance in a process of its own: what comes back, and how it ends."""

import asyncio
import logging
import subprocess
from functools import partial
from typing import Any

import pytest

from core import items
from core.errors import MaintenanceCancelled, MaintenanceError
from core.schemas import NewItem
from infra.backups.backups import open_backups
from infra.maintenance import apart
from infra.maintenance.apart import MaintenanceApart
from infra.maintenance.job import Maintenance, open_maintenance
from infra.settings import Settings
from infra.telemetry import catalogue
from infra.telemetry.metrics import Metrics
from tests.conftest import MakeSettings, open_at

RUN = 16  # commits


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings(CORS_ORIGINS="https://example.com", FORWARDED_ALLOW_IPS="10.0.0.0/8", LOG_LEVEL="DEBUG")


@pytest.fixture
def maintenance(settings: Settings) -> Maintenance:
    """Of a log with one complete run of commits."""
    database = open_at(settings.database_path)
    while database.txid < RUN:
        asyncio.run(database.write(partial(items.create_item, new=NewItem(name="x"))))
    database.close()
    return open_maintenance(settings, open_backups(settings))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def job(settings: Settings, maintenance: Maintenance, metrics: Metrics) -> MaintenanceApart:
    return MaintenanceApart(settings, maintenance.steps, metrics)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    processes: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            processes.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    return processes


def test_all_that_a_run_has_done_said_and_counted_comes_back(
    job: MaintenanceApart,
    maintenance: Maintenance,
    settings: Settings,
    metrics: Metrics,
    caplog: pytest.LogCaptureFixture,
) -> None:
    replica = settings.database_path.parent / "replica"
    (replica / "maintenance.json").write_text("no report")
    report = job.run()
    assert (report.problems, report.runs_merged) == ([], 1)
    assert report == maintenance.last_report()
    counts = {labels: sum(it.counts) for labels, it in metrics.histograms[catalogue.STORE_DURATION.name].items()}
    assert counts["log", "get", "ok"] > RUN
    assert counts["backups", "put", "ok"] >= 2
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert record.name == "infra.maintenance.report", "a line of the server's log"
    assert "is ignored and counts as none" in record.getMessage()

    assert maintenance.steps.merged_to == RUN
    for run in (replica / "ltx" / "1").iterdir():
        run.unlink()
    assert job.merge() == 0, "the next process looks only at what is new"


def test_store_that_cannot_be_used_is_said_as_it_would_be_here(
    job: MaintenanceApart, settings: Settings, maintenance: Maintenance
) -> None:
    replica = settings.database_path.parent / "replica"
    replica.rename(replica.with_name("elsewhere"))
    replica.write_text("no directory")
    with pytest.raises(MaintenanceError, match="replica is a file"):
        job.run()


def test_bug_comes_back_with_its_traceback(settings: Settings, maintenance: Maintenance, metrics: Metrics) -> None:
    broken = settings.model_copy(update={"keep_runs_days": 0})
    with pytest.raises(RuntimeError, match=r"(?s)Traceback.*__main__\.py.*KEEP_RUNS_DAYS"):
        MaintenanceApart(broken, maintenance.steps, metrics).run()


def test_whoever_stops_it_leaves_no_process_and_it_cleans_up(
    job: MaintenanceApart, settings: Settings, started: list["subprocess.Popen[bytes]"]
) -> None:
    checks = iter([False, False, True])

    def check() -> None:
        if next(checks, True):
            raise MaintenanceCancelled("stopping")

    with pytest.raises(MaintenanceCancelled):
        job.run(check=check)
    [process] = started
    assert process.returncode == 0, "it has ended by itself"
    assert open_backups(settings).list() == []


def test_process_that_is_killed_is_a_failure_that_says_so(
    job: MaintenanceApart, started: list["subprocess.Popen[bytes]"]
) -> None:
    kill = iter([False, True])

    def kill_it() -> None:
        if next(kill, False):
            started[0].kill()

    with pytest.raises(MaintenanceError, match="was killed, perhaps because there was not enough memory"):
        job.run(check=kill_it)


def test_nobody_to_work_for_ends_it(
    job: MaintenanceApart, started: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server is killed: the kernel closes its end of the pipe."""
    monkeypatch.setattr(apart, "_said", lambda process, order, check: iter(()))
    with pytest.raises(MaintenanceError):
        job.run()
    assert started[0].returncode is not None
