import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.telemetry.logs import remove_context_keys, set_context_keys
from infra.telemetry.metrics import Metrics

logger = logging.getLogger("handler.request")

_NOBODY_LEFT = 499  # to answer: nginx's number for a client that has gone
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)


class RequestLog:
    """Gives every request its id, its line in the log and its place in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        # an event of Lambda may hold half a surrogate pair, which no answer can repeat; there is nothing of that name
        for part in ("method", "path"):
            scope[part] = scope[part].encode("utf-8", "replace").decode()
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        set_context_keys(request_id=request_id)  # type: ignore[arg-type]
        status, is_answered = 500, False
        self.metrics.in_flight += 1

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
            status = status if is_answered else _NOBODY_LEFT
        finally:
            seconds = time.perf_counter() - started
            self.metrics.in_flight -= 1
            route = scope["route"].path if "route" in scope else "none"
            self.metrics.request_finished(_method(scope), route, status, seconds)
            _log(scope, status, seconds)
            remove_context_keys(["request_id"])


def _log(scope: Scope, status: int, seconds: float) -> None:
    level = logging.ERROR if status >= 500 else logging.INFO
    fields = {
        "method": scope["method"],
        "path": scope["path"],
        "status_code": status,
        "duration_ms": round(seconds * 1000, 3),
        **scope["state"].get("who", {}),
    }
    if code := scope["state"].get("code"):
        fields["code"] = code
    logger.log(level, "%s %s %d", scope["method"], scope["path"], status, extra=fields)


def _method(scope: Scope) -> str:
    """Metric labels are kept for ever: a caller must not be able to invent new ones."""
    known = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    return scope["method"] if scope["method"] in known else "other"


def _request_id(scope: Scope) -> str:
    given = Headers(scope=scope).get("x-request-id", "")
    if _REQUEST_ID.fullmatch(given):
        return given
    if "aws.context" in scope:
        return str(scope["aws.context"].aws_request_id)
    return uuid4().hex
