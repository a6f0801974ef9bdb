"""What of an alert is over perhaps: when the last of what it counts came, and when it ends unless more does."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.objectives.alerts import Facts, why_nothing_is_written
from infra.objectives.history import A_FEW, MINUTE, SPANS, Slot
from infra.objectives.quantile import beyond
from infra.objectives.status import LastView, Span, moment_text


@dataclass(frozen=True, slots=True)
class _Counted:
    """Where fewer than `enough` are left in the span, the alert is over, whatever else is in it."""

    what: str
    number: Callable[[Slot], int]
    enough: int = 1
    span: Span = "5m"


_ERRORS = _Counted("error", lambda slot: slot.counts.errors, A_FEW)
_SLOW = _Counted("slow response", lambda slot: beyond(0.5, slot.counts.durations), A_FEW)
_COUNTED = {
    "HighErrorRate": _ERRORS,
    "ElevatedErrorRate": _ERRORS,
    "WritesRefused": _Counted("refused write", lambda slot: slot.counts.refused, A_FEW),
    "SlowResponses": _SLOW,
    "SlowerResponses": _SLOW,
    "SlowQueries": _Counted("slow query", lambda slot: beyond(0.05, slot.counts.queries), A_FEW),
    "DatabaseLocked": _Counted("refused request", lambda slot: slot.counts.locked),
    "Conflicts": _Counted("lost commit", lambda slot: slot.counts.conflicts),
    "UnknownOutcomes": _Counted("unknown outcome", lambda slot: slot.counts.unknown, span="1h"),
    "Restarting": _Counted("start", lambda slot: slot.starts, 3, "24h"),
}


def last_of(alert: str, facts: Facts) -> LastView | None:
    """Say it of an alert that fires; None of what goes on, or does not end by itself."""
    counted = _COUNTED.get(alert)
    if not counted or (alert == "WritesRefused" and why_nothing_is_written(facts)):
        return None
    found = [slot for slot in facts.history.window(counted.span).slots if counted.number(slot)]
    left, ending = counted.enough, None
    for slot in reversed(found):
        left, ending = left - counted.number(slot), slot
        if left <= 0:
            break
    if ending is None:
        return None
    until = (ending.number + 1) * MINUTE + SPANS[counted.span]
    return LastView(what=counted.what, at=moment_text(found[-1].number * MINUTE), until=moment_text(until))
