from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from infra.maintenance.host_time import Boot, HostTime, Leap, looked_again, read_boot

NOW = 1_800_000_000.0
HOUR, DAY = 3600.0, 24 * 3600.0


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def first(boot: str = "a") -> HostTime:
    return looked_again(None, Boot(boot, 1000), NOW)


def test_first_look_counts_ages_from_itself() -> None:
    host = first()
    assert host.counted(at(NOW - 400 * DAY)) == at(NOW)
    assert host.counted(at(NOW + 5)) == at(NOW + 5)


def test_time_that_passed_by_both_clocks_is_no_leap() -> None:
    host = looked_again(first(), Boot("a", 1000 + 9 * DAY), NOW + 9 * DAY + 59)
    assert (host.leaps, host.leapt) == ([], None)


def test_what_was_there_before_a_leap_is_so_much_younger_and_what_came_after_is_not() -> None:
    host = looked_again(first(), Boot("a", 1000 + HOUR), NOW + HOUR + 2 * DAY)
    assert host.leapt == Leap(NOW + HOUR + 2 * DAY, 2 * DAY)
    assert host.counted(at(NOW + 60)) == at(NOW + 60 + 2 * DAY)
    later = looked_again(host, Boot("a", 1000 + 2 * HOUR), NOW + 2 * HOUR + 2 * DAY)
    assert later.leapt is None
    assert later.counted(at(NOW + 60)) == at(NOW + 60 + 2 * DAY)
    assert later.counted(at(host.now + 60)) == at(host.now + 60)


def test_after_another_start_of_the_machine_nothing_is_compared() -> None:
    assert looked_again(first(), Boot("b", 5), NOW + 2 * DAY).leaps == []
    assert looked_again(first(""), Boot("", 5), NOW + 2 * DAY).leaps == []


def test_this_machine_tells_which_start_it_is() -> None:
    boot = read_boot()
    again = read_boot()
    assert boot.id
    assert again.id == boot.id
    assert again.uptime >= boot.uptime > 0


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([10.0, HOUR, 9 * HOUR, DAY]),  # that really pass
        st.sampled_from([0.0, 0.0, 30.0, 90.0, HOUR, 2 * DAY, 400 * DAY, -HOUR, -2 * DAY]),  # that the clock leaps
        st.booleans(),  # whether somebody looks then
    ),
    min_size=1,
    max_size=60,
)


@given(_STEPS)
def test_nothing_counts_as_older_than_it_is_however_the_clock_leaps(steps: list[tuple[float, float, bool]]) -> None:
    """But for what it may be slewed by between two looks, and when it leaps back and forth between two."""
    host = first()
    passed, leapt, looks = 0.0, 0.0, 1
    made: list[tuple[float, float]] = [(0.0, NOW)]  # when really, and by the clock
    for seconds, leap, is_look in [*steps, (10.0, 0.0, True)]:
        passed += seconds
        leapt += leap
        made.append((passed, NOW + passed + leapt))
        if is_look or leap:
            looks += 1
            host = looked_again(host, Boot("a", 1000 + passed), NOW + passed + leapt)
            for when, modified in made:
                age = host.now - host.counted(at(modified)).timestamp()
                assert age <= passed - when + 60 * looks + 1


@given(st.lists(st.sampled_from([61.0, HOUR, 3 * DAY]), min_size=40, max_size=80))
def test_any_number_of_leaps_is_counted_and_few_are_kept(leaps: list[float]) -> None:
    host = first()
    total = 0.0
    for number, leap in enumerate(leaps, 1):
        total += leap
        host = looked_again(host, Boot("a", 1000 + number * HOUR), NOW + number * HOUR + total)
    assert len(host.leaps) <= 32
    assert host.counted(at(NOW)) == at(NOW + total)


def test_clock_that_is_mended_again_leaves_no_time_to_come_behind() -> None:
    ahead = looked_again(first(), Boot("a", 1000 + HOUR), NOW + HOUR + 2 * DAY)
    mended = looked_again(ahead, Boot("a", 1000 + 2 * HOUR), NOW + 2 * HOUR)
    assert mended.counted(at(NOW + 3 * HOUR)) == at(NOW + 3 * HOUR)


def test_first_look_by_a_clock_that_was_ahead_does_not_last_when_that_is_mended() -> None:
    ahead = looked_again(None, Boot("a", 1000), NOW + 2 * DAY)
    mended = looked_again(ahead, Boot("a", 1000 + HOUR), NOW + HOUR)
    assert mended.counted(at(NOW)) == at(NOW + HOUR)
