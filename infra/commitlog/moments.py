"""From a moment to the commit that was the newest then."""

from bisect import bisect_left
from datetime import UTC, datetime

from core.errors import MomentNotKept
from infra.commitlog.chain import LogObject, restorable
from infra.commitlog.log import CommitLog


def commit_before(log: CommitLog, moment: datetime) -> int:
    """The TXID of the newest commit before a moment, which is also what `litestream restore -timestamp` takes.

    Raises MomentNotKept, with what there is instead, for one outside of what the log holds, and for one within a
    run of commits that it holds only together.
    """
    points = restorable(log.everything())
    if not points:
        raise MomentNotKept(f"{log.url} is empty")
    milliseconds = moment.timestamp() * 1000
    # The times of commits never go back
    after = bisect_left(points, milliseconds, key=log.timestamp_of)
    if after == 0:
        raise MomentNotKept(f"{moment.isoformat()} is before all that {log.url} holds. {_window(log, points)}")
    before = points[after - 1]
    if after < len(points) and points[after].max_txid != before.max_txid + 1:
        raise MomentNotKept(
            f"{log.url} has the commits around {moment.isoformat()} only together: before it there is "
            f"{_named(log, before)}, after it {_named(log, points[after])}. Choose one with --txid. "
            f"{_window(log, points)}"
        )
    return before.max_txid


def _window(log: CommitLog, points: list[LogObject]) -> str:
    first_alone = len(points) - 1
    while first_alone and points[first_alone - 1].max_txid == points[first_alone].max_txid - 1:
        first_alone -= 1
    return (
        f"It reaches from {_named(log, points[0])} to {_named(log, points[-1])}; "
        f"every commit by itself from {_named(log, points[first_alone])} on"
    )


def _named(log: CommitLog, point: LogObject) -> str:
    moment = datetime.fromtimestamp(log.timestamp_of(point) / 1000, UTC)
    return f"TXID {point.max_txid:016x} of {moment.isoformat(timespec='milliseconds')}"
