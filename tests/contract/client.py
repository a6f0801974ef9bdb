"""Uses a client that was generated out of openapi.json against a live server: python client.py URL

Run where the client can be imported, with what it needs, and nothing of this project.
"""

import sys
from http import HTTPStatus
from uuid import uuid4

from items_api_client import Client
from items_api_client.api.items import create_item, delete_item, get_item, list_items, patch_item, replace_item
from items_api_client.api.operations import health, ready
from items_api_client.models import ItemPatch, ItemView, ListItemsOrder, NewItem, Problem
from items_api_client.types import UNSET


def main(url: str) -> None:
    with Client(base_url=url) as client:
        assert health.sync(client=client).status == "healthy"
        assert ready.sync(client=client).status == "ready"
        items = create_once(client)
        page_through(client, items)
        update(client, items[0])
        meet_problems(client)


def create_once(client: Client) -> list[ItemView]:
    items = []
    for number in range(5):
        key, new = str(uuid4()), NewItem(name=f"Lamp {number}", price="12.50", quantity=number)
        first, again = (
            create_item.sync_detailed(client=client, body=new, idempotency_key=key, x_request_id=f"try-{attempt}")
            for attempt in range(2)
        )
        assert first.status_code == again.status_code == HTTPStatus.CREATED
        assert (again.headers["Idempotent-Replayed"], again.headers["X-Request-ID"]) == ("true", "try-1")
        assert isinstance(first.parsed, ItemView)
        assert first.parsed == again.parsed
        items.append(first.parsed)
    assert len({item.id for item in items}) == 5
    return items


def page_through(client: Client, items: list[ItemView]) -> None:
    found, cursor = [], UNSET
    while cursor is not None:
        page = list_items.sync(client=client, limit=2, cursor=cursor, order=ListItemsOrder.VALUE_1, q="lamp")
        found += page.items
        cursor = page.next_cursor
    assert found == items[::-1]


def update(client: Client, item: ItemView) -> None:
    seen = get_item.sync_detailed(item.id, client=client)
    assert seen.parsed == item
    tag = seen.headers["ETag"]
    assert get_item.sync_detailed(item.id, client=client, if_none_match=tag).status_code == HTTPStatus.NOT_MODIFIED
    patched = patch_item.sync(item.id, client=client, body=ItemPatch(quantity=7), if_match=tag)
    assert (patched.name, patched.quantity, patched.version) == (item.name, 7, 2)
    late = patch_item.sync(item.id, client=client, body=ItemPatch(quantity=8), if_match=tag)
    assert isinstance(late, Problem)
    assert (late.status, late.code) == (412, "precondition_failed")
    replaced = replace_item.sync(item.id, client=client, body=NewItem(name="Torch"))
    assert (replaced.name, replaced.quantity, replaced.version) == ("Torch", 0, 3)
    assert delete_item.sync_detailed(item.id, client=client).status_code == HTTPStatus.NO_CONTENT


def meet_problems(client: Client) -> None:
    gone = get_item.sync(1, client=client)
    assert isinstance(gone, Problem)
    assert (gone.status, gone.code) == (404, "not_found")
    refused = create_item.sync(client=client, body=NewItem(name="", quantity=-1))
    assert isinstance(refused, Problem)
    assert [error.field for error in refused.errors] == ["name", "quantity"]
    reused = [create_item.sync(client=client, body=NewItem(name=name), idempotency_key="k") for name in ("a", "b")]
    assert [getattr(each, "code", None) for each in reused] == [None, "idempotency_key_reused"]


main(sys.argv[1])
