"""Lambda's scheduled events: maintenance."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from core.errors import MaintenanceError

if TYPE_CHECKING:  # the function that serves asks only whether an event is one
    from infra.maintenance.routine import MaintenanceRoutine

_MARGIN_SECONDS = 15.0  # of the function's time, to end in an orderly way; half of it at most


def is_scheduled(event: Any) -> bool:
    """`{"action": "maintain"}`, `{"action": "merge"}`, or an event of a plain EventBridge schedule."""
    if not isinstance(event, dict):
        return False
    return event.get("action") in ("maintain", "merge") or (
        event.get("source") in ("aws.events", "aws.scheduler") and event.get("detail-type") == "Scheduled Event"
    )


def run_scheduled(job: "MaintenanceRoutine", event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Raises ServiceError when something is wrong, so that the invocation counts as failed."""
    if event.get("action") == "merge":
        return {"runs_merged": job.merge()}
    remaining = context.get_remaining_time_in_millis() / 1000
    report = job.run(max(remaining - _MARGIN_SECONDS, remaining / 2))
    if report.problems:
        raise MaintenanceError("; ".join(report.problems))
    return asdict(report)
