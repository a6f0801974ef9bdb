"""Everything the endpoints need, wired once."""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import peewee
from starlette.requests import Request
from starlette.responses import Response

from core import __version__
from core.errors import SettingsError, StoreUnavailable
from core.idempotency import Answer, once
from handler.idempotency import attempt_of, kept_of, response_of
from infra.database import Database, GiveUp, Session, UseCase, open_database
from infra.settings import SERVICE, Settings
from infra.telemetry.catalogue import OF_THE_LOG
from infra.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from infra.backups.backups import Backups
    from infra.maintenance.routine import MaintenanceRoutine
    from infra.objectives.watch import Watch
    from infra.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class Service:
    settings: Settings
    database: Database
    maintenance: "MaintenanceRoutine | None"  # None: another process does it
    metrics: Metrics
    lasting: bool  # a server, and no instance on Lambda
    started: float  # seconds since 1970
    tracing: "Tracing | None"

    @cached_property
    def watch(self) -> "Watch":
        """Made when it is first asked for: no request needs it, and a cold start has no time for it."""
        from infra.maintenance.report import Report
        from infra.objectives.stores import stores_of
        from infra.objectives.watch import Watch

        return Watch(
            self.settings,
            stores_of(self.settings, lambda: self.database.txid),
            totals=self.metrics.totals,
            gauges=self.gauges,
            report=lambda: self.maintenance.report if self.maintenance else Report(),
            writes=lambda: dict(self.metrics.newest_writes),
            lasting=self.lasting,
            started=self.started,
        )

    def gauges(self) -> dict[str, float]:
        found = self.metrics.gauges() | self.database.gauges()
        own = self.maintenance.gauges() if self.maintenance else {}
        return found | (self.watch.gauges(self.database.txid, own) if self.lasting else own)


def open_service(
    settings: Settings,
    metrics: Metrics,
    backups: "Backups | None",
    *,
    lasting: bool = True,
    give_up: GiveUp | None = None,
) -> Service:
    """Raises ServiceError when the database cannot be opened. `backups`: for maintenance, if this process is to do it;
    `lasting`: the database file outlives this process; `give_up`: see `Database`.
    """
    started = time.time()
    tracing = _open_tracing(settings, metrics)
    if settings.database_url:
        metrics.leave_out(OF_THE_LOG)
    database = open_database(settings, lasting=lasting, metrics=metrics, give_up=give_up)
    job = None
    if backups:  # a function leaves it to another one, and would load a tenth of its modules in vain
        from infra.maintenance.apart import MaintenanceApart
        from infra.maintenance.job import open_maintenance
        from infra.maintenance.routine import MaintenanceRoutine

        maintenance = open_maintenance(settings, backups, metrics)
        apart = MaintenanceApart(settings, maintenance.steps, metrics) if lasting else None
        job = MaintenanceRoutine(maintenance, metrics, lambda: database.txid, apart)
    logger.info("%s %s serves %s", SERVICE, __version__, settings.database)
    return Service(settings, database, job, metrics, lasting, started, tracing)


def _open_tracing(settings: Settings, metrics: Metrics) -> "Tracing | None":
    """Raises SettingsError when spans are asked for, and what makes them is not installed."""
    if not settings.otlp_endpoint:
        return None
    try:
        from infra.telemetry.tracing import Tracing
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"OTEL_EXPORTER_OTLP_ENDPOINT is set, and {error.name} is not installed: "
            "pip install -r requirements-otel.txt, or build the image with TRACES=yes, or unset it"
        ) from error
    metrics.spans = tracing = Tracing(settings.otlp_endpoint)
    return tracing


def open_server_service(settings: Settings, give_up: GiveUp | None = None) -> Service:
    """Raises ServiceError when the database or the place for backups is unusable. `give_up`: see `Database`."""
    if settings.database_url:  # it is backed up by those who look after it
        return open_service(settings, Metrics(), None, give_up=give_up)
    from infra.backups.backups import open_backups  # see `open_service`

    metrics = Metrics()
    backups = open_backups(settings, metrics.backups_asked)
    try:
        backups.store.check()
    except StoreUnavailable as error:
        # It may come back, and requests do not need it: the timer goes on trying and says so
        logger.error("backups cannot be made now: %s", error)
    return open_service(settings, metrics, backups, give_up=give_up)


def service_of(request: Request) -> Service:
    service: Service = request.scope["app"].service
    return service


def read(request: Request, use_case: UseCase[T]) -> Awaitable[T]:
    return service_of(request).database.read(use_case, session_of(request))


async def write(request: Request, use_case: UseCase[T], answer_of: Callable[[T], Response]) -> Response:
    """Carry it out and answer. With an Idempotency-Key the answer is kept in the same transaction, and is all that
    happens when the request comes again.
    """
    database, session = service_of(request).database, session_of(request)
    attempt = await attempt_of(request)
    if attempt is None:
        response = answer_of(await database.write(with_use_noted(request, use_case), session))
    else:
        keep_hours = service_of(request).settings.keep_idempotency_keys_hours

        def write_once(db: peewee.Database) -> Answer:
            return once(db, attempt, lambda db: kept_of(answer_of(use_case(db))), keep_hours)

        response = response_of(await database.write(with_use_noted(request, write_once), session))
    if location := response.headers.get("Location"):  # below wherever the service is for its caller
        response.headers["Location"] = quote(request.scope.get("root_path", "")) + location
    return response


def with_use_noted(request: Request, use_case: UseCase[T]) -> UseCase[T]:
    """What is to be noted of the caller's key goes into the same commit."""
    use = request.scope["state"].get("use")
    return use.with_it(use_case) if use else use_case


def session_of(request: Request) -> Session:
    return request.scope["state"].get("session") or Session()
