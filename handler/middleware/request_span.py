from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.middleware.request_log import METHODS, NOBODY_LEFT, route_of
from infra.telemetry.tracing import Tracing


class RequestSpan:
    """Gives every request its span, beneath its caller's, and its line in the log the span's id."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, status, is_answered = Headers(scope=scope), 500, False

        async def send_and_see(message: Message) -> None:
            nonlocal status, is_answered
            if message["type"] == "http.response.start":
                status, is_answered = message["status"], True
            await send(message)

        with self.tracing.request(headers.get("traceparent", ""), headers.get("tracestate", "")) as span:
            scope.setdefault("state", {})["trace"] = span.trace
            try:
                await self.app(scope, receive, send_and_see)
                status = status if is_answered else NOBODY_LEFT
            finally:
                method = scope["method"] if scope["method"] in METHODS else "_OTHER"
                span.answered(method, route_of(scope), scope["path"], scope["scheme"], status)
