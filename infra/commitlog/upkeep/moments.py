"""From a moment to the commit that was the newest then."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from core.errors import MomentNotKept, ObjectMissing
from infra.commitlog import dates
from infra.commitlog.chain import LogObject, restorable
from infra.commitlog.head import call_it_a_gap_unless
from infra.commitlog.log import CommitLog
from infra.commitlog.objects import COMMITS

_ON_ITS_WAY_MS = 60_000  # between a commit's date and the store's time for it, with room for a PUT that had to wait


@dataclass(frozen=True, slots=True)
class Doubt:
    """The writers' clocks and the store's disagree about a moment by so much that it matters."""

    warning: str
    other: int  # the TXID by the clock that was not believed, 0 for none


@dataclass(frozen=True, slots=True)
class Found:
    """The commit of a moment."""

    txid: int
    doubt: Doubt | None = None


def commit_before(log: CommitLog, moment: datetime) -> Found:
    """Find the newest commit before a moment: with right clocks also what `litestream restore -timestamp` takes.

    A date that cannot be right is replaced by the store's time; see `dates`. Raises MomentNotKept, with what there is,
    for a moment outside of what the log holds, and for one within a run of commits that it holds only together.
    """
    for look_again in (True, False):
        try:
            return _Search(log).before(moment)
        except ObjectMissing as error:
            call_it_a_gap_unless(look_again, error)
    raise AssertionError("unreachable")


class _Search:
    def __init__(self, log: CommitLog) -> None:
        objects = log.objects.everything()
        self._log = log
        self._points = restorable(objects)
        self._bounds = dates.bounds(objects)
        self._read: dict[LogObject, int] = {}

    def before(self, moment: datetime) -> Found:
        points, log = self._points, self._log
        if not points:
            raise MomentNotKept(f"{log.url} is empty")
        milliseconds = moment.timestamp() * 1000
        after = self._count_before(milliseconds, self._date)
        if after == 0:
            raise MomentNotKept(f"{moment.isoformat()} is before all that {log.url} holds. {self._window()}")
        before = points[after - 1]
        if after < len(points) and points[after].max_txid != before.max_txid + 1:
            raise MomentNotKept(
                f"{log.url} has the commits around {moment.isoformat()} only together: before it there is "
                f"{self._named(before)}, after it {self._named(points[after])}. Choose one with --txid. "
                f"{self._window()}"
            )
        return Found(before.max_txid, self._doubt(before, milliseconds))

    def _doubt(self, found: LogObject, milliseconds: float) -> Doubt | None:
        dated, bound = self._dated(found), self._bounds[found.max_txid]
        if dated >= milliseconds and dated - bound > dates.TOLERANCE_MS:
            other = self._last_before(milliseconds, self._dated)
            return self._doubted(
                found,
                f"is dated {dates.text(dated)}, which cannot be right: the store had it by {dates.text(bound)}. The "
                "moment was looked for by the store's clock; by the clocks of the writers",
                other,
            )
        # Of a merged run the store's time tells when it was merged, and nothing of its commits but that
        if found.level == COMMITS and bound >= milliseconds and bound - dated > _ON_ITS_WAY_MS:
            other = self._last_before(milliseconds, lambda item: self._bounds[item.max_txid])
            return self._doubted(
                found,
                f"is dated {dates.text(dated)}, but its object is of {dates.text(bound)} by the store: the writer's "
                "clock was slow, or the log's objects were copied or touched since. The moment was looked for by the "
                "clocks of the writers; by the store's clock",
                other,
            )
        return None

    def _doubted(self, found: LogObject, what: str, other: LogObject | None) -> Doubt:
        if other is None:
            return Doubt(f"TXID {found.max_txid:016x} {what} the log has nothing of before it", 0)
        instead = f"it is {self._named(other)} (`restore --txid {other.max_txid:016x} -o FILE` shows it)"
        return Doubt(f"TXID {found.max_txid:016x} {what} {instead}", other.max_txid)

    def _last_before(self, milliseconds: float, key: Callable[[LogObject], int]) -> LogObject | None:
        count = self._count_before(milliseconds, key)
        return self._points[count - 1] if count else None

    def _count_before(self, milliseconds: float, key: Callable[[LogObject], int]) -> int:
        return bisect_left(self._points, milliseconds, key=key)

    def _date(self, point: LogObject) -> int:
        return min(self._dated(point), self._bounds[point.max_txid])

    def _dated(self, point: LogObject) -> int:
        if point not in self._read:
            self._read[point] = self._log.objects.header(point).timestamp
        return self._read[point]

    def _window(self) -> str:
        points = self._points
        first_alone = len(points) - 1
        while first_alone and points[first_alone - 1].max_txid == points[first_alone].max_txid - 1:
            first_alone -= 1
        return (
            f"It reaches from {self._named(points[0])} to {self._named(points[-1])}; "
            f"every commit by itself from {self._named(points[first_alone])} on"
        )

    def _named(self, point: LogObject) -> str:
        return f"TXID {point.max_txid:016x} of {dates.text(self._date(point))}"
