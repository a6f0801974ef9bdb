from collections.abc import Awaitable

from starlette.datastructures import MutableHeaders
from starlette.middleware.gzip import GZipResponder
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.conditions import coded
from handler.fields import fields_of, on_answer

_SMALLEST = 1000  # bytes of an answer that is worth it
_LEVEL = 6
_COMPRESSED_ALREADY = ("image/png",)  # of what there is to answer


class Compression:
    """Compresses answers for callers that take gzip. The compressed form has an entity tag of its own."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        if b"gzip" not in fields_of(scope).get(b"accept-encoding", b""):
            on_answer(scope, _say_that_it_varies)
            return self.app(scope, receive, send)

        async def send_with_tag(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                if "Content-Encoding" in headers and (tag := headers.get("ETag")):
                    headers["ETag"] = coded(tag)
            await send(message)

        responder = GZipResponder(self.app, _SMALLEST, _LEVEL, exclude_content_types=_COMPRESSED_ALREADY)
        return responder(scope, receive, send_with_tag)


def _say_that_it_varies(message: Message) -> None:
    length = dict(message["headers"]).get(b"content-length")
    if length is None or int(length) >= _SMALLEST:
        MutableHeaders(scope=message).add_vary_header("Accept-Encoding")
