from collections.abc import Awaitable, Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.fields import on_answer


def _encoded(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode(), value.encode()


# For answers that no browser is to show, frame or guess the type of; a page brings a policy of its own
_SECURITY = [
    _encoded("X-Content-Type-Options", "nosniff"),
    _encoded("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    _encoded("Referrer-Policy", "no-referrer"),
    _encoded("Cross-Origin-Resource-Policy", "same-origin"),
]
_NOT_KEPT = _encoded("Cache-Control", "no-store")
# What has a validator may be kept by the one who asked, and used when the service says that it is still so
_ASKED_FOR_EACH_TIME = _encoded("Cache-Control", "private, no-cache")
_NAMES = frozenset(name for name, _ in (*_SECURITY, _NOT_KEPT))


class SecurityHeaders:
    """Gives every answer, also that to a fault, what a browser or a cache must know, unless it says so itself."""

    def __init__(self, app: ASGIApp, hsts_seconds: int) -> None:
        self.app = app
        self.hsts = _encoded("Strict-Transport-Security", f"max-age={hsts_seconds}")
        self.hsts_seconds = hsts_seconds

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        on_answer(scope, self._add_safely if self.hsts_seconds and scope["scheme"] == "https" else _add_missing)
        return self.app(scope, receive, send)

    def _add_safely(self, message: Message) -> None:
        _add_missing(message)
        message["headers"].append(self.hsts)


def _add_missing(message: Message) -> None:
    message["headers"] += missing_fields(message["status"], dict(message["headers"]))


def missing_fields(status: int, given: Collection[bytes]) -> list[tuple[bytes, bytes]]:
    """`given`: the names of those that are there."""
    caching = _ASKED_FOR_EACH_TIME if status < 400 and b"etag" in given else _NOT_KEPT
    fields = [*_SECURITY, caching]
    return fields if _NAMES.isdisjoint(given) else [field for field in fields if field[0] not in given]
