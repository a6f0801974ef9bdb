import re
from collections.abc import Callable

import pytest

from infra.objectives.history import DAY, HOUR, History
from infra.objectives.status import ObjectiveView
from infra.objectives.table import OBJECTIVES, measured
from infra.telemetry.build import coverage
from infra.telemetry.metrics import Totals
from tests.infra.objectives.test_history import NOON
from tests.test_documents import section


def objective(name: str, history: History, **gauges: float) -> ObjectiveView:
    return next(found for found in measured(history, gauges) if found.name == name)


def of_thirty_days(*lost: tuple[float, float]) -> History:
    """Ready all the time but for so many seconds, so many hours ago."""
    history = History(NOON - 30 * DAY)
    for ring in (history.minutes, history.hours):
        for number in range(ring.most):
            start = NOON - (ring.most - 1 - number) * ring.seconds
            ring.at(start).ready = 0.0 if start == NOON else ring.seconds
    for ago, seconds in lost:
        next(slot for slot in history.hours.slots if slot.number * HOUR == NOON - ago * HOUR).ready -= seconds
    history.until = NOON
    return history


def test_nothing_is_known_at_the_beginning_and_nothing_is_missed() -> None:
    for found in measured(History(NOON), {}):
        assert (found.state, set(found.values)) == ("unknown", {"5m", "1h", "24h", "30d"})
        assert set(found.values.values()) == {None}
        assert found.reason


def test_availability_is_broken_when_the_budget_of_thirty_days_is_overdrawn() -> None:
    whole = objective("availability", of_thirty_days())
    assert (whole.values["30d"], whole.budget_left, whole.state) == (1.0, 1.0, "met")
    half = objective("availability", of_thirty_days((200, 3240), (300, 3240)))  # 0.5 % of 30 days are 12,960 s
    assert half.values["30d"] == pytest.approx(0.9975)
    assert half.budget_left == pytest.approx(0.5)
    assert (half.state, half.reason) == ("met", "99.75 % over 30 days")
    hours = [(float(ago), 3300.0) for ago in range(200, 204)]
    overdrawn = objective("availability", of_thirty_days(*hours))
    assert overdrawn.budget_left == pytest.approx(1 - 13200 / 12960)
    assert overdrawn.state == "broken"


def test_young_service_has_not_spent_a_month_with_its_first_restart() -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(), {})
    history.see(NOON + 40, 10, Totals(), {}, starts=1)
    found = objective("availability", history)
    assert found.values["30d"] == pytest.approx(0.5)
    assert found.budget_left == pytest.approx(1 - 20 / 12960)
    assert found.state == "met"


def test_availability_is_at_risk_when_an_hour_or_a_day_spends_too_much() -> None:
    history = History(NOON - 10 * HOUR)
    for second in range(30, 10 * HOUR + 1, 30):
        is_out = second > 10 * HOUR - 300  # of the last 3,600 s: 16.7 times what may go wrong
        history.see(NOON - 10 * HOUR + second, 30, Totals(), {}, is_ready=not is_out)
    found = objective("availability", history)
    assert (found.state, found.reason) == ("at_risk", "91.67 % over the last hour")
    for second in range(30, 361, 30):
        history.see(NOON + second, 30, Totals(), {})
    assert objective("availability", history).state == "met"  # of an hour that is as bad, but over
    day = objective("availability", of_an_outage(1500, ago=1200))  # 3.5 times
    assert day.state == "at_risk"
    assert day.reason.endswith("over 24 hours")
    assert objective("availability", of_an_outage(1200, ago=1200)).state == "met"  # 2.8 times
    assert objective("availability", of_an_outage(1500, ago=2 * HOUR)).state == "met"


def of_an_outage(seconds: int, ago: int) -> History:
    """That has ended so long ago."""
    history = History(NOON - 20 * HOUR)
    for second in range(30, 20 * HOUR + 1, 30):
        is_out = 20 * HOUR - ago - seconds < second <= 20 * HOUR - ago
        history.see(NOON - 20 * HOUR + second, 30, Totals(), {}, is_ready=not is_out)
    return history


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("error_rate", lambda number: Totals(requests=100 + number, errors=number)),
        ("response_time_p95", lambda number: Totals(durations=(*[0] * 8, number, *[0] * 5))),
        ("query_time_p95", lambda number: Totals(queries=(*[0] * 6, number, *[0] * 7))),
    ],
)
def test_few_bad_events_are_too_few_to_judge_by(name: str, bad: Callable[[int], Totals]) -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, bad(4), {})
    few = objective(name, history)
    assert (few.state, few.reason.endswith(" over 30 days, but by too few to judge")) == ("unknown", True)
    history.see(NOON + 20, 10, bad(1), {})
    assert objective(name, history).state == "broken"


def test_bad_minute_of_little_traffic_puts_nothing_at_risk() -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(requests=10_000, durations=(10_000, *[0] * 13)), {})
    history.see(NOON + 2 * HOUR, 10, Totals(requests=4, errors=4, durations=(*[0] * 8, 4, *[0] * 5)), {})
    assert {objective(name, history).state for name in ("error_rate", "response_time_p95")} == {"met"}
    history.see(NOON + 2 * HOUR + 10, 10, Totals(requests=1, errors=1, durations=(*[0] * 8, 1, *[0] * 5)), {})
    assert {objective(name, history).state for name in ("error_rate", "response_time_p95")} == {"at_risk"}


def test_errors_spend_a_budget_of_requests() -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(requests=1000, errors=4), {})
    found = objective("error_rate", history)
    assert found.values["1h"] == 0.004
    assert found.budget_left == pytest.approx(0.6)
    assert (found.state, found.reason) == ("met", "0.40 % over 30 days")
    history.see(NOON + 2 * HOUR, 10, Totals(requests=100, errors=15), {})
    found = objective("error_rate", history)
    assert found.state == "broken"
    assert found.budget_left == pytest.approx(1 - 19 / 11)
    history.see(NOON + 2 * HOUR + 10, 10, Totals(requests=5000), {})
    assert objective("error_rate", history).state == "met"


def test_slow_hour_puts_the_response_time_at_risk_and_a_slow_month_breaks_it() -> None:
    fast, slow = (1000, *[0] * 13), (*[0] * 8, 40, *[0] * 5)
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(durations=fast), {})
    history.see(NOON + 2 * HOUR, 10, Totals(durations=slow), {})
    found = objective("response_time_p95", history)
    assert found.values["1h"] == pytest.approx(0.2 + 0.3 * 0.95)
    assert (found.state, found.reason) == ("at_risk", "485 ms over the last hour")
    for _ in range(2):
        history.see(history.until + 10, 10, Totals(durations=slow), {})
    assert objective("response_time_p95", history).state == "broken"


def test_write_that_the_log_lacks_breaks_what_is_a_moment_by_design() -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(), {"unsaved_seconds": 0.9})
    assert objective("rpo_log", history).state == "met"
    history.see(NOON + 20, 10, Totals(), {"unsaved_seconds": 2.0})
    assert (objective("rpo_log", history).state, objective("rpo_log", history).reason) == (
        "broken",
        "2 s over the last hour",
    )


def test_drill_and_coverage_are_what_they_are_now(monkeypatch: pytest.MonkeyPatch) -> None:
    found = objective("rto", History(NOON), restore_drill_duration_seconds=601.0)
    assert (found.state, found.values["5m"], found.reason) == ("broken", 601, "601 s")
    assert objective("rto", History(NOON), restore_drill_duration_seconds=12.0).state == "met"
    for said in ("", "unknown", "nan", "101"):
        monkeypatch.setenv("COVERAGE", said)
        assert coverage() is None
    for said, state, reason in (("96.4", "met", "96.40 %"), ("90", "broken", "90.00 %")):
        monkeypatch.setenv("COVERAGE", said)
        assert (objective("coverage", History(NOON)).state, objective("coverage", History(NOON)).reason) == (
            state,
            reason,
        )


def test_names_are_unique() -> None:
    assert len({found.name for found in OBJECTIVES}) == len(OBJECTIVES) == 9


def test_table_of_the_runbook_has_these_objectives_and_targets() -> None:
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*) \| [^|]* \|$", section("RUNBOOK.md", "Service level objectives"), re.M)
    shown = dict(rows[rows.index(("objective", "target")) + 1 :])
    assert {objective.title.partition(":")[0]: objective.target for objective in OBJECTIVES} == shown
