"""OpenAPI 3.1 out of the routes and the Pydantic models.

`python -m handler.openapi` prints the document; the copy in openapi.json is checked by a test.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, Field
from starlette.routing import BaseRoute, Route

from core import __version__

F = TypeVar("F", bound=Callable[..., Any])

_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMA_REF = "#/components/schemas/{model}"


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
    detail: str
    instance: str
    request_id: str
    errors: list[dict[str, str]] = []
    stored: Literal["no", "unknown"] = Field("no", json_schema_extra=_may_be_left_out)
    txid: str = Field("", pattern="^[0-7][0-9a-f]{15}$", json_schema_extra=_may_be_left_out)


def build_openapi(routes: Iterable[BaseRoute]) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    models: dict[str, type[BaseModel]] = {"Problem": Problem}
    for route in routes:
        if isinstance(route, Route):
            described = {method: _describe(found, route, models) for method, found in _operations(route)}
            if described:
                paths[route.path] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "Items API", "version": __version__},
        "servers": [{"url": "."}],  # where this document is, behind whatever stage or base path
        "paths": paths,
        "components": {"schemas": {name: _schema(model) for name, model in sorted(models.items())}},
    }


def _operations(route: Route) -> Iterable[tuple[str, Operation]]:
    if isinstance(route.endpoint, type):
        endpoints: list[tuple[str, Any]] = [(method, getattr(route.endpoint, method, None)) for method in _METHODS]
        return [(method, endpoint.operation) for method, endpoint in endpoints if hasattr(endpoint, "operation")]
    operation = getattr(route.endpoint, "operation", None)
    return [("get", operation)] if operation else []


def _describe(operation: Operation, route: Route, models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    described: dict[str, Any] = {"summary": operation.summary}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer"}} for name in route.param_convertors
    ]
    if operation.query:
        schema = operation.query.model_json_schema()
        parameters += [
            {"name": name, "in": "query", "required": False, "schema": field_schema}
            for name, field_schema in schema["properties"].items()
        ]
    if parameters:
        described["parameters"] = parameters
    if operation.body:
        content = {media_type: _reference(operation.body, models) for media_type in operation.body_types}
        described["requestBody"] = {"required": True, "content": content}
    described["responses"] = {
        str(status): _answer(status, model, models) for status, model in operation.answers.items()
    } | {"default": _answer(None, Problem, models)}
    return described


def _answer(status: int | None, model: type[BaseModel] | None, models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    if status is None or status == 404:
        description = "Problem details" if status is None else HTTPStatus.NOT_FOUND.phrase
        return {"description": description, "content": {"application/problem+json": _reference(Problem, models)}}
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if model:
        answer["content"] = {"application/json": _reference(model, models)}
    return answer


def _reference(model: type[BaseModel], models: dict[str, type[BaseModel]]) -> dict[str, Any]:
    models[model.__name__] = model
    return {"schema": {"$ref": _SCHEMA_REF.format(model=model.__name__)}}


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(ref_template=_SCHEMA_REF)
    for name in schema.pop("$defs", {}):
        assert name in ("ItemView",), f"{name} is referenced and must be listed as an answer of its own"
    return schema


def main() -> None:
    from handler.asgi import ROUTES

    print(json.dumps(build_openapi(ROUTES), indent=2))  # noqa: T201


if __name__ == "__main__":
    main()
