"""The objectives: what is promised, and what was measured of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from infra.objectives.history import DAY, SPANS, History, Window
from infra.objectives.quantile import quantile
from infra.objectives.status import ObjectiveView, Span

Value = Callable[[Window], float | None]
Unit = Literal["ratio", "seconds", "per_day"]

_JUDGED: tuple[Span, ...] = ("1h", "24h", "30d")


@dataclass(frozen=True, slots=True)
class Objective:
    """A row of the table in RUNBOOK's "Service level objectives"."""

    name: str
    title: str
    target: str
    unit: Unit
    limit: float
    at_least: bool = False  # else the limit must not be reached
    value: Value = lambda window: None
    decides: Span = "30d"  # the value of this span says whether it is met
    has_budget: bool = False
    of_all_instances: bool = False  # also where there are several

    def is_met_by(self, value: float) -> bool:
        """Tell whether a value is within the target."""
        return value >= self.limit if self.at_least else value < self.limit

    def budget_left(self, value: float | None) -> float | None:
        """Return which part of what may go wrong has not; negative when more did."""
        if value is None or not self.has_budget:
            return None
        wrong, allowed = (1 - value, 1 - self.limit) if self.at_least else (value, self.limit)
        return 1 - wrong / allowed


def _availability(window: Window) -> float | None:
    return min(window.ready / window.seconds, 1.0) if window.seconds > 0 else None


def _error_rate(window: Window) -> float | None:
    counts = window.counts
    return counts.errors / counts.requests if counts.requests else None


def _restarts(window: Window) -> float | None:
    """A day, of at least one: a restart within the last minute is no 1,440 a day."""
    return window.starts / max(window.seconds / DAY, 1.0)


OBJECTIVES = (
    Objective("availability", "Availability", "≥ 99.5 %", "ratio", 0.995, True, _availability, has_budget=True),
    Objective(
        "response_time_p95",
        "Response time, p95",
        "< 200 ms",
        "seconds",
        0.2,
        value=lambda window: quantile(0.95, window.counts.durations),
    ),
    Objective("error_rate", "Error rate", "< 1 %", "ratio", 0.01, value=_error_rate, has_budget=True),
    Objective("restarts", "Restarts", "< 3 a day", "per_day", 3.0, value=_restarts, decides="24h"),
    Objective(
        "query_time_p95",
        "Database query time, p95",
        "< 50 ms",
        "seconds",
        0.05,
        value=lambda window: quantile(0.95, window.counts.queries),
    ),
    Objective(
        "rpo_log",
        "Oldest acknowledged write that is not in the log",
        "0 s",
        "seconds",
        1e-9,
        value=lambda window: window.worst("unsaved_seconds"),
        decides="1h",
        of_all_instances=True,
    ),
    Objective(
        "rpo_backup",
        "Age of the newest backup, if there were writes after it",
        "≤ 1 h",
        "seconds",
        3900.0,
        value=lambda window: window.worst("unbacked_seconds"),
        decides="1h",
        of_all_instances=True,
    ),
    Objective("rto", "Time to recover, by the last drill", "≤ 10 min", "seconds", 600.0, of_all_instances=True),
    Objective("coverage", "Test coverage of the release", "> 90 %", "ratio", 0.9, True, of_all_instances=True),
)


def judged(
    objective: Objective, values: Mapping[Span, float | None], *, per_instance: bool, why_unknown: str = ""
) -> ObjectiveView:
    """Say of an objective whether it is met, and why."""
    decisive = values[objective.decides]
    broken = [span for span in _JUDGED if (value := values[span]) is not None and not objective.is_met_by(value)]
    state: Literal["met", "at_risk", "broken", "unknown"]
    if decisive is None:
        state, reason = "unknown", why_unknown or "nothing was measured yet"
    elif objective.decides in broken:
        state, reason = "broken", f"{_text(objective, decisive)} over {objective.decides}"
    elif broken:
        state, reason = "at_risk", f"{_text(objective, values[broken[0]])} over {broken[0]}"
    else:
        state, reason = "met", f"{_text(objective, decisive)} over {objective.decides}"
    return ObjectiveView(
        name=objective.name,
        title=objective.title,
        target=objective.target,
        unit=objective.unit,
        values=dict(values),
        budget_left=objective.budget_left(values["30d"]),
        state=state,
        reason=reason,
        per_instance=per_instance and not objective.of_all_instances,
    )


def measured(history: History, *, per_instance: bool = False, until: float | None = None) -> list[ObjectiveView]:
    """Judge every objective by what the history has."""
    windows = {span: history.window(span, until) for span in SPANS}
    return [
        judged(
            objective,
            {span: objective.value(window) for span, window in windows.items()},  # type: ignore[misc]
            per_instance=per_instance,
        )
        for objective in OBJECTIVES
    ]


def _text(objective: Objective, value: float | None) -> str:
    if value is None:
        return "unknown"
    match objective.unit:
        case "ratio":
            return f"{100 * value:.2f} %"
        case "seconds":
            return f"{1000 * value:.0f} ms" if value < 1 else f"{value:,.0f} s"
        case "per_day":
            return f"{value:.1f} a day"
