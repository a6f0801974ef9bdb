import asyncio
import logging

from starlette.types import ASGIApp, Receive, Scope, Send

from handler.fields import has_begun
from handler.problems import Code, problem, stopping

logger = logging.getLogger("handler.error")


class UnhandledErrors:
    """Turns what nobody expected into a 500 that tells the caller nothing and the log everything.

    A server that stops gives up on what takes too long by cancelling it; that is answered, too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if has_begun(scope):
                raise
            await stopping(scope)(scope, receive, send)
        except Exception as error:
            logger.exception("unhandled %s", type(error).__name__)
            if has_begun(scope):
                raise
            await problem(scope, Code.INTERNAL_ERROR, "Internal Server Error")(scope, receive, send)
