"""The document is made of whatever models a noun comes with."""

import re
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handler.openapi import operation
from handler.openapi.document import build_openapi

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
