import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.problems import Code, problem
from infra.database import Database

HEADER = "X-Commit-Txid"
_TXID = re.compile(r"[0-7][0-9a-f]{15}", re.ASCII)


class CommitTxid:
    """Read-your-writes across instances: every answer names the newest commit it shows, and a caller that
    sends this back is never shown anything older.
    """

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self.app = app
        self.database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        given = Headers(scope=scope).get(HEADER)
        if given is not None and not _TXID.fullmatch(given):
            detail = f"{HEADER} should be 16 hexadecimal digits below 2^63, as an answer has it."
            answer = problem(scope, Code.MALFORMED_HEADER, detail)
            return await answer(scope, receive, send)
        session = self.database.session(int(given, 16) if given else 0)
        scope["state"]["session"] = session

        async def send_with_txid(message: Message) -> None:
            if message["type"] == "http.response.start" and session.shown:
                MutableHeaders(scope=message)[HEADER] = f"{session.shown:016x}"
            await send(message)

        await self.app(scope, receive, send_with_txid)
