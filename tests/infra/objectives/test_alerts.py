import re

import pytest

from infra.maintenance.report import Report, Verified
from infra.objectives.alerts import ALERTS, Facts
from infra.objectives.history import DAY, HOUR, History
from infra.objectives.judgement import judge
from infra.objectives.status import Cause
from infra.telemetry.metrics import Totals
from tests.infra.objectives.test_history import NOON

MB = 1024 * 1024


def slow(bucket: int, number: int = 100) -> tuple[int, ...]:
    """All in this bucket."""
    return tuple(number if index == bucket else 0 for index in range(14))


def facts(
    counts: Totals = Totals(),  # noqa: B008  # frozen
    gauges: dict[str, float] | None = None,
    *,
    age: float = HOUR,
    starts: int = 0,
    unready: str = "",
    degraded: str = "",
    cause: Cause = "store",
    down: str = "",
    unwritable: str = "",
    fell: float = 0.0,
    report: Report | None = None,
    maintained_within: float = 0.0,
) -> Facts:
    history = History(NOON - age)
    history.see(NOON, 10, counts, {}, starts=starts)
    history.noted.unready, history.noted.degraded, history.noted.fell = unready, degraded, fell
    history.noted.unwritable, history.noted.cause = unwritable, cause
    return Facts(NOON, history, gauges or {}, report or Report(), maintained_within, NOON - age, down)


def verified(days_ago: float) -> Verified:
    return Verified(f"{1:016x}", "app-1.db.gz", f"{1:016x}", {}, NOON - days_ago * DAY)


# For each alert facts by which it fires, and the nearest by which it does not
FIRES: dict[str, list[tuple[Facts, Facts]]] = {
    "ServiceDown": [(facts(down="it hangs"), facts(unready="no database"))],
    "NotReady": [(facts(unready="no database"), facts(down="it hangs"))],
    "LogUnsound": [
        (facts(report=Report(problems=["damaged"], unsound=True)), facts(report=Report(problems=["store away"]))),
        (facts(report=Report(unsound=True)), facts()),
        (facts(degraded="is cut short", cause="unsound"), facts(degraded="no answer")),
    ],
    "StoreAway": [
        (facts(degraded="no answer"), facts(unwritable="locked")),
        (facts(degraded="no answer"), facts(degraded="emptied", cause="other_log")),
        (facts(degraded="no answer"), facts(degraded="is cut short", cause="unsound")),
    ],
    "HighErrorRate": [
        (facts(Totals(requests=100, errors=6)), facts(Totals(requests=100, errors=5))),
        (facts(Totals(requests=5, errors=5)), facts(Totals(requests=4, errors=4))),
    ],
    "WritesRefused": [
        (facts(Totals(requests=100, writes=5, refused=5)), facts(Totals(requests=100, writes=4, refused=4))),
        (facts(Totals(requests=999, writes=99, refused=5)), facts(Totals(requests=999, writes=100, refused=5))),
        (facts(gauges={"data_volume_free_bytes": 65535.0}), facts(gauges={"data_volume_free_bytes": 65536.0})),
        (facts(unwritable="locked"), facts(degraded="no answer")),
    ],
    "SlowResponses": [
        (facts(Totals(durations=slow(10))), facts(Totals(durations=slow(9)))),
        (facts(Totals(durations=slow(10, 5))), facts(Totals(durations=slow(10, 4)))),
    ],
    "MaintenanceFailing": [
        (facts(report=Report(problems=["store away"])), facts()),
        (
            facts(age=3 * HOUR, report=Report(last_success=NOON - 7201), maintained_within=7200),
            facts(age=3 * HOUR, report=Report(last_success=NOON - 7199), maintained_within=7200),
        ),
        (facts(age=7201, maintained_within=7200), facts(age=7199, maintained_within=7200)),
        (facts(age=7201, maintained_within=7200), facts(age=7201, maintained_within=0)),
        (facts(age=3 * HOUR, report=Report(last_success=NOON - 7201)), facts(age=3 * HOUR)),
        (
            facts(age=3 * HOUR, report=Report(last_success=NOON - 7201)),
            facts(age=3 * HOUR, report=Report(last_success=NOON - 7201), maintained_within=7202),
        ),
    ],
    "BackupOld": [
        (facts(gauges={"backup_lag_seconds": 2 * HOUR + 1}), facts(gauges={"backup_lag_seconds": 2 * HOUR - 1}))
    ],
    "OtherLog": [
        (facts(fell=NOON - HOUR), facts(fell=NOON - HOUR - 1)),
        (facts(degraded="emptied", cause="other_log"), facts(degraded="no answer")),
    ],
    "Restarting": [(facts(starts=3), facts(starts=2))],
    "ElevatedErrorRate": [
        (facts(Totals(requests=499, errors=5)), facts(Totals(requests=500, errors=5))),
        (facts(Totals(requests=100, errors=5)), facts(Totals(requests=100, errors=6))),
    ],
    "SlowerResponses": [
        (facts(Totals(durations=slow(9))), facts(Totals(durations=slow(8)))),
        (facts(Totals(durations=slow(9))), facts(Totals(durations=slow(10)))),
    ],
    "SlowQueries": [
        (facts(Totals(queries=slow(6))), facts(Totals(queries=slow(5)))),
        (facts(Totals(queries=slow(6, 5))), facts(Totals(queries=slow(6, 4)))),
    ],
    "DatabaseLocked": [(facts(Totals(locked=1)), facts())],
    "DiskFilling": [
        (
            facts(gauges={"data_volume_free_bytes": 19.0, "data_volume_size_bytes": 100.0}),
            facts(gauges={"data_volume_free_bytes": 21.0, "data_volume_size_bytes": 100.0}),
        ),
        (
            facts(gauges={"data_volume_free_bytes": 0.0, "data_volume_size_bytes": 100.0}),
            facts(gauges={"data_volume_size_bytes": 100.0}),
        ),
    ],
    "ProofOld": [
        (
            facts(report=Report(verified=verified(2.1)), maintained_within=7200),
            facts(report=Report(verified=verified(1.9)), maintained_within=7200),
        ),
        (
            facts(age=3 * DAY, report=Report(last_success=NOON), maintained_within=7200),
            facts(age=1 * DAY, report=Report(last_success=NOON), maintained_within=7200),
        ),
        (facts(report=Report(verified=verified(2.1))), facts(age=3 * DAY)),
    ],
    "UnknownOutcomes": [(facts(Totals(unknown=1)), facts())],
    "MemoryHigh": [
        (
            facts(gauges={"memory_bytes": 461 * MB, "memory_limit_bytes": 512 * MB}),
            facts(gauges={"memory_bytes": 460 * MB, "memory_limit_bytes": 512 * MB}),
        ),
        (
            facts(gauges={"memory_bytes": 512 * MB, "memory_limit_bytes": 512 * MB}),
            facts(gauges={"memory_bytes": 512 * MB}),
        ),
    ],
    "WalLarge": [
        (
            facts(gauges={"database_wal_size_bytes": 100 * MB + 1}),
            facts(gauges={"database_wal_size_bytes": 100 * MB}),
        )
    ],
    "DrillOld": [
        (
            facts(gauges={"restore_drill_due_timestamp_seconds": NOON - 1}),
            facts(gauges={"restore_drill_due_timestamp_seconds": NOON}),
        ),
        (facts(gauges={"restore_drill_due_timestamp_seconds": NOON - 1}), facts(age=100 * DAY)),
    ],
    "FilesKept": [(facts(gauges={"database_kept_files": 1.0}), facts(gauges={"database_kept_files": 0.0}))],
    "Conflicts": [
        (facts(Totals(conflicts=10, commits=10)), facts(Totals(conflicts=10, commits=11))),
        (facts(Totals(conflicts=10)), facts(Totals(conflicts=9))),
    ],
}


def firing(given: Facts) -> set[str]:
    return {alert.name for alert, _ in judge(given).alerts}


def test_each_alert_fires_by_what_it_is_for_and_not_by_what_is_just_good() -> None:
    assert FIRES.keys() == {alert.name for alert in ALERTS}
    wrong = [
        (name, index)
        for name, cases in FIRES.items()
        for index, (bad, good) in enumerate(cases)
        if name not in firing(bad) or name in firing(good)
    ]
    assert wrong == []


def test_each_says_a_sentence_and_where_the_runbook_goes_on() -> None:
    for alert in ALERTS:
        said = alert.says(FIRES[alert.name][0][0])
        assert re.fullmatch(r"[A-Z0-9].*", said), alert.name
        assert alert.runbook == f"RUNBOOK.md#alert-{alert.name.lower()}"


def test_worst_alert_decides_the_word_for_all_and_is_what_is_said_first() -> None:
    assert (judge(facts(age=10)).state, judge(facts(age=10)).reason) == ("well", "Everything is well.")
    minor = facts(Totals(locked=1))
    assert judge(minor).state == "attention"
    assert judge(facts(Totals(locked=1), degraded="away")).state == "degraded"
    worst = judge(facts(Totals(locked=1), age=10, degraded="away", unready="gone"))
    assert worst.state == "down"
    assert worst.reason == "Nothing can be served: gone. And 2 more alerts."
    spent = judge(facts(Totals(requests=100, errors=7, locked=1)))  # the error rate's objective is missed, too
    assert spent.reason.endswith(" of the last five minutes were answered with an error. And 1 more alert.")
    severities = [alert.severity for alert in ALERTS]
    assert severities == sorted(severities)


def test_young_service_is_not_blamed_for_what_it_had_no_time_to_do() -> None:
    assert firing(facts(age=60, maintained_within=7200)) == set()
    old = Report(last_success=NOON - 3 * DAY)
    assert firing(facts(age=60, report=old, maintained_within=7200)) == set()


def test_drill_that_is_due_says_why() -> None:
    due = {"restore_drill_due_timestamp_seconds": NOON - 1}
    (never,) = judge(facts(gauges=due)).alerts
    assert never[1] == "There was never a restore drill."
    (old,) = judge(facts(gauges=due | {"restore_drill_last_success_timestamp_seconds": NOON - 46 * DAY})).alerts
    assert old[1] == "The last restore drill was 46 days ago."
    (failed,) = judge(facts(gauges=due | {"restore_drill_failed": 1.0})).alerts
    assert failed[1].startswith("The last restore drill has failed")


@pytest.mark.parametrize("name", sorted({"AvailabilityBurnFast", "ErrorBudgetBurnSlow"}))
def test_what_only_a_longer_memory_knows_is_left_to_prometheus(name: str) -> None:
    assert name not in {alert.name for alert in ALERTS}
