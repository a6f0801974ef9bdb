"""Which route takes a request, found without a look at each."""

from collections.abc import Sequence
from typing import Any

from starlette._utils import get_route_path
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send


class IndexedRouter(Router):
    """Answers as Starlette's router does, but asks only those routes that can be meant."""

    def __init__(self, routes: Sequence[Route], **options: Any) -> None:
        super().__init__(routes, redirect_slashes=False, **options)
        with_parameters = [route for route in routes if route.param_convertors]
        self._by_path = {
            path: _router([route for route in routes if route.path_regex.match(path)])
            for path in {route.path for route in routes} - {route.path for route in with_parameters}
        }
        self._by_begin = {
            begin: _router([route for route in with_parameters if f"{begin}/".startswith(f"{_begin_of(route)}/")])
            for begin in map(_begin_of, with_parameters)
        }
        self._nothing = _router([])

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        if scope["type"] != "http":
            return await super().app(scope, receive, send)
        await self._router_of(get_route_path(scope)).app(scope, receive, send)

    def _router_of(self, path: str) -> Router:
        found, begin = self._by_path.get(path), path
        while found is None and begin:
            begin = begin.rpartition("/")[0]
            found = self._by_begin.get(begin)
        return found or self._nothing


def _router(routes: list[Route]) -> Router:
    return Router(routes, redirect_slashes=False)


def _begin_of(route: Route) -> str:
    """The whole segments of its path that are before the first parameter."""
    return route.path.partition("{")[0].rpartition("/")[0]
