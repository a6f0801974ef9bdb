"""The Lambda function that looks after the commit log and the backups; a schedule starts it.

It alone may delete. It has no database of its own, and answers no requests.
"""

from typing import Any

from aws_lambda_powertools import Logger

from core.errors import ServiceError, SettingsError
from handler.scheduled import is_scheduled, run_scheduled
from handler.startup import read_settings, refuse_to_start
from infra.backups.backups import open_backups
from infra.maintenance.job import open_maintenance
from infra.maintenance.routine import MaintenanceRoutine
from infra.settings import SERVICE
from infra.telemetry.cloudwatch import CloudWatchMetrics
from infra.telemetry.log_lines import LogLines
from infra.telemetry.logs import configure_logging

_settings = read_settings()
_handler, _formatter = configure_logging(_settings.log_level)
_powertools = Logger(SERVICE, level=_settings.log_level, logger_handler=_handler, logger_formatter=_formatter)
_metrics = CloudWatchMetrics()
LogLines(_metrics).start()


def _open() -> MaintenanceRoutine:
    try:
        if not (_settings.replica_url and _settings.backup_url):
            raise SettingsError("REPLICA_URL and BACKUP_URL must be set: what is there to look after?")
        return MaintenanceRoutine(
            open_maintenance(_settings, open_backups(_settings, _metrics.backups_asked), _metrics), _metrics
        )
    except ServiceError as error:
        refuse_to_start(error)


_job = _open()


@_powertools.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Runs maintenance and returns its report. Raises ValueError for an event that is not a scheduled one."""
    try:
        if not is_scheduled(event):
            raise ValueError('unknown event: expected {"action": "maintain"} or {"action": "merge"}')
        return run_scheduled(_job, event, context)
    finally:
        _metrics.flush(_job.gauges)
