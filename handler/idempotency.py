"""The Idempotency-Key header (draft-ietf-httpapi-idempotency-key-header), and what is kept of an answer for it."""

import hashlib
import json
import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from core.idempotency import Answer, Attempt
from handler.callers import caller_of
from handler.fields import field_of
from handler.problems import IDEMPOTENCY_KEY, Code, Refusal
from handler.requests import read_body

REPEATED = "Idempotent-Replayed"

_FIELD = IDEMPOTENCY_KEY.lower().encode()
_MOST_CHARACTERS = 255
# A string of RFC 9651 (3.3.3); or the same without quotes, as many clients send it, of which no part could mean more
_QUOTED = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"', re.ASCII)
_BARE = re.compile(r"[!#-+\--:<-\[\]-~]+", re.ASCII)
_ESCAPED = re.compile(r"\\(.)")
_KEPT_HEADERS = ("content-type", "etag", "location")
_CONDITIONS = ("if-match", "if-none-match")


async def attempt_of(request: Request) -> Attempt | None:
    """Read the key of a write, and what identifies the request. Raises Refusal (400) for what is no key."""
    if field_of(request.scope, _FIELD) is None:
        return None
    values = request.headers.getlist(IDEMPOTENCY_KEY)
    if len(values) > 1 or not 1 <= len(key := _key(values[0].strip(" \t"))) <= _MOST_CHARACTERS:
        example = "8e03978e-40d5-43dd-bc93"
        detail = f'{IDEMPOTENCY_KEY} should be one string of 1 to {_MOST_CHARACTERS} characters, as "{example}".'
        raise Refusal(Code.MALFORMED_HEADER, detail)
    return Attempt(caller_of(request).id, key, _fingerprint(request, await read_body(request)))


def _key(value: str) -> str:
    """Empty for what is none."""
    if quoted := _QUOTED.fullmatch(value):
        return _ESCAPED.sub(r"\1", quoted[1])
    return value if _BARE.fullmatch(value) else ""


def _fingerprint(request: Request, body: bytes) -> bytes:
    scope = request.scope
    asked: list[Any] = [
        scope["method"],
        scope["path"].removeprefix(scope.get("root_path", "")),
        scope["query_string"].decode("latin-1"),
        [request.headers.getlist(name) for name in _CONDITIONS],
    ]
    return hashlib.sha256(json.dumps(asked).encode() + b"\n" + body).digest()


def kept_of(response: Response) -> Answer:
    """What the next one with the same key is answered. Each has its own X-Request-ID and X-Commit-Txid."""
    headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
    return Answer(response.status_code, headers, bytes(response.body))


def response_of(answer: Answer) -> Response:
    response = Response(answer.body, answer.status, answer.headers)
    if answer.is_repeated:
        response.headers[REPEATED] = "true"
    return response
