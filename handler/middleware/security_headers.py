from starlette.types import ASGIApp, Message, Receive, Scope, Send

# For answers that no browser is to show, frame or guess the type of; a page brings a policy of its own
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_NOT_KEPT = (b"cache-control", b"no-store")
# What has a validator may be kept by the one who asked, and used when the service says that it is still so
_ASKED_FOR_EACH_TIME = (b"cache-control", b"private, no-cache")


class SecurityHeaders:
    """Gives every answer, also that to a fault, what a browser or a cache must know, unless it says so itself."""

    def __init__(self, app: ASGIApp, hsts_seconds: int) -> None:
        self.app = app
        self.hsts = (b"strict-transport-security", b"max-age=%d" % hsts_seconds)
        self.hsts_seconds = hsts_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        secure = self.hsts_seconds and scope["scheme"] == "https"

        async def send_with_fields(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = message["headers"]
                fields += missing_fields(message["status"], {name for name, _ in fields})
                if secure:
                    fields.append(self.hsts)
            await send(message)

        await self.app(scope, receive, send_with_fields)


def missing_fields(status: int, names: set[bytes]) -> list[tuple[bytes, bytes]]:
    caching = _ASKED_FOR_EACH_TIME if status < 400 and b"etag" in names else _NOT_KEPT
    return [field for field in (*_SECURITY, caching) if field[0] not in names]
