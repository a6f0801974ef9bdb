"""What operations have in common, said once in the document: headers, parameters and problems."""

from typing import Any, Literal

from pydantic import Field

from core.schemas import Model
from handler.openapi import may_be_left_out
from handler.problems import MEDIA_TYPE, Code

# A string of RFC 9651, or the same without quotes
TAG = r'(W/)?"[!#-~]*"'
KEY = r'^("([ !#-\[\]-~]|\\["\\]){1,255}"|[!#-+\--:<-\[\]-~]{1,255})$'
TAGS: dict[str, Any] = {
    "anyOf": [{"type": "string", "enum": ["*"]}, {"type": "string", "pattern": rf"^{TAG}([ \t]*,[ \t]*{TAG})*$"}]
}
TXID = "^[0-7][0-9a-f]{15}$"

Part = dict[str, Any]


class ProblemField(Model):
    field: str
    message: str


class Problem(Model):
    """RFC 9457 problem details. `stored` is a member of each 503 that answers a write: "no" is certain. With "unknown"
    comes `txid`: when an answer names that one or a later one in X-Commit-Txid, a read shows the write, or nothing ever
    will. Only a server that stops knows no `txid`.
    """

    type: str
    title: str
    status: int
    code: str = Field(description=f"For programs. So far: {', '.join(Code)}", pattern="^[a-z_]+$")
    detail: str = Field(description="For people; may be reworded")
    instance: str
    request_id: str
    errors: list[ProblemField] = Field([], json_schema_extra=may_be_left_out)
    stored: Literal["no", "unknown"] = Field("no", json_schema_extra=may_be_left_out)
    txid: str = Field("", pattern=TXID, json_schema_extra=may_be_left_out)


_BEARER: Part = {"type": "http", "scheme": "bearer"}
_KEY: Part = {"type": "apiKey", "in": "header", "name": "X-API-Key"}
_SIGNATURE: Part = {
    "type": "apiKey",
    "in": "header",
    "name": "Authorization",
    "description": "AWS Signature Version 4",
    "x-amazon-apigateway-authtype": "awsSigv4",
}
# How a caller shows who it is, by AUTH_MODE; without one that asks, it may all the same
_SCHEMES: dict[str | None, dict[str, Part]] = {
    "iam": {"signature": _SIGNATURE},
    "jwt": {"bearer": {**_BEARER, "bearerFormat": "JWT"}},
    "keys": {"bearer": _BEARER, "key": _KEY},
}
_ASKING_NOBODY = (None, "none")


def schemes_of(auth_mode: str | None) -> dict[str, Part]:
    return _SCHEMES["keys" if auth_mode in _ASKING_NOBODY else auth_mode]


def security_of(scope: str | None, auth_mode: str | None) -> list[dict[str, list[str]]]:
    """Any one of the schemes, with this scope; no scope is for everybody."""
    if scope is None:
        return []
    anybody = [dict[str, list[str]]()] if auth_mode in _ASKING_NOBODY else []
    return [{name: [scope]} for name in schemes_of(auth_mode)] + anybody


HEADERS: dict[str, Part] = {
    "X-Request-ID": {
        "description": "The caller's, or a new one; the log lines of the request have it",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "Cache-Control": {
        "description": "Whether the answer may be kept",
        "required": True,
        "schema": {"type": "string"},
    },
    "X-Commit-Txid": {
        "description": "The newest commit that the answer shows, or a newer one",
        "schema": {"type": "string", "pattern": TXID},
    },
    "Location": {
        "description": "Where it is from now on",
        "required": True,
        "schema": {"type": "string", "format": "uri-reference"},
    },
    "ETag": {
        "description": "Of what is shown; sent back in If-Match or If-None-Match",
        "required": True,
        "schema": {"type": "string", "pattern": f"^{TAG}$"},
    },
    "Idempotent-Replayed": {
        "description": "The write was done before, and this is what was answered then",
        "schema": {"const": "true"},
    },
    "RateLimit": {
        "description": "Requests that are left, and seconds until there is one more, where a limit is set",
        "schema": {"type": "string"},
    },
    "RateLimit-Policy": {"description": "The limit, where one is set", "schema": {"type": "string"}},
    "WWW-Authenticate": {
        "description": "What to send instead (RFC 6750, 3)",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before the request is sent again",
        "required": True,
        "schema": {"type": "integer", "minimum": 0},
    },
}

PARAMETERS: dict[str, Part] = {
    "X-Request-ID": {
        "name": "X-Request-ID",
        "in": "header",
        "description": "What the log lines of the request are to have; taken if it is 1 to 128 of A-Z a-z 0-9 . _ -",
        "schema": {"type": "string"},
        "example": "order-17.3",
    },
    "X-Commit-Txid": {
        "name": "X-Commit-Txid",
        "in": "header",
        "description": "Out of an answer: the caller is shown nothing older, or 412 while the log is not there",
        "schema": {"type": "string", "pattern": TXID},
        "example": "0000000000000001",
    },
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "One for each write: sent again with it, the write is done once, and answered as the first time",
        "schema": {"type": "string", "pattern": KEY},
        "example": "8e03978e-40d5-43dd-bc93-6894a57f9324",
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": "ETags, or *: only if what is there is one of these",
        "schema": TAGS,
        "example": "*",
    },
    "If-None-Match": {
        "name": "If-None-Match",
        "in": "header",
        "description": "ETags, or *: only if what is there is none of these",
        "schema": TAGS,
        "example": '"1-0123456789abcdef"',
    },
}


def problem_answer(status: int, schema: Part) -> Part:
    headers = ["X-Request-ID", "Cache-Control", "X-Commit-Txid", "RateLimit", "RateLimit-Policy"]
    headers += ["Retry-After"] if status in (429, 503) else []
    headers += ["WWW-Authenticate"] if status in (401, 403) else []
    return {
        "description": ", ".join(f"`{code}`" for code in Code if code.status == status),
        "headers": {name: reference("headers", name) for name in headers},
        "content": {MEDIA_TYPE: {"schema": schema}},
    }


def reference(kind: str, name: str) -> Part:
    return {"$ref": f"#/components/{kind}/{name}"}
