"""The header fields of a request and its answer, for the layers around the endpoints.

Each layer is asked about each request, so what they all look up is found by name, and what they add to an answer is
added where it leaves: no layer passes on a message that it has nothing to do with.
"""

from collections.abc import Callable

from starlette.types import Message, Scope

Edit = Callable[[Message], None]

_FIELDS, _EDITS = "handler.fields", "handler.edits"


def field_of(scope: Scope, name: bytes) -> str | None:
    """The value of a field of the request, the first if it has more. `name`: in lower case."""
    fields = scope.get(_FIELDS)
    if fields is None:
        fields = scope[_FIELDS] = dict(reversed(scope["headers"]))
    value: bytes | None = fields.get(name)
    return None if value is None else value.decode("latin-1")


def on_answer(scope: Scope, edit: Edit) -> None:
    """Have the message that begins the answer changed when it leaves, after what layers further in do to it."""
    scope.setdefault(_EDITS, []).append(edit)


def edit_answer(scope: Scope, message: Message) -> None:
    """Do all of that."""
    for edit in reversed(scope.get(_EDITS, ())):
        edit(message)
