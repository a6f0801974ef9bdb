import asyncio
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.fields import field_of
from handler.problems import Code, Refusal


class BodyLimit:
    """Stops reading a body that is announced, or turns out, to be longer than `limit` bytes: 413, or that is not there
    `seconds` after it was first asked for: 408.

    Starlette's own limit answers in text/plain.
    """

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self.app = app
        self.limit = limit
        self.seconds = seconds

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        received, deadline, more = 0, 0.0, True

        async def receive_limited() -> Message:
            nonlocal received, deadline, more
            announced = field_of(scope, b"content-length") or ""
            if announced.isdecimal() and int(announced) > self.limit:
                raise self._too_large()
            deadline = deadline or asyncio.get_running_loop().time() + self.seconds
            try:
                async with asyncio.timeout_at(deadline if more else None):
                    message = await receive()
            except TimeoutError:
                raise self._too_slow() from None
            more = message.get("more_body", False)
            received += len(message.get("body", b""))
            if received > self.limit:
                raise self._too_large()
            return message

        return self.app(scope, receive_limited, send)

    def _too_large(self) -> Refusal:
        return Refusal(Code.BODY_TOO_LARGE, f"The body is larger than {self.limit} bytes.")

    def _too_slow(self) -> Refusal:
        return Refusal(
            Code.REQUEST_TIMEOUT, f"The body did not arrive within {self.seconds:g} s.", {"Connection": "close"}
        )
