"""The document as a whole."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute, Route

from core import __version__
from core.schemas import PageQuery
from handler.callers.access import scope_needed
from handler.openapi import API_TITLE, Operation
from handler.openapi.parts import HEADERS, PARAMETERS, Part, Problem, problem_answer, reference, schemes_of, security_of

_METHODS = ("get", "post", "put", "patch", "delete")
_SCHEMAS = "#/components/schemas/"
_DESCRIPTION = "What is at no path here is a 404; another method is a 405, whose `Allow` names those that there are."


class _Schemas:
    """The schemas of models and views and of all that is nested in them, each under a name of its own."""

    def __init__(self, models: Iterable[type]) -> None:
        self._references, found = TypeAdapter.json_schemas(
            [(model, "validation", TypeAdapter(model)) for model in models], ref_template=_SCHEMAS + "{model}"
        )
        self._by_name: dict[str, Any] = found["$defs"]

    def reference(self, model: type) -> Part:
        return dict(self._references[model, "validation"])

    def properties(self, model: type) -> Part:
        found: Part = self._by_name[self._name(model)]["properties"]
        return found

    def without(self, queries: Iterable[type[BaseModel]]) -> Part:
        """By name; what a query holds is said where its parameters are."""
        hidden = {self._name(query) for query in queries}
        return {name: schema for name, schema in sorted(self._by_name.items()) if name not in hidden}

    def _name(self, model: type) -> str:
        return str(self._references[model, "validation"]["$ref"]).removeprefix(_SCHEMAS)


class _Described:
    """An operation at its place."""

    def __init__(self, route: Route, method: str, operation: Operation) -> None:
        self.path = route.path
        self.names = list(route.param_convertors)
        self.method = method
        self.operation = operation
        self.scope = scope_needed(method.upper(), route.path, docs_open=True)
        self.is_limited = self.path not in ("/health", "/ready")
        self.uses_database = self.path.startswith("/api/")
        self.writes = self.uses_database and method != "get"
        self.is_paged = operation.query is not None and issubclass(operation.query, PageQuery)
        self.is_conditional = self.uses_database and (
            bool(self.names) or (method == "get" and isinstance(operation.answers[200], type))
        )

    def models(self) -> list[type]:
        answers = [model for model in self.operation.answers.values() if isinstance(model, type)]
        return [*answers, *([self.operation.body] if self.operation.body else [])]

    def problems(self) -> set[int]:
        """The statuses of what may be wrong."""
        found = {400, 431, 500, 503, *self.operation.problems}
        if self.scope:
            found |= {401, 403}
        if self.is_limited:
            found |= {429}
        if self.uses_database:
            found |= {412, 413}
        if self.operation.query:
            found |= {422}
        if self.names or self.is_paged:
            found |= {404}
        if self.operation.body:
            found |= {408, 415}
        if self.writes:
            found |= {409, 422, 507}
        if self.writes and self.is_conditional:
            found |= {428}
        return found

    def describe(self, schemas: _Schemas, others: "list[_Described]", auth_mode: str | None) -> Part:
        tag = self.path.split("/")[2] if self.uses_database else "operations"
        described: Part = {"operationId": self.operation.id, "summary": self.operation.summary, "tags": [tag]}
        described["security"] = security_of(self.scope, auth_mode)
        described["parameters"] = self._parameters(schemas)
        if body := self.operation.body:
            content = {media_type: {"schema": schemas.reference(body)} for media_type in self.operation.body_types}
            described["requestBody"] = {"required": True, "content": content}
        described["responses"] = self._answers(schemas, others)
        return described

    def _parameters(self, schemas: _Schemas) -> list[Part]:
        a_row = {"in": "path", "required": True, "schema": {"type": "integer", "format": "int64"}, "example": 1}
        found: list[Part] = [{"name": name, **a_row} for name in self.names]
        if query := self.operation.query:
            found += [
                {"name": name, "in": "query", "required": False, "schema": schema}
                for name, schema in schemas.properties(query).items()
            ]
        shared = ["X-Request-ID", *(["X-Commit-Txid"] if self.uses_database else [])]
        shared += ["Idempotency-Key"] if self.writes else []
        shared += ["If-Match", "If-None-Match"] if self.is_conditional else []
        return found + [reference("parameters", name) for name in shared]

    def _answers(self, schemas: _Schemas, others: "list[_Described]") -> Part:
        problems = {str(status): reference("responses", f"Problem{status}") for status in self.problems()}
        answers = {
            str(status): self._answer(status, model, schemas, _links(self, status, others))
            for status, model in self.operation.answers.items()
        }
        if self.is_conditional and not self.writes:
            answers["304"] = self._answer(304, (), schemas, {})
        for status in problems.keys() & answers.keys():
            answers[status]["content"] |= problem_answer(int(status), schemas.reference(Problem))["content"]
        return dict(sorted((problems | answers).items()))

    def _answer(self, status: int, model: type | tuple[str, ...], schemas: _Schemas, links: Part) -> Part:
        if isinstance(model, tuple):
            content = {media_type: {"schema": {"type": "string"}} for media_type in model}
        else:
            content = {"application/json": {"schema": schemas.reference(model)}}
        answer: Part = {
            "description": HTTPStatus(status).phrase,
            "headers": {name: reference("headers", name) for name in self._headers(status, model, schemas)},
        }
        return answer | {name: part for name, part in (("content", content), ("links", links)) if part}

    def _headers(self, status: int, model: type | tuple[str, ...], schemas: _Schemas) -> list[str]:
        is_one = isinstance(model, type) and "id" in schemas.properties(model)
        found = ["X-Request-ID", "Cache-Control", *(["X-Commit-Txid"] if self.uses_database else [])]
        found += ["RateLimit", "RateLimit-Policy"] if self.is_limited else []
        found += ["Idempotent-Replayed"] if self.writes else []
        found += ["Location"] if status == 201 and is_one else []
        found += ["ETag"] if (self.uses_database and is_one) or (self.is_conditional and status in (200, 304)) else []
        return found


def _links(here: _Described, status: int, described: list[_Described]) -> Part:
    """What a caller may go on with: from a page to the next, from what is created to all that can be done with it."""
    if status == 201:
        below = [found for found in described if found.path == f"{here.path}/{{{''.join(found.names)}}}"]
        return {found.operation.id: _link(found, found.names[0], "id") for found in below}
    if here.is_paged:
        return {"next": _link(here, "cursor", "next_cursor")}
    return {}


def _link(to: _Described, parameter: str, field: str) -> Part:
    return {"operationId": to.operation.id, "parameters": {parameter: f"$response.body#/{field}"}}


def build_openapi(routes: Iterable[BaseRoute], auth_mode: str | None = None) -> Part:
    described = [found for route in routes if isinstance(route, Route) for found in _operations(route)]
    queries = {found.operation.query for found in described if found.operation.query}
    models: set[type] = {Problem, *(model for found in described for model in found.models())}
    schemas = _Schemas(queries | models)
    paths: Part = {}
    for found in described:
        paths.setdefault(found.path, {})[found.method] = found.describe(schemas, described, auth_mode)
    statuses = sorted(set().union(*(found.problems() for found in described)))
    problem = schemas.reference(Problem)
    return {
        "openapi": "3.1.0",
        "info": {"title": API_TITLE, "version": __version__, "description": _DESCRIPTION},
        "servers": [{"url": "."}],  # where this document is, behind whatever stage or base path
        "paths": paths,
        "components": {
            "schemas": schemas.without(queries - models),
            "headers": HEADERS,
            "parameters": PARAMETERS,
            "securitySchemes": schemes_of(auth_mode),
            "responses": {f"Problem{status}": problem_answer(status, problem) for status in statuses},
        },
    }


def _operations(route: Route) -> list[_Described]:
    endpoints: list[tuple[str, Any]]
    if isinstance(route.endpoint, type):
        endpoints = [(method, getattr(route.endpoint, method, None)) for method in _METHODS]
    else:
        endpoints = [(method, route.endpoint) for method in _METHODS if method.upper() in (route.methods or ())]
    return [
        _Described(route, method, endpoint.operation)
        for method, endpoint in endpoints
        if hasattr(endpoint, "operation")
    ]
