"""Which objects of the log may go, and why."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date, datetime, timedelta

from infra.commitlog.chain import LogObject
from infra.commitlog.objects import COMMITS, SNAPSHOTS


@dataclass(frozen=True, slots=True)
class Keep:
    """How long, since an object was written."""

    commits: timedelta
    runs: timedelta  # merged ones, and every snapshot
    daily: timedelta  # the last snapshot of each day


@dataclass(frozen=True, slots=True)
class ExpiredObject:
    """An object that may go, and why."""

    item: LogObject
    why: str
    held_by: LogObject | None = None  # the run or snapshot that has to be sound for it to go


def expired(objects: list[LogObject], verified: int, now: datetime, keep: Keep) -> list[ExpiredObject]:
    """List what may be deleted: in this order, one by one, so that at every moment of it the log restores.

    `verified`: the TXID of a snapshot that has been restored and found sound, 0 for none. `now`: by the store's
    clock. Never the newest commit, the newest snapshot or that one, and nothing that a restore needs which the times
    in `keep` allow: to any commit, to the end of any merged run, to any snapshot, in this order.
    """
    keep = replace(keep, runs=max(keep.runs, keep.commits))  # without what it begins with no commit can be restored
    snapshots = _level(objects, SNAPSHOTS)
    if verified not in (item.max_txid for item in snapshots):
        return []
    old = [item for item in snapshots if item.max_txid <= verified and item.modified <= now - keep.runs]
    base = old[-1] if old else None  # where a restore to the beginning of the time that runs are kept begins
    return [
        *_expired_commits(objects, base, verified, now, keep),
        *_expired_runs(objects, base, now, keep),
        *_expired_snapshots(snapshots, base, verified, now, keep),
    ]


def _expired_commits(
    objects: list[LogObject], base: LogObject | None, verified: int, now: datetime, keep: Keep
) -> Iterator[ExpiredObject]:
    """In ascending order without an exception: a number is free again only when all before it are."""
    commits = _level(objects, COMMITS)
    runs = _Runs(objects)
    young = [item.max_txid for item in commits if item.modified > now - keep.commits]
    for item in commits[:-1]:
        run = runs.smallest_with(item.max_txid)
        if base and item.max_txid <= base.max_txid:
            run, holder = base, f"the snapshot at {base.max_txid:016x} is newer"
        elif run and run.max_txid <= verified:
            # As long as one commit of a run can be restored to, those before it are needed
            if young and young[0] <= run.max_txid:
                return
            holder = f"merged into {run.min_txid:016x}-{run.max_txid:016x} of level {run.level}"
        else:
            return
        if item.max_txid in young[:1]:
            return
        yield ExpiredObject(item, f"older than {_text(keep.commits)}, and {holder}", run)


def _expired_runs(
    objects: list[LogObject], base: LogObject | None, now: datetime, keep: Keep
) -> Iterator[ExpiredObject]:
    if base:
        for item in objects:
            is_run = item.level not in (COMMITS, SNAPSHOTS)
            if is_run and item.max_txid <= base.max_txid and item.modified <= now - keep.runs:
                why = f"older than {_text(keep.runs)}, and the snapshot at {base.max_txid:016x} is newer"
                yield ExpiredObject(item, why, base)


def _expired_snapshots(
    snapshots: list[LogObject], base: LogObject | None, verified: int, now: datetime, keep: Keep
) -> Iterator[ExpiredObject]:
    last_of_day = {_day(item): item for item in snapshots}
    for item in snapshots:
        if item == base or item.max_txid >= verified or item.modified > now - keep.runs:
            continue
        if last_of_day[_day(item)] is not item:
            yield ExpiredObject(item, f"older than {_text(keep.runs)}, and not the last of its day", base)
        elif item.modified <= now - keep.daily:
            yield ExpiredObject(item, f"older than {_text(keep.daily)}", base)


class _Runs:
    """Merged runs, to be asked which is the smallest that holds a commit."""

    def __init__(self, objects: list[LogObject]) -> None:
        levels = sorted({item.level for item in objects} - {COMMITS, SNAPSHOTS})
        self._by_level = [_level(objects, level) for level in levels]
        self._starts = [[item.min_txid for item in items] for items in self._by_level]

    def smallest_with(self, txid: int) -> LogObject | None:
        for items, starts in zip(self._by_level, self._starts, strict=True):
            place = bisect_right(starts, txid) - 1
            if place >= 0 and items[place].max_txid >= txid:
                return items[place]
        return None


def _day(item: LogObject) -> date:
    return (item.dated or item.modified).date()


def _level(objects: list[LogObject], level: int) -> list[LogObject]:
    return sorted((item for item in objects if item.level == level), key=lambda item: item.max_txid)


def _text(time: timedelta) -> str:
    hours = time.total_seconds() / 3600
    return f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} h"
