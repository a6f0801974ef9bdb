"""What is known of log and backups, as numbers, by the names of infra/telemetry/catalogue.py."""

from infra.backups.retention import Backup
from infra.maintenance.drill import DUE_SECONDS, Drill
from infra.maintenance.report import Report


def gauges_of(report: Report, backup: Backup | None, head: int, now: float) -> dict[str, float]:
    """Return what a report of maintenance and the newest backup say. `head`: the newest commit, a TXID; `now`: seconds
    since 1970.
    """
    gauges: dict[str, float] = {}
    if report.last_success:
        gauges["maintenance_last_success_timestamp_seconds"] = report.last_success
    if verified := report.verified:
        gauges["verification_last_success_timestamp_seconds"] = verified.at
        # a run that has succeeded has made a backup, or found that the one before has all
        saved = max(verified.at, report.last_success)
        gauges["backup_lag_seconds"] = max(0.0, now - saved) if head > int(verified.txid, 16) else 0.0
        if head >= (snapshot := int(verified.snapshot, 16)):
            gauges["commit_log_commits_since_snapshot"] = head - snapshot
    if report.started_at:
        gauges["commit_log_unsound"] = int(report.unsound)
    if backup:
        gauges["backup_newest_timestamp_seconds"] = backup.time.timestamp()
        gauges["backup_newest_size_bytes"] = backup.size
    return gauges


def gauges_of_drill(drill: Drill | None) -> dict[str, float]:
    """Return what the last drill has measured, and when one last succeeded."""
    gauges: dict[str, float] = {}
    if drill and drill.duration_seconds is not None:
        gauges["restore_drill_duration_seconds"] = drill.duration_seconds
    if drill and drill.last_success:
        gauges["restore_drill_last_success_timestamp_seconds"] = drill.last_success
    return gauges


def drill_is_due(drill: Drill | None, began: float) -> float:
    """Return when the next one is: at once when the last has failed. `began`: since when there is anything to restore,
    for whoever has never had one. Both in seconds since 1970.
    """
    if drill and drill.problems:
        return drill.at
    return (drill.last_success if drill and drill.last_success else began) + DUE_SECONDS
