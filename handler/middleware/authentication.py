from starlette._utils import get_route_path
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import ServiceError
from handler.callers import Caller, Gate, NotLetIn, challenge, know
from handler.callers.access import scope_needed
from handler.problems import Code, answer_to
from infra.telemetry.metrics import Metrics

_NOBODY = Caller("", frozenset())


class Authentication:
    """Lets a request through when its caller may send it: `scope["state"]["caller"]` is who that is."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, docs_open: bool) -> None:
        self.app = app
        self.gate = gate
        self.metrics = metrics
        self.docs_open = docs_open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        # by the path as the router sees it
        needed = scope_needed(scope["method"], get_route_path(scope), self.docs_open)
        if needed is None:
            scope["state"]["caller"] = _NOBODY
            return await self.app(scope, receive, send)
        try:
            caller = await self.gate.admit(scope, needed)
            if needed not in caller.scopes:
                raise self._lacks(needed)
        except NotLetIn as error:
            self.metrics.caller_refused(error.reason)
            know(scope, **error.who, refused=error.reason)
            return await answer_to(scope, error)(scope, receive, send)
        except ServiceError as error:  # nobody can say now who this is
            return await answer_to(scope, error)(scope, receive, send)
        scope["state"]["caller"] = caller
        await self.app(scope, receive, send)
        if self.gate.leave:
            await self.gate.leave(scope)

    def _lacks(self, needed: str) -> NotLetIn:
        headers = challenge("insufficient_scope", scope=needed) if self.gate.takes_bearers else None
        return NotLetIn(Code.FORBIDDEN, f"This needs the scope {needed}, which the caller lacks.", "scope", headers)
