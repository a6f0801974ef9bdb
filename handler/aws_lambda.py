"""The Lambda function that answers requests: HTTP events through Mangum.

Everything is opened at import, which Lambda does once for each execution environment. The database is a
copy in a new directory under /tmp, built from the commit log at REPLICA_URL; the function in aws_maintenance.py looks
after that log. Without REPLICA_URL the database is filled from the newest backup, and what was written after that
backup is lost with the environment: every start says so. Only then this function makes the backups.
"""

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from aws_lambda_powertools import Logger
from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES

from core.errors import BackupMissing, ServiceError
from handler.asgi import create_app
from handler.callers.gate import check_function_mode
from handler.export import NDJSON
from handler.gateways import excess, found_in, headers_of, is_request, readable, refusal
from handler.middleware.security_headers import missing_fields
from handler.problems import MEDIA_TYPE, Code, Refusal, problem
from handler.scheduled import is_scheduled, run_scheduled
from handler.service import Service, open_service
from handler.startup import read_settings, refuse_to_start
from infra.disk.workspace import workspace_of_this_process
from infra.objectives.status import Condition
from infra.settings import SERVICE, Settings
from infra.telemetry.cloudwatch import CloudWatchMetrics
from infra.telemetry.log_lines import LogLines
from infra.telemetry.logs import configure_logging

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 10.0  # as a server

_settings = read_settings()
_handler, _formatter = configure_logging(_settings.log_level)
_powertools = Logger(SERVICE, level=_settings.log_level, logger_handler=_handler, logger_formatter=_formatter)
_metrics = CloudWatchMetrics()
LogLines(_metrics).start()


def _open(settings: Settings) -> Service:
    check_function_mode(settings)
    # /tmp outlives a crash of the runtime: each process has a directory of its own, and removes those of the dead
    directory = workspace_of_this_process()
    settings = settings.model_copy(update={"database_path": directory / "app.db"})
    if settings.replica_url or settings.database_url:
        return open_service(settings, _metrics, None, lasting=False)
    from infra.backups.backups import open_backups  # nothing else that this function does needs it

    backups = open_backups(settings, _metrics.backups_asked)
    try:
        restored = backups.restore(settings.database_path)
        logger.info("restored %s", restored.name, extra={"backup": restored.name, "rows": restored.rows})
    except BackupMissing:
        logger.warning("no backup at %s: starting with an empty database", settings.backup_url)
    logger.warning(
        "backup-only mode (no REPLICA_URL): writes since the last backup are lost when this instance ends, and "
        "instances do not see each other; keep the reserved concurrency at 1"
    )
    private = settings.model_copy(update={"replica_url": (directory / "replica").as_uri()})
    return replace(open_service(private, _metrics, backups, lasting=False), settings=settings)


def _open_or_exit() -> Service:
    try:
        return _open(_settings)
    except ServiceError as error:
        refuse_to_start(error)


_service = _open_or_exit()
_looked = time.monotonic()
_loop = asyncio.new_event_loop()
asyncio.set_event_loop(_loop)
# "off": Mangum would otherwise run start-up and shutdown at every invocation
_http = Mangum(create_app(_service), lifespan="off", text_mime_types=[*DEFAULT_TEXT_MIME_TYPES, MEDIA_TYPE, NDJSON])


@_powertools.inject_lambda_context
def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serves Function URL, HTTP API, REST API and ALB events; in backup-only mode runs maintenance for a scheduled one.

    Raises ValueError for any other event, ServiceError when maintenance failed.
    """
    _powertools.set_correlation_id(_correlation_id(event) or context.aws_request_id)
    try:
        if is_request(event):
            with _service.database.in_background():
                return _answer(event, context)
        if _service.maintenance and is_scheduled(event):
            return run_scheduled(_service.maintenance, event, context)
        raise ValueError("unknown event: expected an HTTP request")
    finally:
        _metrics.flush(_service.gauges)
        _look_at_times()
        if _service.tracing:
            _service.tracing.flush()


def _look_at_times() -> None:
    """For /ops/status: not at each invocation, and not at the first, for which somebody has waited long enough."""
    global _looked
    if time.monotonic() - _looked >= _LOOK_SECONDS:
        _looked = time.monotonic()
        _service.watch.look(Condition())


def _answer(event: dict[str, Any], context: Any) -> dict[str, Any]:
    try:
        answer = dict(_http(readable(event), context))
    except Refusal as error:
        return _refusal(event, context, error)
    except UnicodeError:
        return _refusal(event, context, Refusal(Code.MALFORMED_REQUEST, "The request holds text that is not UTF-8."))
    if why := excess(event, answer):
        return _refusal(event, context, Refusal(Code.ANSWER_TOO_LARGE, why), headers_of(answer))
    return answer


def _refusal(
    event: dict[str, Any], context: Any, refused: Refusal, kept: dict[str, str] | None = None
) -> dict[str, Any]:
    level = logging.ERROR if refused.status_code >= 500 else logging.INFO
    logger.log(level, "%d: %s", refused.status_code, refused.detail, extra={"code": refused.code})
    always = {name.decode(): value.decode() for name, value in missing_fields(refused.status_code, set())}
    headers = {"x-request-id": context.aws_request_id, **(kept or {}), **always, "content-type": MEDIA_TYPE}
    scope = {"path": "", "state": {"request_id": headers["x-request-id"]}}
    answer = problem(scope, refused.code, refused.detail)
    return refusal(event, refused.status_code, headers, bytes(answer.body))


def _correlation_id(event: dict[str, Any]) -> str | None:
    """The caller's side of the story: API Gateway's request id, the load balancer's trace id, the event's id."""
    places = ("requestContext.requestId", "headers.x-amzn-trace-id", "id")
    return next((str(found) for place in places if (found := found_in(event, place))), None)
