"""Everything the endpoints need, wired once."""

import logging
from dataclasses import dataclass

from starlette.requests import Request

from core.errors import StoreUnavailable
from infra.backup_job import BackupJob
from infra.backups import Backups, open_backups
from infra.database import Database
from infra.settings import Settings
from infra.telemetry import Metrics

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    database: Database
    backup_job: BackupJob
    metrics: Metrics

    def gauges(self) -> dict[str, float]:
        last = self.backup_job.last_success
        return self.database.sizes() | ({"backup_last_success_timestamp_seconds": last} if last else {})


def open_service(settings: Settings, backups: Backups, metrics: Metrics) -> Service:
    """Raises DatabaseError when the database cannot be opened."""
    database = Database(settings.database_path, settings.busy_timeout_seconds)
    return Service(settings, database, BackupJob(backups, settings.database_path, metrics), metrics)


def open_server_service(settings: Settings) -> Service:
    """Raises ServiceError when the database or the place for backups is unusable."""
    from infra.prometheus import PrometheusMetrics

    backups = open_backups(settings)
    try:
        backups.store.check()
    except StoreUnavailable as error:
        # It may come back, and requests do not need it: the backup timer goes on trying and says so
        logger.error("backups cannot be made now: %s", error)
    return open_service(settings, backups, PrometheusMetrics())


def service_of(request: Request) -> Service:
    service: Service = request.app.state.service
    return service
