"""The history as points of a plot."""

from typing import Literal

from infra.objectives.history import DAY, HOUR, MINUTE, History, Slot, total
from infra.objectives.quantile import quantile
from infra.objectives.status import HistoryView, PointView, moment_text

_STEPS = {"hour": (HOUR, MINUTE), "day": (DAY, 10 * MINUTE)}  # seconds: of all, of one


def points_of(history: History, span: Literal["hour", "day"]) -> HistoryView:
    """Return a span up to the last look; the last step is the one that it was in."""
    length, step = _STEPS[span]
    last = int(history.until // step)
    first = last - length // step + 1
    slots: dict[int, list[Slot]] = {number: [] for number in range(first, last + 1)}
    for slot in history.minutes.since(first * step // MINUTE):
        slots.get(slot.number * MINUTE // step, []).append(slot)
    return HistoryView(
        span=span,
        step_seconds=step,
        points=[_point(number * step, step, found, history) for number, found in slots.items()],
    )


def _point(start: int, step: int, slots: list[Slot], history: History) -> PointView:
    counts = total(slot.counts for slot in slots)
    # of the step that is not over, and of the one in which the history begins, less has passed
    passed = min(start + step, history.until) - max(start, history.began)
    gauges: dict[str, float] = {}
    for slot in slots:
        gauges.update(slot.gauges)
    is_known = bool(slots) and passed > 0
    return PointView(
        at=moment_text(start),
        requests_per_second=counts.requests / passed if is_known else None,
        errors_per_second=counts.errors / passed if is_known else None,
        p50_seconds=quantile(0.5, counts.durations),
        p95_seconds=quantile(0.95, counts.durations),
        p99_seconds=quantile(0.99, counts.durations),
        commits=counts.commits if slots else None,
        conflicts=counts.conflicts if slots else None,
        memory_bytes=gauges.get("memory_bytes"),
        database_bytes=gauges.get("database_size_bytes"),
        wal_bytes=gauges.get("database_wal_size_bytes"),
    )
