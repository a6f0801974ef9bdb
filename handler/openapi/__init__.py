"""OpenAPI 3.1 out of the routes and the Pydantic models.

`python -m handler.openapi` prints the document; the copy in openapi.json is checked by a test.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

API_TITLE = "Items API"

F = TypeVar("F", bound=Callable[..., Any])


def may_be_left_out(schema: dict[str, Any]) -> None:
    """Of a field in a schema: that it is absent is no value of it."""
    del schema["default"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What is said of an endpoint where it is written; the rest follows from its route, and from what it takes."""

    id: str
    summary: str
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_types: tuple[str, ...] = ("application/json",)
    # a model or a view is JSON; else the media types of a text, none for an answer that is empty
    answers: Mapping[int, type | tuple[str, ...]] = field(default_factory=dict)
    problems: tuple[int, ...] = ()  # statuses, besides those that follow


def operation(id: str, summary: str, **details: Any) -> Callable[[F], F]:
    """Describe an endpoint where it is written. `id`: what generated clients call it."""

    def describe(endpoint: F) -> F:
        endpoint.operation = Operation(id, summary, **details)  # type: ignore[attr-defined]
        return endpoint

    return describe
