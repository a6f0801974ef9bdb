"""Holds answers to what openapi.json says of them."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
from jsonschema import Draft202012Validator

DOCUMENT: dict[str, Any] = json.loads((Path(__file__).parent.parent / "openapi.json").read_text())


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return part
    _, *names = part["$ref"].split("/")
    found = DOCUMENT
    for name in names:
        found = found[name]
    return found


def operation_at(method: str, path: str) -> dict[str, Any] | None:
    for template in sorted(DOCUMENT["paths"], key=lambda template: template.count("{")):
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path):
            found: dict[str, Any] | None = DOCUMENT["paths"][template].get(method.lower().replace("head", "get"))
            return found
    return None


def assert_described(response: httpx2.Response) -> None:
    """Its status, its headers and its body are those of an answer of its operation, if it is one's."""
    operation = operation_at(response.request.method, response.request.url.path)
    if operation is None:
        return
    assert str(response.status_code) in operation["responses"], f"{operation['operationId']}: {response.status_code}"
    answer = resolved(operation["responses"][str(response.status_code)])
    for name, header in answer["headers"].items():
        if (value := response.headers.get(name)) is None:
            assert not resolved(header).get("required"), f"{operation['operationId']}: no {name}"
        else:
            schema = resolved(header)["schema"]
            whole = schema.get("type") == "integer"
            assert problems_of(schema, int(value) if whole else value) == [], name
    media_type = response.headers.get("content-type", "").partition(";")[0]
    assert media_type in answer.get("content", {"": None}), f"{operation['operationId']}: {media_type}"
    if media_type in ("application/json", "application/problem+json") and response.request.method != "HEAD":
        body = json.loads(response.read())
        assert problems_of(answer["content"][media_type]["schema"], body) == []
        assert "code" not in body or f"`{body['code']}`" in answer["description"]


def problems_of(schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a value that should be of a schema of the document."""
    return [error.message for error in _validator(json.dumps(schema)).iter_errors(value)]


@cache
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator({**json.loads(schema), "components": DOCUMENT["components"]})
