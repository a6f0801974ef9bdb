import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.clock import Clock
from infra.commitlog.commit_clock import CommitClock
from infra.commitlog.dates import TOLERANCE_MS

NOW = 1_800_000_000_000  # milliseconds since 1970, true time when a test begins
HOUR, YEAR = 3600_000, 365 * 24 * 3600_000


class SkewedClock(Clock):
    """`true` is what the store goes by."""

    def __init__(self, skew: int) -> None:
        super().__init__()
        self.skew = skew
        self.true = NOW

    def now(self) -> float:
        return (self.true - NOW) / 1000

    def timestamp(self) -> int:
        return self.true + self.skew


def whole_second(milliseconds: int) -> int:
    return milliseconds // 1000 * 1000


class Writer:
    def __init__(self, skew: int, whole_seconds: bool = True) -> None:
        self.clock = SkewedClock(skew)
        self.dating = CommitClock(self.clock, "s3://bucket/log")
        self._told = whole_second if whole_seconds else int
        self.previous, self.txid = 0, 0

    def commit(self, transfer: int = 50, learned_after: int = 0) -> int:
        """How far its date is ahead of the time at which the store had it, milliseconds."""
        self.txid += 1
        date = self.dating.stamp(self.previous)
        self.dating.stored(self.txid)
        self.clock.true += transfer
        stored = self.clock.true
        self.clock.true += learned_after
        self.dating.learned(self.txid, self._told(stored))
        self.previous = min(date, stored + 1000)  # as the store tells
        return date - stored


@pytest.mark.parametrize("skew", [10 * 60_000, 2 * HOUR, YEAR, -10 * 60_000, -2 * HOUR])
def test_clock_that_is_wrong_is_corrected_by_the_stores_and_said_once(
    skew: int, caplog: pytest.LogCaptureFixture
) -> None:
    writer = Writer(skew)
    assert abs(writer.commit() - skew) < 1100
    for _ in range(5):
        assert abs(writer.commit()) < 1100
        writer.clock.true += HOUR
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    side = "ahead of" if skew > 0 else "behind"
    seconds = f"{abs(skew) // 1000:,}"
    assert f"clock is {seconds} s {side} that of s3://bucket/log: commits are dated by the store's" in record.message


def test_each_change_is_said_and_also_that_the_clock_is_right_again(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(2 * HOUR)
    for skew in (2 * HOUR, 3 * HOUR, 0, 0):
        writer.clock.skew = skew
        writer.commit()
        writer.commit()
    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR", "WARNING"]
    assert writer.dating.stamp(0) == writer.clock.true


@given(
    st.integers(-3000, 3000),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, HOUR)), min_size=1, max_size=10),
    st.booleans(),
)
def test_slow_store_and_a_reply_that_comes_late_are_no_wrong_clock(
    skew: int, commits: list[tuple[int, int]], whole_seconds: bool
) -> None:
    writer = Writer(skew, whole_seconds)
    for transfer, learned_after in commits:
        date = writer.dating.stamp(0)
        assert date == writer.clock.timestamp()
        writer.commit(transfer, learned_after)


@given(
    st.sampled_from([0, 1, -1]).flatmap(lambda sign: st.integers(0, YEAR).map(lambda amount: sign * amount)),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, HOUR)), max_size=10),
    st.booleans(),
)
def test_what_was_learned_makes_no_date_wrong_that_was_right(
    skew: int, commits: list[tuple[int, int]], whole_seconds: bool
) -> None:
    """And of a clock that is ahead no date but the first is further ahead than may be, and than the time that a PUT has
    taken, which leaves a doubt.
    """
    writer = Writer(skew, whole_seconds)
    ahead = [writer.commit(*commit) for commit in commits]
    doubt = max((transfer for transfer, _ in commits), default=0)
    assert all(found <= TOLERANCE_MS + doubt for found in ahead[1:])


def test_what_a_put_takes_does_not_make_a_slow_clock_a_fast_one() -> None:
    writer = Writer(-HOUR)
    writer.commit(transfer=20_000)
    assert -1100 - 20_000 <= writer.commit(transfer=0) <= 0


def test_date_never_goes_back() -> None:
    writer = Writer(0)
    assert writer.dating.stamp(NOW + HOUR) == NOW + HOUR
    writer.clock.skew = -HOUR
    assert writer.dating.stamp(NOW) == NOW


def test_previous_commit_of_a_time_to_come_is_doubted() -> None:
    dating = Writer(0).dating
    assert [dating.doubts(NOW + ahead) for ahead in (-YEAR, 0, 3000, 3001, YEAR)] == [False, False, False, True, True]


def test_doubt_goes_by_the_stores_clock_once_that_is_known() -> None:
    writer = Writer(YEAR)
    writer.commit()
    assert writer.dating.doubts(writer.clock.timestamp())
    assert not writer.dating.doubts(writer.clock.true)


def test_commit_of_another_instance_teaches_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Which took the number long before it was tried here."""
    writer = Writer(0)
    writer.dating.stamp(0)
    writer.dating.learned(1, NOW - HOUR)
    assert writer.commit() <= 0
    assert caplog.records == []


def test_only_the_newest_commits_are_remembered() -> None:
    writer = Writer(YEAR)
    for txid in range(1, 100):
        writer.dating.stamp(0)
        writer.dating.stored(txid)
    writer.dating.learned(1, NOW)
    assert writer.dating.stamp(0) == NOW + YEAR
    writer.dating.learned(99, NOW)
    assert writer.dating.stamp(0) == NOW
