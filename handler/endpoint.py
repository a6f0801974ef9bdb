"""A resource: a class with a method for each of HTTP's that it answers."""

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Answering = Callable[[Any, Request], Awaitable[Response]]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Endpoint(HTTPEndpoint):
    """Dispatches as Starlette's does, but has looked once what there is. HEAD is answered as GET is."""

    _by_method: ClassVar[dict[str, Answering]]

    def __init_subclass__(cls) -> None:
        named = {method: getattr(cls, method.lower(), None) for method in _METHODS}
        named["HEAD"] = named["GET"]
        cls._by_method = {method: answering for method, answering in named.items() if answering}

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope, self.receive, self.send = scope, receive, send
        self._allowed_methods = list(self._by_method)

    async def dispatch(self) -> None:
        """Answer the request."""
        request = Request(self.scope, self.receive, self.send)
        answering = self._by_method.get(self.scope["method"], type(self).method_not_allowed)
        response = await answering(self, request)
        await response(self.scope, self.receive, self.send)
