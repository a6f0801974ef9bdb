"""OpenAPI 3.1 out of the routes and the Pydantic models.

`python -m handler.openapi` prints the document; the copy in openapi.json is checked by a test.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field
from pydantic.json_schema import models_json_schema
from starlette.routing import BaseRoute, Route

from core import __version__

API_TITLE = "Items API"

F = TypeVar("F", bound=Callable[..., Any])

_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True)
class Operation:
    summary: str
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    body_types: tuple[str, ...] = ("application/json",)
    answers: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)


def operation(summary: str, **details: Any) -> Callable[[F], F]:
    """Describe an endpoint where it is written."""

    def describe(endpoint: F) -> F:
        endpoint.operation = Operation(summary, **details)  # type: ignore[attr-defined]
        return endpoint

    return describe


def _may_be_left_out(schema: dict[str, Any]) -> None:
    del schema["default"]


class Problem(BaseModel):
    """RFC 9457 problem details. `stored` is a member of each 503 that answers a write: "no" is certain. With "unknown"
    comes `txid`: when an answer names that one or a later one in X-Commit-Txid, a read shows the write, or nothing ever
    will. Only a server that stops knows no `txid`.
    """

    type: str
    title: str
    status: int
    code: str
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] = []
    stored: Literal["no", "unknown"] = Field("no", json_schema_extra=_may_be_left_out)
    txid: str = Field("", pattern="^[0-7][0-9a-f]{15}$", json_schema_extra=_may_be_left_out)


class _Schemas:
    """The schemas of models and of all that is nested in them, each under a name of its own."""

    def __init__(self, models: Iterable[type[BaseModel]]) -> None:
        self._references, found = models_json_schema(
            [(model, "validation") for model in models], ref_template=_SCHEMAS + "{model}"
        )
        self._by_name: dict[str, Any] = found["$defs"]

    def reference(self, model: type[BaseModel]) -> dict[str, Any]:
        return {"schema": self._references[model, "validation"]}

    def properties(self, query: type[BaseModel]) -> dict[str, Any]:
        found: dict[str, Any] = self._by_name[self._name(query)]["properties"]
        return found

    def without(self, queries: Iterable[type[BaseModel]]) -> dict[str, Any]:
        """By name; what a query holds is said where its parameters are."""
        hidden = {self._name(query) for query in queries}
        return {name: schema for name, schema in sorted(self._by_name.items()) if name not in hidden}

    def _name(self, model: type[BaseModel]) -> str:
        return str(self._references[model, "validation"]["$ref"]).removeprefix(_SCHEMAS)


def build_openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    described = [(route, *found) for route in routes if isinstance(route, Route) for found in _operations(route)]
    operations = [operation for _, _, operation in described]
    queries = {operation.query for operation in operations if operation.query}
    models: set[type[BaseModel]] = {Problem, *(model for operation in operations for model in _models(operation))}
    schemas = _Schemas(queries | models)
    paths: dict[str, Any] = {}
    for route, method, operation in described:
        paths.setdefault(route.path, {})[method] = _describe(operation, route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": API_TITLE, "version": __version__},
        "servers": [{"url": "."}],  # where this document is, behind whatever stage or base path
        "paths": paths,
        "components": {"schemas": schemas.without(queries - models)},
    }


def _models(operation: Operation) -> Iterable[type[BaseModel]]:
    return [model for model in (operation.body, *operation.answers.values()) if model]


def _operations(route: Route) -> Iterable[tuple[str, Operation]]:
    endpoints: list[tuple[str, Any]]
    if isinstance(route.endpoint, type):
        endpoints = [(method, getattr(route.endpoint, method, None)) for method in _METHODS]
    else:
        endpoints = [(method, route.endpoint) for method in _METHODS if method.upper() in (route.methods or ())]
    return [(method, endpoint.operation) for method, endpoint in endpoints if hasattr(endpoint, "operation")]


def _describe(operation: Operation, route: Route, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer"}} for name in route.param_convertors
    ]
    if operation.query:
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": schema}
            for name, schema in schemas.properties(operation.query).items()
        ]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        content = {media_type: schemas.reference(operation.body) for media_type in operation.body_types}
        described["requestBody"] = {"required": True, "content": content}
    described["responses"] = {
        str(status): _answer(status, model, schemas) for status, model in operation.answers.items()
    } | {"default": _problem("Problem details", schemas)}
    return described


def _answer(status: int, model: type[BaseModel] | None, schemas: _Schemas) -> dict[str, Any]:
    phrase = HTTPStatus(status).phrase
    if 400 <= status < 500:
        return _problem(phrase, schemas)
    answer: dict[str, Any] = {"description": phrase}
    if model:
        answer["content"] = {"application/json": schemas.reference(model)}
    return answer


def _problem(description: str, schemas: _Schemas) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": schemas.reference(Problem)}}
