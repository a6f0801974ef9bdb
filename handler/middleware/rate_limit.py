from collections.abc import Awaitable
from functools import lru_cache
from ipaddress import ip_address
from math import ceil

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.buckets import Buckets
from handler.fields import on_answer
from handler.problems import Code, problem
from handler.requests import is_probe

COUNTED = "counted"  # in the request's state: it has come as far as RateLimit
Key = tuple[str, str]  # the policy's name, and whose bucket it is


class RateLimit:
    """Refuses what comes too fast from one caller or, of those whom nobody knows, from one address: 429.

    It knows of the requests to this process alone. The headers are those of draft-ietf-httpapi-ratelimit-headers-10.
    """

    def __init__(self, app: ASGIApp, buckets: Buckets) -> None:
        self.app = app
        self.buckets = buckets

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or is_probe(scope):
            return self.app(scope, receive, send)
        key = _key_of(scope)
        scope["state"][COUNTED] = True
        if answer := too_many_requests(scope, self.buckets, key):
            return answer(scope, receive, send)
        self.buckets.take(key)

        def add_level(message: Message) -> None:
            fields = _fields(self.buckets, key).items()
            message["headers"] += [(name.lower().encode(), value.encode()) for name, value in fields]

        on_answer(scope, add_level)
        return self.app(scope, receive, send)


def too_many_requests(scope: Scope, buckets: Buckets, key: Key) -> Response | None:
    level = buckets.level(key)
    if level.tokens > 0:
        return None
    detail = f"More than {buckets.burst} requests at once, or {buckets.rate:g} a second, are too many of one {key[0]}."
    headers = {"Retry-After": str(level.wait), **_fields(buckets, key)}
    return problem(scope, Code.RATE_LIMITED, detail, headers)


def _fields(buckets: Buckets, key: Key) -> dict[str, str]:
    level, policy = buckets.level(key), key[0]
    return {
        "RateLimit-Policy": f'"{policy}";q={buckets.burst};w={ceil(buckets.burst / buckets.rate)}',
        "RateLimit": f'"{policy}";r={max(level.tokens, 0)};t={level.wait}',
    }


def _key_of(scope: Scope) -> Key:
    caller = getattr(scope["state"].get("caller"), "id", "")
    return ("caller", caller) if caller else address_key(scope)


def address_key(scope: Scope) -> Key:
    client = scope.get("client")
    return "address", _network(str(client[0])) if client else ""


@lru_cache(4096)
def _network(address: str) -> str:
    """What one host or household is given: an address, or the /64 around it. All that is no address is one place."""
    try:
        ip = ip_address(address)
    except ValueError:
        return ""
    if ip.version == 4:
        return address
    return str(ip.ipv4_mapped or f"{int(ip) >> 64:016x}")
