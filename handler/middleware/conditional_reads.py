from collections.abc import Awaitable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.conditions import Conditions, coded, has_conditions, uncoded
from handler.problems import Refusal, problem


class ConditionalReads:
    """Answers 304 to a caller that has what it would be sent, and 412 to one that wants a state which is not there.

    It compares with the very tag that would be sent: the compressed form of an answer has one of its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or not has_conditions(scope):
            return self.app(scope, receive, send)
        try:
            conditions = Conditions.read(Headers(scope=scope))
        except Refusal as error:
            return problem(scope, error.code, error.detail)(scope, receive, send)
        replaced = False

        async def send_unless_known(message: Message) -> None:
            nonlocal replaced
            if message["type"] == "http.response.start" and (instead := _instead(scope, conditions, message)):
                replaced = True
                await instead(scope, receive, send)
            if not replaced:
                await send(message)

        return self.app(scope, receive, send_unless_known)


def _instead(scope: Scope, conditions: Conditions, message: Message) -> Response | None:
    """The answer in place of the one that this begins, if there is to be one."""
    headers = Headers(scope=message)
    if (sent := headers.get("ETag")) is None or message["status"] != 200:
        return None
    tag, if_match, if_none_match = uncoded(sent), conditions.if_match, conditions.if_none_match
    if if_match and not if_match.name(tag, coded(tag)):
        refusal = if_match.refusal(tag)
        return problem(scope, refusal.code, refusal.detail)
    if if_none_match and if_none_match.name(sent):
        kept = {name: value for name, value in headers.items() if not name.startswith("content-")}
        return Response(status_code=304, headers=kept)
    return None
