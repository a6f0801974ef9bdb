from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.buckets import Buckets
from handler.fields import on_answer
from handler.middleware.rate_limit import COUNTED, address_key, too_many_requests
from handler.requests import is_probe


class GuessLimit:
    """Counts against the address what is refused before RateLimit has counted it, a 401 above all, so that nobody tries
    one key after the other.

    It is around what asks for a key; the key of an address without tokens is not even looked at.
    """

    def __init__(self, app: ASGIApp, buckets: Buckets) -> None:
        self.app = app
        self.buckets = buckets

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or is_probe(scope):
            return self.app(scope, receive, send)
        key = address_key(scope)
        if answer := too_many_requests(scope, self.buckets, key):
            return answer(scope, receive, send)

        def count(message: Message) -> None:
            if COUNTED not in scope["state"]:
                self.buckets.take(key)

        on_answer(scope, count)
        return self.app(scope, receive, send)
