"""The rules of retention, on histories of any kind: what is promised stays restorable, at every step of deleting."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.commitlog.chain import LogObject, chain, restorable
from infra.commitlog.upkeep.retention import ExpiredObject, Keep, expired

RUN = 4
KEEP = Keep(commits=timedelta(hours=24), runs=timedelta(days=7), daily=timedelta(days=30))
NOW = datetime(2026, 3, 31, 12, 0, tzinfo=UTC)


def made(level: int, low: int, high: int, age: timedelta) -> LogObject:
    return LogObject(level, low, high, 100, NOW - age)


@dataclass
class History:
    objects: list[LogObject]
    committed: dict[int, datetime]
    verified: int


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 6, 30, 200]),  # hours until the next one
        st.sampled_from(["commits", "commits", "merge", "snapshot"]),
        st.integers(1, 9),
    ),
    max_size=25,
)


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Commits at any pace, merged and snapshotted now and then."""
    steps = draw(_STEPS)
    objects: list[LogObject] = []
    commits: list[LogObject] = []
    merged = {1: 0, 2: 0}
    for place, (_, kind, count) in enumerate(steps):
        age = timedelta(hours=sum(hours for hours, _, _ in steps[place:]))
        if kind == "commits":
            commits += [made(0, txid, txid, age) for txid in range(len(commits) + 1, len(commits) + 1 + count)]
        elif kind == "merge":
            for level in merged:
                span = RUN**level
                while merged[level] + span <= (len(commits) if level == 1 else merged[1]):
                    objects.append(made(level, merged[level] + 1, merged[level] + span, age))
                    merged[level] += span
        elif commits:
            objects.append(made(9, 1, len(commits), age))
    snapshots = [item.max_txid for item in objects if item.level == 9]
    committed = {item.max_txid: item.modified for item in commits}
    return History(objects + commits, committed, draw(st.sampled_from([*reversed(snapshots), 0])))


def after(objects: list[LogObject], gone: list[ExpiredObject]) -> list[LogObject]:
    items = {one.item for one in gone}
    return [item for item in objects if item not in items]


def ends(objects: list[LogObject]) -> set[int]:
    return {item.max_txid for item in restorable(objects)}


@settings(max_examples=400, deadline=None)
@given(histories(), st.sampled_from([1, 3, 14]))
def test_what_the_times_promise_stays_restorable(history: History, days: int) -> None:
    keep = replace(KEEP, commits=timedelta(days=days))  # also longer than runs are kept
    gone = expired(history.objects, history.verified, NOW, keep)
    left = after(history.objects, gone)
    possible = ends(history.objects)
    promised = {
        item.max_txid
        for item in history.objects
        if history.committed[item.max_txid] > NOW - (keep.runs if item.level else keep.commits)
    }
    assert promised & possible <= ends(left)


@settings(max_examples=400, deadline=None)
@given(histories())
def test_at_every_step_the_log_restores_and_what_is_newest_is_there(history: History) -> None:
    gone = expired(history.objects, history.verified, NOW, KEEP)
    head = max((item.max_txid for item in history.objects), default=0)
    for level in (0, 9):
        newest = max((item for item in history.objects if item.level == level), key=lambda i: i.max_txid, default=None)
        assert newest not in [one.item for one in gone]
    for step in range(len(gone) + 1):
        left = after(history.objects, gone[:step])
        assert (chain(left, 0)[-1].max_txid if left else 0) == head
    commits = [one.item.max_txid for one in gone if one.item.level == 0]
    assert commits == sorted(commits)
    assert not commits or commits == list(range(1, len(commits) + 1))


@settings(max_examples=200, deadline=None)
@given(histories())
def test_nothing_goes_that_no_verified_snapshot_holds(history: History) -> None:
    gone = expired(history.objects, history.verified, NOW, KEEP)
    assert all(one.item.max_txid <= history.verified for one in gone)
    assert expired(history.objects, 0, NOW, KEEP) == []


def test_commits_go_after_a_day_and_only_with_the_whole_run_that_holds_them() -> None:
    old, young = timedelta(hours=25), timedelta(hours=23)
    commits = [made(0, n, n, old if n <= 6 else young) for n in range(1, 13)]
    runs = [made(1, 1, 4, young), made(1, 5, 8, young), made(1, 9, 12, young)]
    gone = expired([*commits, *runs, made(9, 1, 12, young)], 12, NOW, KEEP)
    assert [one.item.max_txid for one in gone] == [1, 2, 3, 4]
    assert gone[0].why == "older than 24 h, and merged into 0000000000000001-0000000000000004 of level 1"
    assert gone[0].held_by == runs[0]


def test_runs_go_after_a_week_when_a_snapshot_of_before_that_is_there() -> None:
    old, young = timedelta(days=8), timedelta(days=6)
    runs = [made(1, 1, 4, old), made(1, 5, 8, old), made(1, 9, 12, young)]
    head = [made(0, 12, 12, young)]
    newer = made(9, 1, 12, young)
    assert expired([*runs, *head, newer], 12, NOW, KEEP) == []
    gone = expired([*runs, *head, newer, made(9, 1, 6, old)], 12, NOW, KEEP)
    assert [one.item for one in gone] == runs[:1]
    assert gone[0].why == "older than 7 days, and the snapshot at 0000000000000006 is newer"


def test_run_that_was_made_late_is_kept_as_long_as_any_other() -> None:
    """Of commits that are old, and whose end an older snapshot has as well."""
    old, young = timedelta(days=8), timedelta(days=1)
    objects = [made(9, 1, 4, old), made(1, 1, 4, young), made(0, 5, 5, young), made(9, 1, 5, young)]
    assert expired(objects, 5, NOW, KEEP) == []


def test_of_old_snapshots_the_last_of_each_day_stays_for_a_month() -> None:
    snapshots = [made(9, 1, 2000 - hours, timedelta(hours=hours)) for hours in reversed(range(24 * 40))]
    gone = {one.item for one in expired([*snapshots, made(0, 2000, 2000, timedelta())], 2000, NOW, KEEP)}
    kept = [item for item in snapshots if item not in gone]
    old = [item for item in kept if item.modified <= NOW - KEEP.runs]
    assert len(kept) - len(old) == 7 * 24
    assert len({item.modified.date() for item in old}) == len(old) == 23 + 1  # where the week begins


def test_days_are_still_told_apart_when_all_files_were_touched_at_once() -> None:
    """As by chown, or by a copy to another disk."""
    touched = NOW - timedelta(days=8)
    snapshots = [LogObject(9, 1, n, 100, touched, NOW - timedelta(days=40 - n)) for n in range(12, 31)]
    assert expired([*snapshots, made(9, 1, 40, timedelta()), made(0, 40, 40, timedelta())], 40, NOW, KEEP) == []


def test_nothing_goes_when_the_proven_snapshot_is_gone() -> None:
    old = timedelta(days=9)
    objects = [*(made(0, n, n, old) for n in range(1, 10)), made(1, 1, 4, old), made(1, 5, 8, old), made(9, 1, 6, old)]
    assert expired(objects, 9, NOW, KEEP) == []


@pytest.mark.parametrize(("age", "goes"), [(25, True), (23, False)])
def test_leftover_is_deleted_in_its_turn_and_not_before_it_is_a_day_old(age: int, goes: bool) -> None:
    """A commit created under a number whose object is long gone, and its run as well."""
    old = timedelta(days=10)
    leftover = made(0, 3, 3, timedelta(hours=age))
    objects = [leftover, made(9, 1, 8, old), made(9, 1, 9, old), made(0, 9, 9, old)]
    assert (leftover in [one.item for one in expired(objects, 9, NOW, KEEP)]) is goes


def test_no_commit_goes_before_a_leftover_below_it() -> None:
    """Not even one that is old enough itself: a number is free again only when all before it are."""
    old = timedelta(days=10)
    commits = [made(0, 3, 3, timedelta(hours=23)), *(made(0, txid, txid, old) for txid in (7, 8, 9))]
    assert expired([*commits, made(9, 1, 9, old)], 9, NOW, KEEP) == []
