"""Starlette that answers a constant: the limit of whatever is built on it."""

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

ITEM = {
    **{"id": 1, "name": "item 1", "description": "A thing of brass, as it is described in the catalogue"},
    **{"price": "12.50", "quantity": 3, "version": 1},
    **{"created_at": "2026-01-31T12:00:00.000000Z", "updated_at": "2026-01-31T12:00:00.000000Z"},
}
ONE = json.dumps(ITEM, separators=(",", ":")).encode()
PAGE = json.dumps({"items": [ITEM] * 50, "next_cursor": None}, separators=(",", ":")).encode()
FINE = b'{"status":"ok"}'


async def health(request: Request) -> Response:
    return Response(FINE, media_type="application/json")


async def list_items(request: Request) -> Response:
    return Response(PAGE, media_type="application/json")


async def get_item(request: Request) -> Response:
    return Response(ONE, media_type="application/json")


app = Starlette(
    routes=[Route("/health", health), Route("/api/items", list_items), Route("/api/items/{item_id}", get_item)]
)
