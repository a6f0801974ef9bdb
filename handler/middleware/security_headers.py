from starlette.types import ASGIApp, Message, Receive, Scope, Send


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


class SecurityHeaders:
    """Gives every answer, also that to a fault, what a browser or a cache must know, unless it says so itself."""

    def __init__(self, app: ASGIApp, hsts_seconds: int) -> None:
        self.app = app
        self.hsts = _encoded("Strict-Transport-Security", f"max-age={hsts_seconds}")
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
