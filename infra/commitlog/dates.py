"""When a commit was made. Its writer's clock says one thing, the store's another, and either may be wrong.

A commit exists before the store can tell of it, so a date later than the store's time cannot be right. An earlier one
may be: the writer's clock is slow, or the log was copied, and its objects are younger than the commits in them.

Dates that are corrected so never go back. Of a log's objects those that end at the same or a later TXID came after the
commit, which bounds it from above by the earliest of their times: from one commit to the next that bound cannot fall.
A writer dates a commit no earlier than the one before it, as corrected. The smaller of two that do not fall does not
fall either.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from infra.commitlog.chain import LogObject

TOLERANCE_MS = 10_000  # between two clocks; more cannot be right, or is worth a word

_TICK_MS = 10  # how far a kernel's time of a file may lie behind its clock
_SECOND_MS = 1000


@dataclass(frozen=True, slots=True)
class Misdated:
    """Commits that are dated later than the store had them."""

    count: int
    first: int  # TXIDs
    last: int
    ahead: int  # seconds, at most

    def with_(self, other: "Misdated | None") -> "Misdated":
        """Return one that names these and others."""
        if other is None:
            return self
        first, last = min(self.first, other.first), max(self.last, other.last)
        return Misdated(self.count + other.count, first, last, max(self.ahead, other.ahead))

    def __str__(self) -> str:
        which = f"TXID {self.first:016x}" + (f" to {self.last:016x}" if self.count > 1 else "")
        return (
            f"{self.count:,} commit{'s' * (self.count > 1)} ({which}) cannot be of the date that the writer's clock "
            f"gave, up to {self.ahead:,} s after the store had it: `restore --at` goes by the store's time there"
        )


def latest(modified: datetime) -> int:
    """Return the latest moment that the store's time of an object can mean, milliseconds since 1970: some stores tell
    whole seconds.
    """
    whole_second = modified.microsecond == 0
    return int(modified.timestamp() * 1000) + _TICK_MS + _SECOND_MS * whole_second


def corrected(dated: int, modified: datetime) -> int:
    """Return the date to believe of a commit that its writer has dated so and the store had then, milliseconds since
    1970.
    """
    return min(dated, latest(modified))


def bounds(objects: Iterable[LogObject]) -> dict[int, int]:
    """Return, for each TXID at which an object ends, the newest first, when its commit was there at the latest,
    milliseconds since 1970.
    """
    result: dict[int, int] = {}
    bound = None
    for item in sorted(objects, key=lambda item: item.max_txid, reverse=True):
        here = latest(item.modified)
        bound = here if bound is None else min(bound, here)
        result[item.max_txid] = bound
    return result


def misdated(txid: int, dated: int, bound: int) -> Misdated | None:
    """Name a commit whose date is so long after it was there that it cannot be right; both milliseconds since 1970."""
    ahead = dated - bound
    return Misdated(1, txid, txid, ahead // 1000) if ahead > TOLERANCE_MS else None


def text(milliseconds: int) -> str:
    """Write a date, milliseconds since 1970, for people to read; whatever an object may hold can be written."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError, OSError):
        return f"{milliseconds} ms since 1970"
