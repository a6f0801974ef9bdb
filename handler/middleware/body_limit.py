from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.problems import Code, Refusal


class BodyLimit:
    """Stops reading a body that is announced, or turns out, to be longer than `limit` bytes: 413.

    Starlette's own limit answers in text/plain.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        received = 0
        announced = Headers(scope=scope).get("content-length", "")

        async def receive_limited() -> Message:
            nonlocal received
            if announced.isdecimal() and int(announced) > self.limit:
                raise self._too_large()
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.limit:
                raise self._too_large()
            return message

        await self.app(scope, receive_limited, send)

    def _too_large(self) -> Refusal:
        return Refusal(Code.BODY_TOO_LARGE, f"The body is larger than {self.limit} bytes.")
