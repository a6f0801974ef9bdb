import re
from collections.abc import Awaitable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.fields import fields_of, on_answer
from handler.problems import Code, problem
from infra.database import Database

HEADER = "X-Commit-Txid"
_FIELD = HEADER.lower().encode()
_TXID = re.compile(rb"[0-7][0-9a-f]{15}")


class CommitTxid:
    """Read-your-writes across instances: every answer names the newest commit it shows, and a caller that
    sends this back is never shown anything older.
    """

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self.app = app
        self.database = database

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        given = fields_of(scope).get(_FIELD)
        if given is not None and not _TXID.fullmatch(given):
            detail = f"{HEADER} should be 16 hexadecimal digits below 2^63, as an answer has it."
            return problem(scope, Code.MALFORMED_HEADER, detail)(scope, receive, send)
        session = self.database.session(int(given, 16) if given else 0)
        scope["state"]["session"] = session

        def add_txid(message: Message) -> None:
            if session.shown:
                message["headers"].append((_FIELD, b"%016x" % session.shown))

        on_answer(scope, add_txid)
        return self.app(scope, receive, send)
