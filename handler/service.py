"""Everything the endpoints need, wired once."""

import logging
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request

from core.errors import StoreUnavailable
from infra.backup_job import BackupJob
from infra.backups import Backups, open_backups
from infra.database import Database, Session, UseCase, open_database
from infra.settings import Settings
from infra.telemetry import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    settings: Settings
    database: Database
    backup_job: BackupJob
    metrics: Metrics

    def gauges(self) -> dict[str, float]:
        gauges = self.database.gauges()
        if last := self.backup_job.last_success:
            gauges["backup_last_success_timestamp_seconds"] = last
        return gauges


def open_service(settings: Settings, backups: Backups, metrics: Metrics, *, lasting: bool = True) -> Service:
    """Raises ServiceError when the database cannot be opened. `lasting`: its file outlives this process."""
    database = open_database(settings, lasting=lasting)
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


async def read(request: Request, use_case: UseCase[T]) -> T:
    return await service_of(request).database.read(use_case, session_of(request))


async def write(request: Request, use_case: UseCase[T]) -> T:
    return await service_of(request).database.write(use_case, session_of(request))


def session_of(request: Request) -> Session:
    return getattr(request.state, "session", None) or Session()
