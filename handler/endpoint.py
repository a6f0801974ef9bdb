"""A resource: a class with a method for each of HTTP's that it answers."""

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Answering = Callable[[Request], Awaitable[Response]]

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Endpoint:
    """Its methods are named as HTTP's are. HEAD is answered as GET is."""


def methods_of(route: Route) -> dict[str, Answering]:
    """What answers each method: those of an Endpoint, or a function that answers GET."""
    endpoint: Any = route.endpoint
    if not isinstance(endpoint, type):
        return {method: endpoint for method in _METHODS if method in (route.methods or ())}
    resource = endpoint()
    named = {method: getattr(resource, method.lower(), None) for method in _METHODS}
    named["HEAD"] = named["GET"]
    return {method: answering for method, answering in named.items() if answering}
