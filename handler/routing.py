"""Which route takes a request, found without a look at each, and what its endpoint makes of it."""

from collections.abc import Sequence
from typing import Any

from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from core.errors import ServiceError
from handler.endpoint import Answering, methods_of
from handler.problems import answer_to


class IndexedRouter(Router):
    """Answers as Starlette's router does, but asks only those routes that can be meant; of two with the same path, the
    first has it. What an endpoint raises becomes the answer.
    """

    def __init__(self, routes: Sequence[Route], **options: Any) -> None:
        super().__init__(routes, redirect_slashes=False, **options)
        self._methods = {route.path: methods_of(route) for route in reversed(routes)}
        with_parameters = [route for route in routes if route.param_convertors]
        self._by_path = {
            path: next(route for route in routes if route.path_regex.match(path))
            for path in {route.path for route in routes} - {route.path for route in with_parameters}
        }
        self._by_begin = {
            begin: [route for route in with_parameters if f"{begin}/".startswith(f"{_begin_of(route)}/")]
            for begin in map(_begin_of, with_parameters)
        }

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        if scope["type"] != "http":
            return await super().app(scope, receive, send)
        request = Request(scope, receive, send)
        try:
            response = await self._answering(scope)(request)
        except (HTTPException, ServiceError) as error:
            response = answer_to(scope, error)
        await response(scope, receive, send)

    def _answering(self, scope: Scope) -> Answering:
        """Raises HTTPException: 404 or 405."""
        path = get_route_path(scope)
        route = self._by_path.get(path) or self._with_parameters(path, scope)
        scope["route"] = route
        methods = self._methods[route.path]
        answering = methods.get(scope["method"])
        if answering is None:
            raise HTTPException(405, headers={"Allow": ", ".join(methods)})
        return answering

    def _with_parameters(self, path: str, scope: Scope) -> Route:
        begin, routes = path, None
        while routes is None:
            if not begin:
                raise HTTPException(404)
            begin = begin.rpartition("/")[0]
            routes = self._by_begin.get(begin)
        for route in routes:
            if found := route.path_regex.match(path):
                scope["path_params"] = found.groupdict()
                return route
        raise HTTPException(404)


def _begin_of(route: Route) -> str:
    """The whole segments of its path that are before the first parameter."""
    return route.path.partition("{")[0].rpartition("/")[0]
