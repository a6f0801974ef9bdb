"""Who calls, and whether to let them in: a module for each AUTH_MODE."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import Scope as AsgiScope

from core.api_keys import Scope
from handler.problems import Code, Refusal
from infra.settings import SERVICE


@dataclass(frozen=True, slots=True)
class Caller:
    """`id` is the same at every request of one caller, and empty where nobody is told apart."""

    id: str
    scopes: frozenset[Scope]


ANYBODY = Caller("", frozenset(Scope))


class NotLetIn(Refusal):
    """A request that is answered with 400, 401 or 403 before anything is done for it."""

    def __init__(
        self, code: Code, detail: str, reason: str, headers: Mapping[str, str] | None = None, **who: str
    ) -> None:
        """`reason`: for the metrics, so one of few; the log has it, too, and `who` was refused, as far as is known."""
        super().__init__(code, detail, headers)
        self.reason = reason
        self.who = who


class Gate(Protocol):
    """Lets callers in, or does not."""

    takes_bearers: bool  # of a key or a token

    async def admit(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Say who it is, who wants what the scope `needed` is for. Raises NotLetIn."""

    @property
    def leave(self) -> Callable[[AsgiScope], Awaitable[None]] | None:
        """What is to be done for a caller that was let in, when the answer is out."""


def caller_of(request: Request) -> Caller:
    caller: Caller = request.scope["state"]["caller"]
    return caller


def know(scope: AsgiScope, **who: str) -> None:
    """Have the request's line in the log say this of its caller."""
    scope["state"].setdefault("who", {}).update(who)


def challenge(error: str = "", **parameters: str) -> dict[str, str]:
    """What to send instead (RFC 6750, section 3)."""
    named: dict[str, Any] = {"realm": SERVICE, **({"error": error} if error else {}), **parameters}
    return {"WWW-Authenticate": "Bearer " + ", ".join(f'{name}="{value}"' for name, value in named.items())}
