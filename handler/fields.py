"""The header fields of a request and its answer, for the layers around the endpoints.

Each layer is asked about each request, so what they all look up is found by name, and what they add to an answer is
added where it leaves: no layer passes on a message that it has nothing to do with.
"""

from collections.abc import Callable

from starlette.types import Message, Scope

Edit = Callable[[Message], None]

_FIELDS, _EDITS, _BEGUN = "handler.fields", "handler.edits", "handler.begun"


def fields_of(scope: Scope) -> dict[bytes, bytes]:
    """The fields of the request, by their names in lower case; of several with one name the first."""
    fields: dict[bytes, bytes] | None = scope.get(_FIELDS)
    if fields is None:
        fields = scope[_FIELDS] = dict(reversed(scope["headers"]))
    return fields


def field_of(scope: Scope, name: bytes) -> str | None:
    """The value of one of these."""
    value = fields_of(scope).get(name)
    return None if value is None else value.decode("latin-1")


def on_answer(scope: Scope, edit: Edit) -> None:
    """Have the message that begins the answer changed when it leaves, after what layers further in do to it."""
    scope.setdefault(_EDITS, []).append(edit)


def edit_answer(scope: Scope, message: Message) -> None:
    """Do all of that: the answer begins."""
    scope[_BEGUN] = True
    for edit in reversed(scope.get(_EDITS, ())):
        edit(message)


def has_begun(scope: Scope) -> bool:
    """Whether an answer is on its way."""
    return _BEGUN in scope
