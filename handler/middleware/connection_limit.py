from collections.abc import Awaitable

from starlette.types import ASGIApp, Receive, Scope, Send

from handler.problems import too_many_connections
from handler.requests import is_probe

CROWDED = "crowded"


class ConnectionLimit:
    """Refuses what comes over a connection that is one too many, but says also there how the service is."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] == "http" and CROWDED in scope["state"] and not is_probe(scope):
            return too_many_connections(scope)(scope, receive, send)
        return self.app(scope, receive, send)
