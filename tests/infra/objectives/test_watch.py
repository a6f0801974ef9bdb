import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.maintenance.drill import Drill
from infra.maintenance.gauges import drill_is_due
from infra.maintenance.report import Report, Verified
from infra.objectives import process as watched_process
from infra.objectives.history_file import HistoryFile
from infra.objectives.status import Condition, ObjectiveView
from infra.objectives.stores import Found, Stores
from infra.objectives.watch import KEEP_SECONDS, Watch
from infra.settings import Settings
from infra.telemetry.metrics import Totals
from tests.infra.objectives.test_history import NOON


class Process:
    """One that serves a database, by a clock that stands until somebody moves it."""

    def __init__(self, settings: Settings, now: float = NOON, lasting: bool = True) -> None:
        self.now, self.elapsed = now, 5000.0
        self.totals, self.report = Totals(), Report()
        self.gauges = {"commit_log_txid": 1.0}
        self.stores = Stores(Found)
        self.watch = Watch(
            settings,
            self.stores,
            totals=lambda: self.totals,
            gauges=lambda: self.gauges | self.watch.gauges(int(self.gauges.get("commit_log_txid", 0)), {}),
            report=lambda: self.report,
            lasting=lasting,
            now=lambda: self.now,
            elapsed=lambda: self.elapsed,
        )

    def pass_(self, seconds: float, condition: Condition = Condition()) -> None:  # noqa: B008  # frozen
        """Look every ten seconds meanwhile."""
        for _ in range(round(seconds / 10)):
            self.now, self.elapsed = self.now + 10, self.elapsed + 10
            self.watch.look(condition)

    def value(self, name: str, span: Any = "24h") -> float | None:
        return self.objective(name).values[span]

    def objective(self, name: str) -> ObjectiveView:
        return next(found for found in self.watch.status([]).objectives if found.name == name)


@pytest.fixture
def process(settings: Settings) -> Process:
    settings.database_path.parent.mkdir()
    return Process(settings)


def started_again(process: Process, settings: Settings, after: float) -> Process:
    process.watch.stop()
    found = Process(settings, process.now + after)
    found.watch.resume()
    return found


def test_what_is_counted_meanwhile_is_of_the_minute(process: Process) -> None:
    process.totals = Totals(requests=10, errors=1)
    process.pass_(10)
    process.totals = replace(process.totals, requests=15)
    process.pass_(10)
    assert process.watch.history.window("5m").counts == Totals(requests=15, errors=1)
    assert process.value("error_rate") == pytest.approx(1 / 15)
    assert process.value("availability") == 1


def test_restart_keeps_the_history_and_is_counted_and_the_time_between_counts_as_not_there(
    process: Process, settings: Settings
) -> None:
    process.watch.resume()
    process.totals = Totals(requests=7)
    process.pass_(900)
    again = started_again(process, settings, after=90)
    again.pass_(10)
    assert again.value("availability") == pytest.approx(910 / 1000)
    assert again.value("restarts") == 1
    assert again.watch.history.window("24h").counts.requests == 7
    assert again.watch.status([]).since == process.watch.status([]).since


def test_two_restarts_within_a_minute_are_two(process: Process, settings: Settings) -> None:
    process.watch.resume()
    process.pass_(10)
    again = started_again(process, settings, after=5)
    again.pass_(10)
    third = started_again(process=started_again(again, settings, after=5), settings=settings, after=5)
    third.pass_(10)
    assert third.value("restarts") == 3
    assert [alert.name for alert in third.watch.status([]).alerts] == ["Restarting"]
    assert third.watch.status([]).state == "degraded"


def test_start_is_kept_at_once_also_of_a_process_that_is_killed_soon(process: Process, settings: Settings) -> None:
    for starts in range(3):
        again = Process(settings, process.now + 10 * starts)
        again.watch.start(Condition)
        until = time.monotonic() + 20
        while (kept := HistoryFile(settings.database_path).read()) is None or kept.until < again.now:
            assert time.monotonic() < until
            time.sleep(0.005)
        assert kept.window("24h").starts == starts
        again.watch._stopping.set()


def test_process_that_is_killed_loses_a_minute_at_most(process: Process, settings: Settings) -> None:
    process.watch.start(Condition)
    process.pass_(600)
    process.watch.keep()
    process.totals = Totals(requests=1)
    process.pass_(KEEP_SECONDS / 2)
    again = Process(settings, process.now)
    again.watch.resume()
    assert again.watch.history.until == NOON + 600
    process.watch.stop()


@pytest.mark.parametrize("leap", [-86400.0, -3600.0, 3600.0, 400 * 86400.0])
def test_clock_that_leaps_takes_the_history_along(
    process: Process, leap: float, caplog: pytest.LogCaptureFixture
) -> None:
    process.totals = Totals(requests=7)
    process.pass_(900)
    process.now += leap
    process.pass_(100)
    assert (process.value("availability"), process.watch.history.window("1h").seconds) == (1, 1000)
    assert process.watch.history.window("1h").counts.requests == 7
    assert f"the clock has leapt by {leap:,.0f} s, and the history goes with it" in caplog.text
    assert caplog.text.count("has leapt") == 1


def test_clock_that_was_set_back_while_the_service_was_stopped(process: Process, settings: Settings) -> None:
    process.watch.resume()
    process.pass_(900)
    again = started_again(process, settings, after=-86400)
    again.pass_(100)
    assert again.watch.history.until == again.now
    assert again.value("availability") == 1


def test_sleep_of_the_machine_is_no_leap_and_nobody_was_there(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    process.pass_(970)
    process.now, process.elapsed = process.now + 990, process.elapsed + 990
    process.pass_(10)
    assert caplog.text == ""
    assert process.value("availability") == pytest.approx(1000 / 1970)


def test_what_cannot_be_written_is_said_once_and_harms_nobody(
    process: Process, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    process.watch.resume()
    in_the_way = settings.database_path.with_name("app.db.history.new")
    in_the_way.mkdir()
    for _ in range(3):
        process.pass_(60)
        process.watch.keep()
    assert caplog.text.count("cannot be written, so a restart forgets it") == 1
    in_the_way.rmdir()
    process.watch.keep()
    in_the_way.mkdir()
    process.watch.keep()
    assert caplog.text.count("cannot be written, so a restart forgets it") == 2


def test_alert_fires_since_it_began_over_a_restart_as_well(process: Process, settings: Settings) -> None:
    process.watch.resume()
    away = Condition(degraded="the store is away")
    process.pass_(60, away)
    told = process.watch.status([])
    assert (told.state, told.alerts[0].name, told.alerts[0].since) == ("degraded", "StoreAway", told.since)
    assert told.reason == "Requests can be served in part only: the store is away."
    assert told.since == "2026-01-31T12:00:10Z"
    again = started_again(process, settings, after=0)
    again.pass_(60, replace(away, degraded=None))  # which nobody has asked again
    assert again.watch.status([]).since == told.since
    again.pass_(10)
    well = again.watch.status([])
    assert (well.state, well.since, well.alerts) == ("well", "2026-01-31T12:02:10Z", [])


def test_what_is_the_matter_with_the_log_is_as_before_while_nobody_asks(process: Process, settings: Settings) -> None:
    process.watch.resume()
    process.pass_(10, Condition(degraded="it was emptied", cause="other_log"))
    again = started_again(process, settings, after=0)
    again.pass_(10, Condition(degraded=None))
    assert [alert.name for alert in again.watch.status([]).alerts] == ["OtherLog"]


def test_state_that_has_changed_is_in_the_file_soon(process: Process, settings: Settings) -> None:
    probed: list[Condition] = []
    away = threading.Event()

    def probe() -> Condition:
        probed.append(Condition(degraded="away" if away.is_set() else ""))
        return probed[-1]

    away.set()
    process.watch.start(probe)
    until = time.monotonic() + 20
    while not settings.database_path.with_name("app.db.history").exists():
        assert time.monotonic() < until
        time.sleep(0.005)
    process.watch.stop()
    history = HistoryFile(settings.database_path).read()
    assert history
    assert history.noted.state == "degraded"


def test_number_of_the_newest_commit_that_falls_is_another_log(process: Process, settings: Settings) -> None:
    process.watch.resume()
    process.gauges["commit_log_txid"] = 9.0
    process.pass_(10)
    again = started_again(process, settings, after=10)
    again.gauges["commit_log_txid"] = 8.0
    again.pass_(10)
    assert [alert.name for alert in again.watch.status([]).alerts] == ["OtherLog"]
    again.pass_(3610)
    assert again.watch.status([]).alerts == []


def found(txid: int, at: float, **others: Any) -> Found:
    """In the stores, after a run of maintenance that has succeeded and proven this commit."""
    verified = Verified(f"{txid:016x}", f"app-{txid}.db.gz", f"{txid:016x}", {}, at)
    return Found(report=Report(started_at=at, last_success=at, verified=verified), of_log=True, **others)


def test_backup_lacks_what_was_written_after_it_whoever_makes_it(process: Process) -> None:
    process.pass_(10)
    assert process.objective("rpo_backup").state == "unknown"
    process.stores.found = found(1, NOON)
    process.pass_(10)
    assert (process.value("rpo_backup"), process.objective("rpo_backup").state) == (0, "met")
    process.gauges["commit_log_txid"] = 2.0
    process.pass_(980)
    assert process.value("rpo_backup") == 1000
    process.stores.found = found(2, process.now)
    process.pass_(3700)
    assert (process.value("rpo_backup", "1h"), process.value("rpo_backup", "24h")) == (0, 1000)
    process.stores.found.report.last_success = process.now  # a run that has found nothing new to back up
    process.gauges["commit_log_txid"] = 3.0
    process.pass_(100)
    assert process.value("rpo_backup", "1h") == 100


def test_what_nobody_has_been_asked_for_is_not_known(process: Process) -> None:
    process.stores.found = replace(found(1, NOON), of_log=False)
    assert process.watch.gauges(1, {}) == {}
    process.stores.found = found(1, NOON)
    assert process.watch.gauges(1, {}) == {
        "maintenance_last_success_timestamp_seconds": NOON,
        "verification_last_success_timestamp_seconds": NOON,
        "backup_lag_seconds": 0.0,
        "commit_log_commits_since_snapshot": 0,
        "commit_log_unsound": 0,
        "restore_drill_due_timestamp_seconds": NOON + 45 * 86400,
    }


def test_whoever_has_maintained_last_knows_more(process: Process) -> None:
    own = {"commit_log_commits_since_compaction": 7.0, "maintenance_last_success_timestamp_seconds": NOON + 1}
    process.stores.found = found(1, NOON)
    for started_at, last in ((NOON - 1, NOON), (NOON, NOON), (NOON + 1, NOON + 1)):
        process.report = Report(started_at=started_at)
        gauges = process.watch.gauges(1, own)
        assert gauges["maintenance_last_success_timestamp_seconds"] == last
        assert gauges["commit_log_commits_since_compaction"] == 7


def test_drill_is_due_when_it_was_long_ago_or_never_or_has_failed(process: Process) -> None:
    assert drill_is_due(None, NOON) == NOON + 45 * 86400
    assert drill_is_due(Drill(NOON + 1, NOON + 1), NOON) == NOON + 1 + 45 * 86400
    assert drill_is_due(Drill(NOON + 9, NOON + 1, problems=["damaged"]), NOON) == NOON + 9
    process.stores.found = found(1, NOON, drill=Drill(NOON, problems=["damaged"]))
    process.pass_(10)
    assert [alert.name for alert in process.watch.status([]).alerts] == ["DrillOld"]


@pytest.mark.parametrize("kind", ["diverged", "changes"])
def test_file_that_was_kept_is_told_until_it_is_gone(process: Process, settings: Settings, kind: str) -> None:
    kept = settings.database_path.with_name(f"app.db.{kind}-20260131-120000-000000")
    kept.touch()
    kept.with_name(kept.name + "-wal").touch()
    process.pass_(10)
    assert process.watch.gauges(0, {}) == {"database_kept_files": 1}
    assert [alert.name for alert in process.watch.status([]).alerts] == ["FilesKept"]
    kept.unlink()
    process.pass_(10)
    assert process.watch.status([]).alerts == []


def test_instance_on_lambda_says_what_is_its_own_and_forgets_it(settings: Settings, tmp_path: Path) -> None:
    process = Process(settings, lasting=False)
    process.pass_(100)
    found = process.watch.status([])
    assert found.service.per_instance
    own = {objective.name for objective in found.objectives if objective.per_instance}
    assert own == {"availability", "response_time_p95", "error_rate", "restarts", "query_time_p95"}
    assert process.objective("availability").values["24h"] is None
    assert "CloudWatch" in process.objective("availability").reason
    process.watch.keep()
    process.watch.stop()
    assert list(tmp_path.iterdir()) == []


def test_watch_ends_at_once_while_its_question_has_no_answer(process: Process) -> None:
    asked, answered = threading.Event(), threading.Event()

    def probe() -> Condition:
        asked.set()
        answered.wait(60)
        return Condition(unready="late")

    process.watch.start(probe)
    assert asked.wait(20)
    process.watch.stop()
    assert not answered.is_set()
    answered.set()
    assert HistoryFile(process.watch._settings.database_path).read()


def test_watch_goes_on_after_an_error_that_nobody_expected(
    process: Process, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("infra.objectives.watch.LOOK_SECONDS", 0.001)
    asked = iter([1 / 1, 0, 1])
    seen = threading.Event()

    def probe() -> Condition:
        number = next(asked, None)
        if number is None:
            seen.set()
            return Condition()
        1 / number
        return Condition()

    process.watch.start(probe)
    assert seen.wait(20)
    process.watch.stop()
    assert "looking at the objectives has failed" in caplog.text


def test_stores_are_asked_once_at_a_time_and_not_again_at_once() -> None:
    asked: list[float] = []
    go_on, now = threading.Event(), 0.0

    def ask() -> Found:
        asked.append(now)
        go_on.wait(20)
        return Found(troubles=["away"])

    stores = Stores(ask, lambda: now)
    first, second = stores.ask(), stores.ask()
    assert first is second
    assert (first.is_set(), stores.found) == (False, None)
    go_on.set()
    assert first.wait(20)
    assert stores.ask().is_set()
    assert stores.found == Found(troubles=["away"])
    now = 31.0
    assert stores.ask().wait(20)
    assert asked == [0.0, 31.0]


def test_stores_that_fail_in_a_way_nobody_expected_are_answered_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def ask() -> Found:
        raise RuntimeError("a bug")

    stores = Stores(ask)
    assert stores.ask().wait(20)
    assert stores.found is None
    assert "asking the stores has failed" in caplog.text


def test_kernel_says_how_much_memory_the_process_has() -> None:
    assert watched_process.gauges()["memory_bytes"] > 1_000_000
    assert watched_process.elapsed() > 0


def test_start_that_waits_for_a_lock_is_no_other_log(process: Process, settings: Settings) -> None:
    process.watch.resume()
    process.gauges = {"commit_log_txid": 100.0}
    process.pass_(10)
    again = started_again(process, settings, after=1)
    again.gauges = {}  # nobody knows yet
    again.pass_(10)
    assert again.watch.status([]).alerts == []
    again.gauges = {"commit_log_txid": 100.0}
    again.pass_(10)
    assert again.watch.status([]).alerts == []
