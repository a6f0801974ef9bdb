"""Conditional requests (RFC 9110, 13): the entity tags that answers have, and that callers send back."""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, TypeVar

from peewee import Database
from pydantic_core import to_json
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

from core.errors import NotFound
from handler.fields import fields_of
from handler.problems import Code, Refusal
from handler.service import service_of
from infra.database import UseCase

T = TypeVar("T")
V = TypeVar("V")

_HASH_DIGITS = 16
_CODED = '-gzip"'
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_LIST = re.compile(r"[ \t]*(?:TAG[ \t]*)?(?:,[ \t]*(?:TAG[ \t]*)?)*".replace("TAG", _TAG.pattern))


def tag_of(shown: Any, body: bytes) -> str:
    """The entity tag of a view, or a model of some, of which `body` is the JSON: the version, if there is one, and a
    hash of all of it.

    After a restore the same version number may come with other contents, and a shell need not count it.
    """
    version, digest = getattr(shown, "version", None), hashlib.sha256(body).hexdigest()[:_HASH_DIGITS]
    return f'"{digest}"' if version is None else f'"{version}-{digest}"'


def coded(tag: str) -> str:
    """The tag of the compressed form, which must be another one (RFC 9110, 8.8.3.3)."""
    return f"{tag[:-1]}{_CODED}"


def uncoded(tag: str) -> str:
    return f'{tag.removesuffix(_CODED)}"' if tag.endswith(_CODED) else tag


def has_conditions(scope: Scope) -> bool:
    """Whether a request says anything about the state that it wants to meet."""
    fields = fields_of(scope)
    return b"if-match" in fields or b"if-none-match" in fields


@dataclass(frozen=True, slots=True)
class Tags:
    """What a field names: some states, or any."""

    field: str
    any: bool
    tags: frozenset[str]

    @classmethod
    def read(cls, headers: Headers, field: str, *, weakly: bool) -> "Tags | None":
        """Raises Refusal (400) for what is neither `*` nor a list of entity tags. `weakly`: how they are compared."""
        if not (values := headers.getlist(field)):
            return None
        value = ",".join(values).strip(" \t")
        tags = _TAG.findall(value)
        if value != "*" and not (tags and _LIST.fullmatch(value)):
            detail = f'{field} should be *, or ETags as answers have them, with their quotes: "3-0123456789abcdef"'
            raise Refusal(Code.MALFORMED_HEADER, detail)
        return cls(field, value == "*", frozenset(tag.removeprefix("W/") if weakly else tag for tag in tags))

    def name(self, *tags: str) -> bool:
        return self.any or not self.tags.isdisjoint(tags)

    def refusal(self, tag: str) -> Refusal:
        detail = f"{self.field} does not allow it: the ETag is now {tag}. Nothing was changed; read, and decide anew."
        return Refusal(Code.PRECONDITION_FAILED, detail)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a request says about the state that it wants to meet."""

    if_match: Tags | None
    if_none_match: Tags | None

    @classmethod
    def read(cls, headers: Headers) -> "Conditions":
        """Raises Refusal (400)."""
        return cls(
            Tags.read(headers, "If-Match", weakly=False),  # a weak tag never matches there (RFC 9110, 13.1.1)
            Tags.read(headers, "If-None-Match", weakly=True),
        )


def guarded(request: Request, find: UseCase[V], change: UseCase[T]) -> UseCase[T]:
    """Make of a change one that is done only if the caller's conditions hold for what `find` finds, in its transaction.

    Raises Refusal: 400 for a malformed field, 428 when the service demands If-Match; from the use case 412.
    """
    conditions = Conditions.read(request.headers)
    if conditions.if_match is None and service_of(request).settings.require_if_match:
        detail = "Send If-Match with the ETag of the state that this is to change, so that nobody's change is lost."
        raise Refusal(Code.IF_MATCH_REQUIRED, detail)
    if conditions == _NONE:
        return change

    def change_if_met(db: Database) -> T:
        _check(conditions, find, db)
        return change(db)

    return change_if_met


def _check(conditions: Conditions, find: UseCase[V], db: Database) -> None:
    if_match, if_none_match = conditions.if_match, conditions.if_none_match
    try:
        found = find(db)
    except NotFound as error:  # whatever the conditions say (RFC 9110, 13.2.1)
        if if_none_match and if_none_match.any:
            raise NotFound(
                f"{error} To make one under an id of one's own is not offered: POST gives it one."
            ) from error
        raise
    tag = tag_of(found, to_json(found))
    if if_match and not if_match.name(tag, coded(tag)):
        raise if_match.refusal(tag)
    if if_none_match and if_none_match.name(tag, coded(tag)):
        raise if_none_match.refusal(tag)


_NONE = Conditions(None, None)
