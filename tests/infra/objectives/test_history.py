import sys
from datetime import UTC, datetime

import pytest

from infra.objectives.history import DAY, HOUR, MINUTE, History, difference, total
from infra.objectives.points import points_of
from infra.telemetry.metrics import Totals

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
FAST = (1, *[0] * 13)


def seen(history: History, now: float, passed: float = 10.0, **counts: int) -> None:
    history.see(now, passed, Totals(**counts), {})  # type: ignore[arg-type]


def test_counts_add_up_column_by_column_and_what_began_again_counts_whole() -> None:
    one = Totals(requests=3, errors=1, durations=(1, 2, *[0] * 12), commits=2)
    two = Totals(requests=4, durations=(0, 4, *[0] * 12), commits=5)
    assert total([one, Totals(), two]) == Totals(requests=7, errors=1, durations=(1, 6, *[0] * 12), commits=7)
    assert difference(total([one, two]), one) == two
    assert difference(one, two) == one
    assert total([]) == Totals()


def test_window_holds_what_lies_in_it_and_knows_how_much_time_that_is() -> None:
    history = History(NOON)
    for second in range(10, 2 * HOUR + 1, 10):
        seen(history, NOON + second, requests=1)
    five, hour, day, month = (history.window(span) for span in ("5m", "1h", "24h", "30d"))
    assert (five.seconds, five.counts.requests, five.ready) == (5 * MINUTE, 30, 5 * MINUTE)
    assert (hour.seconds, hour.counts.requests) == (HOUR, 360)
    assert (day.seconds, day.counts.requests, day.ready) == (2 * HOUR, 720, 2 * HOUR)
    assert (month.seconds, month.counts.requests, month.ready) == (2 * HOUR, 720, 2 * HOUR)


def test_time_is_credited_to_the_slots_that_it_lies_in_over_a_midnight_and_a_month() -> None:
    midnight = datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    history = History(midnight - 60)
    seen(history, midnight - 55, 5)
    seen(history, midnight + 5, 10)
    assert [slot.number for slot in history.minutes.slots] == [midnight // 60 - 1, midnight // 60]
    assert [slot.ready for slot in history.minutes.slots] == [pytest.approx(10), pytest.approx(5)]
    assert [slot.ready for slot in history.hours.slots] == [pytest.approx(10), pytest.approx(5)]


def test_time_in_which_nothing_could_be_served_has_passed_and_does_not_count_as_ready() -> None:
    history = History(NOON)
    history.see(NOON + 10, 10, Totals(), {})
    history.see(NOON + 20, 10, Totals(), {}, is_ready=False)
    assert (history.window("5m").seconds, history.window("5m").ready) == (20, 10)


def test_nobody_was_there_between_two_looks_that_are_far_apart() -> None:
    history = History(NOON)
    seen(history, NOON + 10)
    seen(history, NOON + 8 * HOUR, 8 * HOUR - 10)  # a laptop that slept: the time has passed, and nobody looked
    assert history.window("24h").seconds == 8 * HOUR
    assert history.window("24h").ready == 10 + 30


def test_history_of_forty_days_takes_no_more_than_a_bounded_number_of_slots() -> None:
    history = History(NOON)
    for minute in range(40 * 24 * 60):
        history.minutes.at(NOON + minute * MINUTE)
        history.hours.at(NOON + minute * MINUTE)
    assert (len(history.minutes.slots), len(history.hours.slots)) == (24 * 60 + 1, 30 * 24 + 1)
    slot = history.minutes.at(NOON + 40 * DAY)
    for _ in range(2):  # whatever is known, a slot keeps the same few numbers of it
        slot.see(Totals(requests=2**40), {f"gauge_{number}": 1.0 for number in range(100)} | {"memory_bytes": 1.0}, 1)
    assert sys.getsizeof(slot.gauges) < 400
    assert slot.gauges == {"memory_bytes": 1.0}


def test_slot_keeps_the_worst_of_what_may_not_be_lost_and_the_last_of_sizes() -> None:
    history = History(NOON)
    for size, age in ((5.0, 1.0), (3.0, 9.0), (4.0, 2.0)):
        history.see(history.until + 1, 1, Totals(), {"memory_bytes": size, "unbacked_seconds": age})
    assert history.minutes.slots[-1].gauges == {"memory_bytes": 4.0, "unbacked_seconds": 9.0}
    assert history.window("1h").worst("unbacked_seconds") == 9.0
    assert history.window("1h").worst("unsaved_seconds") is None


@pytest.mark.parametrize("leap", [-30 * DAY, -HOUR, -90, 90, HOUR, 400 * DAY])
def test_history_moves_with_a_clock_that_leaps(leap: float) -> None:
    history = History(NOON)
    for second in range(10, HOUR + 1, 10):
        seen(history, NOON + second, requests=1)
    history.noted.firing["StoreAway"] = history.noted.fell = NOON + HOUR
    before = history.window("24h")
    history.move(leap)
    after = history.window("24h")
    assert (after.seconds, after.counts, after.ready) == (before.seconds, before.counts, before.ready)
    assert history.noted.since == history.began == NOON + leap
    assert history.noted.firing["StoreAway"] == history.noted.fell == history.until == NOON + HOUR + leap
    seen(history, NOON + HOUR + leap + 10, requests=1)
    assert history.window("24h").counts.requests == 361


def test_clock_that_goes_back_a_little_makes_no_slot_twice() -> None:
    history = History(NOON)
    for now in (NOON + 61, NOON + 58, NOON + 62):
        seen(history, now, requests=1)
    numbers = [slot.number for slot in history.minutes.slots]
    assert numbers == sorted(set(numbers))
    assert history.window("5m").counts.requests == 3
    assert history.until == NOON + 62


def test_points_are_rates_of_the_time_that_has_passed_and_null_where_nobody_looked() -> None:
    history = History(NOON + 30)
    fast = (30, *[0] * 13)
    history.see(NOON + 55, 25, Totals(requests=30, errors=3, durations=fast, commits=2), {"memory_bytes": 7})
    history.see(NOON + 150, 10, Totals(requests=10, conflicts=1), {"database_size_bytes": 8})
    points = points_of(history, "hour").points
    assert len(points) == 60
    *_, before, first, between, last = points
    assert before.requests_per_second is before.commits is None
    assert (first.at, first.requests_per_second) == ("2026-01-31T12:00:00Z", 1.0)  # of the 30 s that there were
    assert (first.errors_per_second, first.commits, first.memory_bytes) == (0.1, 2, 7)
    assert first.p95_seconds == pytest.approx(0.00095)
    assert between.requests_per_second is None
    assert (last.at, last.requests_per_second, last.conflicts) == ("2026-01-31T12:02:00Z", 10 / 30, 1)
    assert (last.database_bytes, last.p95_seconds) == (8, None)
    day = points_of(history, "day")
    assert (day.step_seconds, len(day.points), day.points[-1].commits) == (600, 144, 2)
    assert day.points[-1].requests_per_second == pytest.approx(40 / 120)


def test_rate_is_steady_wherever_within_a_minute_somebody_looks() -> None:
    history = History(NOON)
    for second in range(7, 600, 10):
        seen(history, NOON + second, requests=100)
        rates = [point.requests_per_second for point in points_of(history, "hour").points]
        assert all(7 < rate < 15 for rate in rates if rate is not None), second
