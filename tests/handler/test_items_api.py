import asyncio

import httpx2
import pytest

from tests.conftest import assert_problem

LAMP = {"name": "Lamp", "description": "warm", "price": "12.50", "quantity": 3}


def test_created_item_is_answered_in_full_and_found_where_location_says(client: httpx2.Client) -> None:
    response = client.post("/api/items", json=LAMP)
    assert response.status_code == 201
    item = response.json()
    assert list(item) == ["id", "name", "description", "price", "quantity", "created_at", "updated_at", "version"]
    assert LAMP.items() <= item.items()
    assert response.headers["location"] == f"/api/items/{item['id']}"
    assert client.get(response.headers["location"]).json() == item


def test_only_the_name_is_required(client: httpx2.Client) -> None:
    item = client.post("/api/items", json={"name": "x"}).json()
    assert (item["description"], item["price"], item["quantity"], item["version"]) == (None, "0.00", 0, 1)


def test_put_replaces_patch_changes_delete_removes(client: httpx2.Client) -> None:
    url = client.post("/api/items", json=LAMP).headers["location"]
    patched = client.patch(url, json={"quantity": 1}).json()
    assert patched["name"] == "Lamp"
    assert (patched["quantity"], patched["version"]) == (1, 2)
    replaced = client.put(url, json={"name": "Torch"}).json()
    assert (replaced["description"], replaced["price"], replaced["version"]) == (None, "0.00", 3)
    merge = {"content-type": "application/merge-patch+json"}
    assert client.patch(url, content=b'{"description": "x"}', headers=merge).json()["description"] == "x"
    deleted = client.delete(url)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(client.get(url), 404)
    assert_problem(client.delete(url), 404)


def test_pages_lead_from_one_to_the_next(client: httpx2.Client) -> None:
    for n in range(5):
        client.post("/api/items", json={"name": f"item {n}"})
    names, cursor = [], None
    while True:
        query = "limit=2&order=-created_at" + (f"&cursor={cursor}" if cursor else "")
        page = client.get(f"/api/items?{query}").json()
        names += [item["name"] for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert names == ["item 4", "item 3", "item 2", "item 1", "item 0"]
    assert [item["name"] for item in client.get("/api/items?q=ITEM%203").json()["items"]] == ["item 3"]


def test_total_is_told_who_asks(client: httpx2.Client) -> None:
    for name in ("Lamp", "Lamp", "Torch"):
        client.post("/api/items", json={"name": name})
    assert client.get("/api/items?count=true&limit=1&q=lamp").json()["total"] == 2
    assert client.get("/api/items?count=true").json()["total"] == 3
    assert client.get("/api/items?count=false").json().keys() == {"items", "next_cursor"}


def test_pages_are_right_while_others_write_and_delete(client: httpx2.Client) -> None:
    """Whoever is there from the beginning to the end comes exactly once, in order."""
    batch = [{"name": f"{'doomed' if n % 3 else 'kept'} {n}"} for n in range(300)]
    made = client.post("/api/items/batch", json={"items": batch}).json()["items"]
    kept = [item["id"] for item in made if item["name"].startswith("kept")]
    doomed = [item["id"] for item in made if item["name"].startswith("doomed")]

    async def pages(other: httpx2.AsyncClient, query: dict[str, str]) -> list[int]:
        found: list[int] = []
        while True:
            page = (await other.get("/api/items", params=query)).json()
            found += [item["id"] for item in page["items"]]
            if page["next_cursor"] is None:
                return found
            query = query | {"cursor": page["next_cursor"]}

    async def change(other: httpx2.AsyncClient) -> None:
        for item_id in doomed:
            await asyncio.gather(
                other.delete(f"/api/items/{item_id}"), other.post("/api/items", json={"name": "kept, but new"})
            )

    async def together() -> list[list[int]]:
        async with httpx2.AsyncClient(base_url=client.base_url, timeout=20, trust_env=False) as other:
            queries = [
                {"order": order, "limit": "7", "q": q} for order in ("created_at", "-created_at") for q in ("", "kept")
            ]
            changing = asyncio.ensure_future(change(other))
            found = await asyncio.gather(*(pages(other, query) for query in queries))
            await changing
            return found

    up, up_found, down, down_found = asyncio.run(together())
    for found, ids in ((up, kept), (up_found, kept), (down, kept[::-1]), (down_found, kept[::-1])):
        assert [item_id for item_id in found if item_id in kept] == ids
        assert len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("count=maybe", "count"),
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=abc", "limit"),
        ("limit=" + "9" * 5000, "limit"),
        ("order=name", "order"),
        ("cursor=xyz", "cursor"),
        ("colour=red", "colour"),
        ("q=a%00b", "q"),
        ("q=" + "x" * 201, "q"),
        ("limit=1&limit=2", "limit"),
        ("cursor=" + "A" * 201, "cursor"),
        ("limit=", "limit"),
    ],
)
def test_wrong_query_names_the_parameter(shared_client: httpx2.Client, query: str, field: str) -> None:
    problem = assert_problem(shared_client.get(f"/api/items?{query}"), 422)
    assert field in [error["field"] for error in problem["errors"]]


def test_validation_names_each_wrong_field(client: httpx2.Client) -> None:
    body = {"name": "", "price": "abc", "quantity": -1, "colour": "red"}
    problem = assert_problem(client.post("/api/items", json=body), 422)
    assert [error["field"] for error in problem["errors"]] == ["name", "price", "quantity", "colour"]
    assert all(error["message"] for error in problem["errors"])


def test_head_is_answered_like_get_without_a_body(client: httpx2.Client) -> None:
    response = client.head("/api/items")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/items", {"GET", "HEAD", "POST"}),
        ("POST", "/api/items/1", {"GET", "HEAD", "PUT", "PATCH", "DELETE"}),
        ("POST", "/health", {"GET", "HEAD"}),
        ("OPTIONS", "/api/items", {"GET", "HEAD", "POST"}),
        ("PROPFIND", "/api/items", {"GET", "HEAD", "POST"}),
    ],
)
def test_method_that_is_not_there_is_405_with_allow(
    shared_client: httpx2.Client, method: str, path: str, allowed: set[str]
) -> None:
    response = shared_client.request(method, path)
    assert_problem(response, 405)
    assert set(response.headers["allow"].split(", ")) == allowed
