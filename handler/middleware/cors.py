from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from handler.problems import Code, problem

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_ASKED = ("Authorization", "Idempotency-Key", "If-Match", "If-None-Match", "X-API-Key", "X-Commit-Txid", "X-Request-ID")
_ANSWERED = (
    *("ETag", "Idempotent-Replayed", "Location", "RateLimit", "RateLimit-Policy", "Retry-After", "WWW-Authenticate"),
    *("X-Commit-Txid", "X-Request-ID"),
)


class Cors(CORSMiddleware):
    """Lets the pages of the named origins call the service, without cookies. A preflight needs no key."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        super().__init__(app, origins, _METHODS, _ASKED, expose_headers=_ANSWERED)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = Headers(scope=scope)
            if "origin" in headers and "access-control-request-method" in headers:
                answer = self.preflight_response(headers)
                if answer.status_code != 200:
                    detail = f"{bytes(answer.body).decode()}."
                    answer = problem(scope, Code.PREFLIGHT_REFUSED, detail, {"Vary": answer.headers["vary"]})
                return await answer(scope, receive, send)
        await super().__call__(scope, receive, send)
