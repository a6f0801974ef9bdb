"""Reading a request: query, path and JSON body into checked models."""

import re
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Scope

from core.errors import FieldError, InvalidInput
from core.schemas import ROWIDS
from handler.fields import field_of
from handler.problems import Code, Refusal

M = TypeVar("M", bound=BaseModel)

MERGE_PATCH = ("application/json", "application/merge-patch+json")

_BODY = "handler.body"  # where a request has it that was read
_ID = re.compile(r"0|-?[1-9][0-9]{0,18}", re.ASCII)
_MAX_FIELDS = 50
_MOST_ERRORS = 100  # a body of nothing but unknown fields has as many


def is_probe(scope: Scope) -> bool:
    """Whether somebody asks how the service is, which no limit may keep from an answer."""
    return get_route_path(scope) in ("/health", "/ready")


def id_of(request: Request) -> int:
    """Read the id from the last parameter of the route's path. Raises HTTPException 404 for what can be no row's id."""
    *_, text = request.path_params.values()
    if not _ID.fullmatch(text) or int(text) not in ROWIDS:
        raise HTTPException(404)
    return int(text)


def read_query(request: Request, model: type[M]) -> M:
    """Raises Refusal (400) for broken UTF-8 or too many parameters, InvalidInput for wrong parameters."""
    try:
        raw = request.scope["query_string"].decode("ascii")
        pairs = parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS)
    except UnicodeError:
        raise Refusal(Code.MALFORMED_QUERY, "The query string is not percent-encoded UTF-8.") from None
    except ValueError:
        raise Refusal(Code.MALFORMED_QUERY, f"The query string has more than {_MAX_FIELDS} fields.") from None
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidInput([FieldError(name, "is given more than once") for name in values if names.count(name) > 1])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _invalid(error) from None


async def read_json(request: Request, model: type[M], media_types: tuple[str, ...] = ("application/json",)) -> M:
    """Raises Refusal (415 or 400) for another type or broken or cut-off JSON, InvalidInput for wrong fields."""
    content_type, _, parameters = (field_of(request.scope, b"content-type") or "").partition(";")
    if content_type.strip().lower() not in media_types:
        raise Refusal(
            Code.UNSUPPORTED_MEDIA_TYPE, f"Send the body as {' or '.join(media_types)} (Content-Type header)."
        )
    if "charset" in parameters.lower() and "utf-8" not in parameters.lower():
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "JSON is UTF-8; send no other charset.")
    if (field_of(request.scope, b"content-encoding") or "identity").lower() != "identity":
        raise Refusal(Code.UNSUPPORTED_MEDIA_TYPE, "Send the body without Content-Encoding.")
    body = await read_body(request)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid(error) from None


async def read_body(request: Request) -> bytes:
    """Raises Refusal (400) for a body that is cut off."""
    body: bytes | None = request.scope.get(_BODY)
    if body is None:
        pieces, more = [], True
        while more:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                detail = "The connection was closed before the whole body was there."
                raise Refusal(Code.MALFORMED_BODY, detail)
            pieces.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = request.scope[_BODY] = b"".join(pieces)
    return body


def _invalid(error: ValidationError) -> Exception:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    if found[0]["type"] == "json_invalid":
        return Refusal(Code.MALFORMED_BODY, f"The body is not JSON. {found[0]['msg']}.")
    return InvalidInput([FieldError(_path(entry["loc"]), entry["msg"]) for entry in found[:_MOST_ERRORS]])


def _path(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location) or "body"
