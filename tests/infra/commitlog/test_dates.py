"""Commits by any clocks, the store's time going on: what the corrected dates are good for."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from infra.commitlog.chain import LogObject
from infra.commitlog.dates import Misdated, bounds, corrected, latest, misdated

START = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)
SECOND, HOUR, YEAR = 1000, 3600_000, 365 * 24 * 3600_000  # milliseconds


@dataclass(frozen=True)
class Commit:
    at: int  # milliseconds since 1970, by the store's clock, which is right
    dated: int
    item: LogObject


@st.composite
def histories(draw: st.DrawFn) -> list[Commit]:
    """By writers with clocks that are each off by so much, to a store that may tell no more than seconds."""
    skews = draw(st.lists(st.sampled_from([0, 0, 1, -1]).flatmap(_amount), min_size=1, max_size=4))
    whole_seconds = draw(st.booleans())
    steps = draw(
        st.lists(
            st.tuples(
                st.integers(0, len(skews) - 1),
                st.sampled_from([0, 1, 700, 5 * SECOND, HOUR]),  # until the next commit
                st.integers(0, 30 * SECOND),  # that the PUT takes
                st.booleans(),  # whether its writer knows of the commit before what the store says of it
            ),
            max_size=30,
        )
    )
    result: list[Commit] = []
    now = int(START.timestamp() * 1000)
    for txid, (writer, pause, transfer, knows) in enumerate(steps, 1):
        began = now + pause
        now = began + transfer
        previous = result[-1].dated if result else 0
        if result and knows:
            previous = corrected(previous, result[-1].item.modified)
        modified = START + timedelta(milliseconds=now - int(START.timestamp() * 1000))
        if whole_seconds:
            modified = modified.replace(microsecond=0)
        item = LogObject(0, txid, txid, 1, modified)
        result.append(Commit(now, max(began + skews[writer], previous), item))
    return result


def _amount(sign: int) -> st.SearchStrategy[int]:
    return st.sampled_from([2, SECOND, 40 * SECOND, HOUR, YEAR]).map(lambda amount: sign * amount)


def dates_of(history: list[Commit]) -> list[int]:
    known = bounds([commit.item for commit in history])
    return [min(commit.dated, known[commit.item.max_txid]) for commit in history]


@given(histories())
def test_corrected_dates_never_go_back_whatever_the_clocks_of_the_writers(history: list[Commit]) -> None:
    dates = dates_of(history)
    assert dates == sorted(dates)


@given(histories())
def test_no_corrected_date_is_after_the_store_had_the_commit(history: list[Commit]) -> None:
    for commit, date in zip(history, dates_of(history), strict=True):
        assert date <= commit.at + 1010  # a second is what S3 tells time by


@given(histories())
def test_date_that_can_be_right_stays(history: list[Commit]) -> None:
    """All of those before and after it that can be, too."""
    if all(commit.dated <= commit.at for commit in history):
        assert dates_of(history) == [commit.dated for commit in history]


@given(histories(), st.data())
def test_objects_that_were_touched_later_still_bound_what_came_before_them(
    history: list[Commit], data: st.DataObject
) -> None:
    touched = data.draw(st.sets(st.integers(1, 30)))
    later = START + timedelta(days=3650)
    items = [replace(c.item, modified=later) if c.item.max_txid in touched else c.item for c in history]
    known = bounds(items)
    found = [known[txid] for txid in sorted(known)]
    assert found == sorted(found)
    for commit in history:
        assert known[commit.item.max_txid] <= latest(items[commit.item.max_txid - 1].modified)


def test_run_and_snapshot_bound_the_commits_in_them() -> None:
    late, early = START + timedelta(hours=1), START
    items = [LogObject(0, 3, 3, 1, late), LogObject(1, 1, 4, 1, early), LogObject(0, 5, 5, 1, late)]
    assert bounds(items) == {3: latest(early), 4: latest(early), 5: latest(late)}


def test_date_a_few_seconds_ahead_is_let_pass_and_more_is_named() -> None:
    bound = latest(START)
    assert misdated(7, bound + 10 * SECOND, bound) is None
    found = misdated(7, bound + 10 * SECOND + 1, bound)
    assert found == Misdated(1, 7, 7, 10)
    assert str(found).startswith("1 commit (TXID 0000000000000007) cannot be of the date")
    both = found.with_(Misdated(2, 9, 12, 7200))
    assert both == Misdated(3, 7, 12, 7200)
    assert "3 commits (TXID 0000000000000007 to 000000000000000c)" in str(both)


def test_kernel_that_is_behind_its_own_clock_by_a_tick_corrects_nothing() -> None:
    modified = START + timedelta(milliseconds=500)
    there = int(modified.timestamp() * 1000)
    assert corrected(there + 10, modified) == there + 10
    assert corrected(there + 11, modified) == there + 10
