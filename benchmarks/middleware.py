"""What each layer of middleware adds to a request, in Markdown.

`make bench-middleware`. Between two calls of an application that answers at once lies what a layer costs.
"""

import asyncio
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.buckets import Buckets
from handler.fields import edit_answer
from handler.middleware.connection_limit import ConnectionLimit
from handler.middleware.cors import Cors
from handler.middleware.guess_limit import GuessLimit
from handler.middleware.header_limit import HeaderLimit
from handler.middleware.rate_limit import RateLimit
from handler.middleware.security_headers import SecurityHeaders

REQUESTS, ROUNDS = 20_000, 5


def main() -> None:
    plain = microseconds(answer_at_once)
    buckets = Buckets(1e9, 1000)
    layers: list[ASGIApp] = [
        SecurityHeaders(answer_at_once, hsts_seconds=1),
        Cors(answer_at_once, origins=["https://example.com"]),
        ConnectionLimit(answer_at_once),
        HeaderLimit(answer_at_once),
        GuessLimit(answer_at_once, buckets),
        RateLimit(answer_at_once, buckets),
    ]
    print("| layer | microseconds a request |\n|---|---|")
    for layer in layers:
        print(f"| {type(layer).__name__} | {microseconds(layer) - plain:.1f} |")


def microseconds(app: ASGIApp) -> float:
    """The best of some rounds: whatever else the machine does only adds to it."""
    return min(asyncio.run(_round(app)) for _ in range(ROUNDS)) / REQUESTS * 1e6


async def _round(app: ASGIApp) -> float:
    started = time.perf_counter()
    for _ in range(REQUESTS):
        await _ask(app, _scope())
    return time.perf_counter() - started


async def _ask(app: ASGIApp, scope: Scope) -> None:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            edit_answer(scope, message)

    await app(scope, asyncio.Future, send)


def _scope() -> dict[str, Any]:
    headers = [(b"host", b"localhost:8000"), (b"accept", b"*/*"), (b"origin", b"https://example.com")]
    return {
        **{"type": "http", "method": "GET", "scheme": "https", "path": "/api/items", "root_path": ""},
        **{"headers": headers, "client": ("192.0.2.1", 50000), "state": {"request_id": "x"}},
    }


async def answer_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})


if __name__ == "__main__":
    main()
