"""The objectives: what is promised, and what was measured of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from infra.objectives.history import A_FEW, DAY, SPANS, History, Window
from infra.objectives.quantile import beyond, quantile
from infra.objectives.status import ObjectiveView, Span
from infra.telemetry.build import coverage

Gauges = Mapping[str, float]  # as they are now
Value = Callable[[Window, Gauges], float | None]
Unit = Literal["ratio", "seconds", "per_day"]

_OF_A_SERVER = "an instance on Lambda comes and goes with the requests: CloudWatch knows"
# Where an objective is at risk; the shorter span that ends it soon after its cause; and, of a budget, how many times
# too fast it is spent in both. The SRE workbook, chapter 5
_RISKS: dict[Span, tuple[Span, float]] = {"1h": ("5m", 14.4), "24h": ("1h", 3.0)}
_WORDS: dict[Span, str] = {"5m": "5 minutes", "1h": "the last hour", "24h": "24 hours", "30d": "30 days"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A row of the table in RUNBOOK's "Service level objectives". The value over `decides` says whether it is met; a
    shorter span, whether it is at risk. One with a budget is missed when `spent` over 30 days is more than 1. A span
    with only a few `bad` events says neither.
    """

    name: str
    title: str
    target: str
    unit: Unit
    is_met: Callable[[float], bool]
    value: Value
    decides: Span = "30d"
    spent: Callable[[Window], float | None] | None = None  # of what may go wrong in a span
    bad: Callable[[Window], int] | None = None  # events; none where a time is measured, or what is now
    of_all_instances: bool = False  # also where there are several
    of_a_server: bool = False  # and of nothing on Lambda
    of_the_log: bool = False  # or its backups, which PostgreSQL has of its own
    is_of_now: bool = False  # the same over each span
    unknown: str = "nothing was measured yet"
    failure: Callable[[Gauges], str] = lambda gauges: ""  # why it is missed whatever was measured


def _availability(window: Window, gauges: Gauges) -> float | None:
    return min(window.ready / window.seconds, 1.0) if window.seconds > 0 else None


def _unavailable(window: Window) -> float | None:
    """Of a whole span: what is a minute to a month is nothing although the history may be young."""
    return max(0.0, window.seconds - window.ready) / (0.005 * SPANS[window.span])


def _error_rate(window: Window, gauges: Gauges) -> float | None:
    counts = window.counts
    return counts.errors / counts.requests if counts.requests else None


def _errors(window: Window) -> float | None:
    rate = _error_rate(window, {})
    return None if rate is None else rate / 0.01


def _restarts(window: Window, gauges: Gauges) -> float | None:
    """A day, of at least one: a restart within the last minute is no 1,440 a day."""
    return window.starts / max(window.seconds / DAY, 1.0) if window.seconds > 0 else None


OBJECTIVES = (
    Objective(
        name="availability",
        title="Availability",
        target="≥ 99.5 %",
        unit="ratio",
        is_met=lambda value: value >= 0.995,
        value=_availability,
        spent=_unavailable,
        of_a_server=True,
    ),
    Objective(
        name="response_time_p95",
        title="Response time, p95",
        target="< 200 ms",
        unit="seconds",
        is_met=lambda value: value < 0.2,
        value=lambda window, gauges: quantile(0.95, window.counts.durations),
        bad=lambda window: beyond(0.2, window.counts.durations),
        unknown="there were no requests",
    ),
    Objective(
        name="error_rate",
        title="Error rate",
        target="< 1 %",
        unit="ratio",
        is_met=lambda value: value < 0.01,
        value=_error_rate,
        spent=_errors,
        bad=lambda window: window.counts.errors,
        unknown="there were no requests",
    ),
    Objective(
        name="restarts",
        title="Restarts",
        target="< 3 a day",
        unit="per_day",
        is_met=lambda value: value < 3,
        value=_restarts,
        decides="24h",
        of_a_server=True,
    ),
    Objective(
        name="query_time_p95",
        title="Database query time, p95",
        target="< 50 ms",
        unit="seconds",
        is_met=lambda value: value < 0.05,
        value=lambda window, gauges: quantile(0.95, window.counts.queries),
        bad=lambda window: beyond(0.05, window.counts.queries),
        unknown="there were no queries",
    ),
    Objective(
        name="rpo_log",
        title="Recovery point of the log: age of the oldest acknowledged write that it lacks",
        target="< 1 s",
        unit="seconds",
        is_met=lambda value: value < 1,  # another program's commit waits for the next look
        value=lambda window, gauges: window.worst("unsaved_seconds"),
        of_the_log=True,
        decides="1h",
        of_all_instances=True,
    ),
    Objective(
        name="rpo_backup",
        title="Recovery point of the backups: age of the oldest write that they lack",
        target="≤ 1 h",
        unit="seconds",
        is_met=lambda value: value <= 3900,  # and what the run takes that makes the next one
        value=lambda window, gauges: window.worst("unbacked_seconds"),
        of_the_log=True,
        decides="1h",
        of_all_instances=True,
        unknown="no backup was proven yet",
    ),
    Objective(
        name="rto",
        title="Recovery time, of the last drill",
        target="≤ 10 min",
        unit="seconds",
        is_met=lambda value: value <= 600,
        value=lambda window, gauges: gauges.get("restore_drill_duration_seconds"),
        of_the_log=True,
        of_all_instances=True,
        is_of_now=True,
        unknown="there was no drill yet",
        failure=lambda gauges: "the last drill has failed" if gauges.get("restore_drill_failed") else "",
    ),
    Objective(
        name="coverage",
        title="Test coverage of the release",
        target="> 90 %",
        unit="ratio",
        is_met=lambda value: value > 0.9,
        value=lambda window, gauges: coverage(),
        of_all_instances=True,
        is_of_now=True,
        unknown="the build of this release does not say",
    ),
)


def measured(
    history: History, gauges: Gauges, *, per_instance: bool = False, has_log: bool = True
) -> list[ObjectiveView]:
    """Judge every objective by what the history has. `per_instance`: there may be other instances, of which it knows
    nothing. `has_log`: the database is SQLite over the commit log.
    """
    windows = {span: history.window(span) for span in SPANS}
    return [
        _judged(objective, windows, gauges, per_instance)
        for objective in OBJECTIVES
        if has_log or not objective.of_the_log
    ]


def _judged(objective: Objective, windows: Mapping[Span, Window], gauges: Gauges, per_instance: bool) -> ObjectiveView:
    is_hidden = per_instance and objective.of_a_server
    values = {span: None if is_hidden else objective.value(window, gauges) for span, window in windows.items()}
    spent = {} if is_hidden or not objective.spent else {span: objective.spent(windows[span]) for span in windows}
    left = None if (of_all := spent.get("30d")) is None or values["30d"] is None else 1 - of_all
    state, span = _state(objective, windows, values, spent)
    value, failure = values[span], objective.failure(gauges)
    if failure and state != "broken":
        state, reason = "broken", failure
    elif value is None:
        reason = _OF_A_SERVER if is_hidden else objective.unknown
    else:
        reason = _text(objective.unit, value) + ("" if objective.is_of_now else f" over {_WORDS[span]}")
        reason += ", but by too few to judge" if state == "unknown" else ""
    return ObjectiveView(
        name=objective.name,
        title=objective.title,
        target=objective.target,
        unit=objective.unit,
        values=dict(values),
        budget_left=left,
        state=state,
        reason=reason,
        per_instance=per_instance and not objective.of_all_instances,
    )


def _state(
    objective: Objective,
    windows: Mapping[Span, Window],
    values: Mapping[Span, float | None],
    spent: Mapping[Span, float | None],
) -> tuple[Literal["met", "at_risk", "broken", "unknown"], Span]:
    """And the span that it is seen in."""

    def is_missed(span: Span, burn: float = 1.0) -> bool:
        if objective.spent:
            return (spent[span] or 0) > burn
        return (value := values[span]) is not None and not objective.is_met(value)

    def is_by_few(span: Span) -> bool:
        return objective.bad is not None and objective.bad(windows[span]) < A_FEW

    decides = objective.decides
    if values[decides] is None:
        return "unknown", decides
    if is_missed(decides):
        return ("unknown" if is_by_few(decides) else "broken"), decides
    for span, (still, burn) in _RISKS.items():
        if SPANS[span] < SPANS[decides] and is_missed(span, burn) and is_missed(still, burn) and not is_by_few(span):
            return "at_risk", span
    return "met", decides


def _text(unit: Unit, value: float) -> str:
    match unit:
        case "ratio":
            return f"{100 * value:.2f} %"
        case "seconds":
            return f"{1000 * value:.0f} ms" if value < 1 else f"{value:,.0f} s"
        case "per_day":
            return f"{value:.1f} a day"
