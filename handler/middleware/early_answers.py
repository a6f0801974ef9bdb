import asyncio
from collections.abc import Awaitable
from contextlib import suppress

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.fields import fields_of

MAX_BYTES = 16 * 1024 * 1024
MAX_SECONDS = 10.0


class EarlyAnswers:
    """Lets an answer that does not wait for the whole body reach a client that listens only after it has sent all.

    The answer goes out at once, what still comes is read and dropped, up to `MAX_BYTES` and `MAX_SECONDS`, and then the
    connection ends (RFC 9112, 9.6). To end it with unread bytes is a reset, which takes the answer with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        has_body = scope["type"] == "http" and _has_body(scope)
        return (self._answer if has_body else self.app)(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        unread, early = True, False

        async def receive_to_the_end() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def send_and_go_on(message: Message) -> None:
            nonlocal early
            if message["type"] == "http.response.start":
                early = unread
                if early:
                    MutableHeaders(scope=message)["Connection"] = "close"
            elif early:
                message["more_body"] = True
            await send(message)

        await self.app(scope, receive_to_the_end, send_and_go_on)
        if early:
            with suppress(TimeoutError, asyncio.CancelledError):  # a server that stops cancels it; the answer is out
                await asyncio.wait_for(_drop_body(receive), MAX_SECONDS)
            await send({"type": "http.response.body"})


async def _drop_body(receive: Receive) -> None:
    dropped, more = 0, True
    while more and dropped < MAX_BYTES:
        message = await receive()
        dropped += len(message.get("body", b""))
        more = message.get("more_body", False)


def _has_body(scope: Scope) -> bool:
    fields = fields_of(scope)
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"
