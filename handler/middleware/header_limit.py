from collections.abc import Awaitable
from itertools import chain

from starlette.types import ASGIApp, Receive, Scope, Send

from handler.problems import Code, problem

MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 1024


class HeaderLimit:
    """Refuses requests with more header fields than any honest client sends."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http":
            size = sum(map(len, chain.from_iterable(scope["headers"])))
            if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
                detail = f"At most {MAX_HEADERS} header fields of {MAX_HEADER_BYTES} bytes together are accepted."
                return problem(scope, Code.HEADERS_TOO_LARGE, detail)(scope, receive, send)
        return self.app(scope, receive, send)
