"""The document is made of whatever models a noun comes with."""

import json
import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openapi_spec_validator import validate
from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handler.openapi import operation
from handler.openapi.document import build_openapi
from tests.described import DOCUMENT, problems_of, resolved

ROOT = Path(__file__).parents[2]


class State(StrEnum):
    OPEN = "open"
    SENT = "sent"


class Line(BaseModel):
    item_id: int


class OrderView(BaseModel):
    lines: list[Line]


class OrderPage(BaseModel):
    orders: list[OrderView]


class OrderQuery(BaseModel):
    state: State = State.OPEN


class NewOrder(BaseModel):
    lines: list[Line]


@operation("list_orders", "List orders", query=OrderQuery, answers={200: OrderPage})
async def list_orders(request: Request) -> Response:
    return Response()


@operation("order", "Order", body=NewOrder, answers={201: OrderView})
async def order(request: Request) -> Response:
    return Response()


def document() -> dict[str, Any]:
    return build_openapi([Route("/api/orders", list_orders), Route("/api/orders", order, methods=["POST"])])


def references(found: object) -> set[str]:
    return set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(found)))


def test_whatever_is_nested_has_a_schema() -> None:
    made = document()
    assert set(made["components"]["schemas"]) == {
        *("Line", "NewOrder", "OrderPage", "OrderView", "Problem", "ProblemField", "State")
    }
    assert references(made) == set(made["components"]["schemas"])
    assert str(made).count("$ref") == str(made).count("#/components/")


def test_function_is_described_by_the_methods_of_its_route() -> None:
    paths = document()["paths"]["/api/orders"]
    assert {method: described["summary"] for method, described in paths.items()} == {
        "get": "List orders",
        "post": "Order",
    }


def test_what_a_caller_has_done_wrong_is_a_problem() -> None:
    made = document()
    answers = made["paths"]["/api/orders"]["post"]["responses"]
    assert answers["409"] == {"$ref": "#/components/responses/Problem409"}
    assert references(made["components"]["responses"]["Problem409"]) == {"Problem"}


def test_models_of_one_name_keep_their_own_schemas() -> None:
    one, two = (
        create_model("View", __module__="one", a=(int, ...)),
        create_model("View", __module__="two", b=(int, ...)),
    )

    @operation("both", "Both", answers={200: one, 201: two})
    async def both(request: Request) -> Response:
        return Response()

    made = build_openapi([Route("/both", both)])
    schemas = made["components"]["schemas"]
    answers = made["paths"]["/both"]["get"]["responses"]
    names = [references(answers[status]).pop() for status in ("200", "201")]
    assert [list(schemas[name]["properties"]) for name in names] == [["a"], ["b"]]


def test_printing_the_document_imports_no_module_twice() -> None:
    script = "import runpy, sys; import handler.asgi; runpy.run_module('handler.openapi', run_name='__main__')"
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "openapi.json").read_text()


# The document of the service


def test_document_is_openapi() -> None:
    validate(DOCUMENT)


def operations() -> dict[str, tuple[str, str, dict[str, Any]]]:
    found = [(path, method, each) for path, methods in DOCUMENT["paths"].items() for method, each in methods.items()]
    named = {each["operationId"]: (path, method, each) for path, method, each in found}
    assert len(named) == len(found)
    return named


def examples(part: dict[str, Any]) -> list[Any]:
    """Its own, or those of its schema."""
    schema = resolved(part["schema"])
    return [part["example"]] if "example" in part else schema.get("examples", [])


@pytest.mark.parametrize("name", operations())
def test_requests_that_the_document_shows_are_answered_as_it_says(name: str, client: httpx2.Client) -> None:
    path, method, described = operations()[name]
    for row in ({"name": "Lamp"}, {"name": "Torch"}):
        client.post("/api/items", json=row)
    parameters = [resolved(parameter) for parameter in described["parameters"]]
    shown = [(each["in"], each["name"], value) for each in parameters for value in examples(each)]
    url = path.format_map({name: value for place, name, value in shown if place == "path"})
    optional = [(place, name, value) for place, name, value in shown if place != "path"]
    bodies = [
        (media_type, json.dumps(body))
        for media_type, content in described.get("requestBody", {"content": {}})["content"].items()
        for body in examples(content)
    ] or [("", "")]
    assert bodies[0][0] or "requestBody" not in described
    for number, (media_type, body) in enumerate(bodies):
        given = optional if number == 0 else []
        headers = {name: value for place, name, value in given if place == "header"}
        response = client.request(
            method,
            url,
            params=[(name, value) for place, name, value in given if place == "query"],
            headers={**headers, **({"content-type": media_type} if media_type else {})},
            content=body,
        )
        assert response.status_code < 300, response.text  # and what it has is described: `serving` looks


def test_whatever_the_document_shows_is_of_its_schema() -> None:
    for name, schema in DOCUMENT["components"]["schemas"].items():
        for example in schema.get("examples", []):
            assert problems_of({"$ref": f"#/components/schemas/{name}"}, example) == []
    for _, _, described in operations().values():
        for parameter in map(resolved, described["parameters"]):
            for example in examples(parameter):
                assert problems_of(parameter["schema"], example) == []


def test_links_lead_from_what_is_created_to_what_can_be_done_with_it(client: httpx2.Client) -> None:
    links = operations()["create_item"][2]["responses"]["201"]["links"]
    assert links.keys() == {"get_item", "replace_item", "patch_item", "delete_item"}
    assert {json.dumps(link["parameters"]) for link in links.values()} == {'{"item_id": "$response.body#/id"}'}
    page = operations()["list_items"][2]["responses"]["200"]["links"]["next"]
    assert page == {"operationId": "list_items", "parameters": {"cursor": "$response.body#/next_cursor"}}
