import logging
import os
import re
import time
from collections.abc import Awaitable
from zlib import crc32

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.fields import edit_answer, fields_of, has_begun
from infra.telemetry.logs import CONTEXT_KEYS, log_request
from infra.telemetry.metrics import Metrics
from infra.telemetry.trace_context import Trace, trace_of

logger = logging.getLogger("handler.request")

METRICS = "metrics"  # where a server's state has those that count what never becomes a request
NOBODY_LEFT = 499  # to answer: nginx's number for a client that has gone
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestLog:
    """Gives every request its id, its line in the log and its place in the metrics."""

    def __init__(self, app: ASGIApp, metrics: Metrics, slow_ms: int = 0, sample: float = 1.0) -> None:
        """`slow_ms`: what takes longer is a warning; 0 is never. `sample`: the share of the other lines that is kept,
        but for answers of 400 and more.
        """
        self.app = app
        self.metrics = metrics
        self.slow_ms = slow_ms or float("inf")
        self.sample = sample

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = time.perf_counter()
        # an event of Lambda may hold half a surrogate pair, which no answer can repeat; there is nothing of that name
        for part in ("method", "path"):
            if not scope[part].isascii():
                scope[part] = scope[part].encode("utf-8", "replace").decode()
        fields, state = fields_of(scope), scope.setdefault("state", {})
        request_id = state["request_id"] = _request_id(scope, fields)
        trace = state.get("trace") or _trace(fields)  # what the request's span has left, or its caller says
        keys = {"request_id": request_id, "route": _Route(scope)}
        CONTEXT_KEYS.set(keys | trace._asdict() if trace else keys)
        status = 500
        self.metrics.in_flight += 1

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                edit_answer(scope, message)
                message["headers"].append((b"x-request-id", request_id.encode()))
            return send(message)

        try:
            await self.app(scope, receive, send_with_id)
            status = status if has_begun(scope) else NOBODY_LEFT
        finally:
            seconds = time.perf_counter() - started
            self.metrics.in_flight -= 1
            route = route_of(scope)
            self.metrics.request_finished(_method(scope), route, status, seconds)
            self._log(scope, route, status, round(seconds * 1000, 3))
            CONTEXT_KEYS.set({})

    def _log(self, scope: Scope, route: str, status: int, milliseconds: float) -> None:
        is_slow, state, method, path = milliseconds > self.slow_ms, scope["state"], scope["method"], scope["path"]
        if status < 400 and not is_slow and not is_in_sample(state["request_id"], self.sample):
            return
        fields = {"route": route, "method": method, "path": path, "status_code": status, "duration_ms": milliseconds}
        fields |= state.get("who", {})
        if code := state.get("code"):
            fields["code"] = code
        message = f"{method} {path} {status}"
        if is_slow:
            message += f" after {int(milliseconds)} ms"
        if status < 500 and not is_slow:
            log_request(logger, message, fields)
        else:
            logger.log(logging.ERROR if status >= 500 else logging.WARNING, "%s", message, extra=fields)


class _Route:
    """Of a request, for the lines that are written while it is under way: known when one is."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def __str__(self) -> str:
        return route_of(self._scope)


def route_of(scope: Scope) -> str:
    return str(scope["route"].path) if "route" in scope else "none"


def _trace(fields: dict[bytes, bytes]) -> Trace | None:
    given = fields.get(b"traceparent")
    return trace_of(given.decode("latin-1")) if given else None


def is_in_sample(request_id: str, share: float) -> bool:
    """The same wherever a request of this id comes by, so that its lines stay together."""
    return share >= 1 or crc32(request_id.encode()) < share * 2**32


def _method(scope: Scope) -> str:
    """Metric labels are kept for ever: a caller must not be able to invent new ones."""
    return scope["method"] if scope["method"] in METHODS else "other"


def _request_id(scope: Scope, fields: dict[bytes, bytes]) -> str:
    given = fields.get(b"x-request-id")
    if given and _REQUEST_ID.fullmatch(given):
        return given.decode()
    if "aws.context" in scope:
        return str(scope["aws.context"].aws_request_id)
    return os.urandom(16).hex()
