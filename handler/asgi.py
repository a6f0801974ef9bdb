"""The ASGI application: `create_app(service)`, and `app` for `uvicorn handler.asgi:app`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from core.errors import ServiceError
from handler import dashboard, docs, items, ops, status
from handler.buckets import Buckets
from handler.callers.gate import check_server_mode, gate_for
from handler.middleware.authentication import Authentication
from handler.middleware.body_limit import BodyLimit
from handler.middleware.commit_txid import CommitTxid
from handler.middleware.compression import Compression
from handler.middleware.conditional_reads import ConditionalReads
from handler.middleware.connection_limit import ConnectionLimit
from handler.middleware.cors import Cors
from handler.middleware.early_answers import EarlyAnswers
from handler.middleware.guess_limit import GuessLimit
from handler.middleware.header_limit import HeaderLimit
from handler.middleware.outside_address import OutsideAddress
from handler.middleware.rate_limit import RateLimit
from handler.middleware.request_log import METRICS, RequestLog
from handler.middleware.security_headers import SecurityHeaders
from handler.middleware.unhandled_errors import UnhandledErrors
from handler.routing import IndexedRouter
from handler.service import Service, open_server_service
from handler.startup import end_failed_start, read_settings, refuse_to_start
from infra.settings import Settings
from infra.telemetry.event_loop import watch_event_loop
from infra.telemetry.log_lines import LogLines
from infra.telemetry.logs import lines_on_a_thread

ROUTES = [*ops.routes, *status.routes, *dashboard.routes, *docs.routes, *items.routes]


def create_app(service: Service) -> Starlette:
    settings = service.settings
    buckets = Buckets(settings.rate_limit, settings.rate_burst) if settings.rate_limit else None
    middleware = [
        Middleware(EarlyAnswers) if service.lasting else Middleware(OutsideAddress),
        *_request_span(service),
        Middleware(
            RequestLog,
            metrics=service.metrics,
            slow_ms=settings.slow_request_ms,
            sample=settings.access_log_sample,
        ),
        # around whatever may answer, so that a 500 and a 429 have them, too
        Middleware(SecurityHeaders, hsts_seconds=settings.hsts_seconds),
        *([Middleware(Cors, origins=settings.cors_origins)] if settings.cors_origins else []),
        Middleware(UnhandledErrors),
        Middleware(ConnectionLimit),
        *([Middleware(GuessLimit, buckets=buckets)] if buckets is not None else []),
        Middleware(HeaderLimit),
        # a log that only this instance has gives its commits numbers that mean nothing elsewhere
        *([Middleware(CommitTxid, database=service.database)] if settings.replica_url else []),
        Middleware(
            Authentication,
            gate=gate_for(settings, service.database),
            metrics=service.metrics,
            docs_open=settings.docs_open,
        ),
        *([Middleware(RateLimit, buckets=buckets)] if buckets is not None else []),
        Middleware(ConditionalReads),
        Middleware(Compression),
        Middleware(BodyLimit, limit=settings.max_body_bytes, seconds=settings.request_timeout_seconds),
    ]
    app = Application(service, middleware)
    app.router = IndexedRouter(ROUTES, lifespan=_lifespan)
    return app


class Application(Starlette):
    """Has no layers that are not named above: UnhandledErrors is around all of them that may fail."""

    def __init__(self, service: Service, middleware: Sequence[Middleware]) -> None:
        super().__init__(middleware=middleware)
        self.service = service

    def build_middleware_stack(self) -> ASGIApp:
        app: ASGIApp = self.router.app
        for layer, args, kwargs in reversed(self.user_middleware):
            app = layer(app, *args, **kwargs)
        return app


def _request_span(service: Service) -> list[Middleware]:
    if not service.tracing:
        return []
    from handler.middleware.request_span import RequestSpan

    return [Middleware(RequestSpan, tracing=service.tracing)]


@asynccontextmanager
async def _lifespan(app: Application) -> AsyncIterator[dict[str, Any]]:
    """A server's life: maintenance on a timer; at the end the WAL is moved into the file and the lock released. The
    state is for those who see what never becomes a request.
    """
    service = app.service
    interval = service.settings.maintenance_interval_seconds
    async with AsyncExitStack() as at_the_end:  # the last first, and each whatever becomes of the others
        at_the_end.enter_context(lines_on_a_thread())
        if service.tracing:
            at_the_end.push_async_callback(asyncio.to_thread, service.tracing.close)
        at_the_end.push_async_callback(asyncio.to_thread, service.database.close)
        at_the_end.push_async_callback(asyncio.to_thread, service.watch.stop)
        if service.maintenance:
            at_the_end.push_async_callback(asyncio.to_thread, service.maintenance.stop)
        at_the_end.callback(LogLines(service.metrics).start().stop)
        at_the_end.callback(asyncio.create_task(watch_event_loop(service.metrics.loop_delayed)).cancel)
        service.watch.start(status.prober(service, asyncio.get_running_loop()))
        if interval and service.maintenance:
            service.maintenance.start(interval)
        yield {METRICS: service.metrics}


def server_app(settings: Settings) -> Starlette:
    try:
        check_server_mode(settings)
        return create_app(open_server_service(settings, end_failed_start))
    except ServiceError as error:
        refuse_to_start(error)


def __getattr__(name: str) -> Any:
    # `app` is made when a server asks for it, so that importing this module opens no database
    if name == "app":
        globals()["app"] = server_app(read_settings())
        return globals()["app"]
    raise AttributeError(name)
