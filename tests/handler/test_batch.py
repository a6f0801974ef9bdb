"""Many items in one commit, all or none."""

import json
from contextlib import closing

import apsw
import httpx2
import pytest

from core.schemas import MAX_BATCH
from handler.service import Service
from tests.conftest import assert_problem, serving

TRIGGER = (
    "CREATE TRIGGER t BEFORE INSERT ON items WHEN EXISTS (SELECT 1 FROM items WHERE name = NEW.name) "
    "BEGIN SELECT RAISE(ACTION); END"
)


def batch(client: httpx2.Client, *given: object) -> httpx2.Response:
    return client.post("/api/items/batch", json={"items": given})


def named(*names: str) -> list[object]:
    return [{"name": name} for name in names]


def names(client: httpx2.Client) -> list[str]:
    return [item["name"] for item in client.get("/api/items?limit=100").json()["items"]]


@pytest.mark.sqlite_only("it counts commits")
def test_batch_is_answered_in_order_and_is_one_commit(service: Service) -> None:
    with serving(service) as client:
        before = service.database.txid
        response = batch(
            client, {"name": "Lamp", "price": "12.50"}, *named(*(f"item {n}" for n in range(1, MAX_BATCH)))
        )
        assert response.status_code == 201
        assert service.database.txid == before + 1
        made = response.json()["items"]
        assert [item["name"] for item in made] == ["Lamp", *(f"item {n}" for n in range(1, MAX_BATCH))]
        assert [item["id"] for item in made] == list(range(1, MAX_BATCH + 1))
        assert (made[0]["price"], made[0]["version"]) == ("12.50", 1)
        assert client.get("/api/items?limit=2").json()["items"] == made[:2]
        assert response.headers["x-commit-txid"] == f"{before + 1:016x}"
        assert "etag" not in response.headers
        assert client.get(f"/api/items/{made[7]['id']}").json() == made[7]


def test_errors_name_the_place_and_the_field_and_nothing_is_stored(client: httpx2.Client) -> None:
    response = batch(client, *named("a", "b", "c"), {"name": "d", "price": "x"}, {"quantity": -1}, 7)
    found = {error["field"] for error in assert_problem(response, 422)["errors"]}
    assert found == {"items.3.price", "items.4.name", "items.4.quantity", "items.5"}
    assert names(client) == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"items": []}, "items"),
        ({"items": named("x") * (MAX_BATCH + 1)}, "items"),
        ({"items": None}, "items"),
        ({"items": {"0": {"name": "x"}}}, "items"),
        ({}, "items"),
        (named("x"), "body"),
        ({"items": named("x"), "colour": "red"}, "colour"),
    ],
)
def test_what_is_no_batch_is_422(client: httpx2.Client, body: object, field: str) -> None:
    problem = assert_problem(client.post("/api/items/batch", json=body), 422)
    assert [error["field"] for error in problem["errors"]] == [field]
    assert names(client) == []


@pytest.mark.sqlite_only("SQLite's messages")
@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("CREATE UNIQUE INDEX one ON items (name)", "UNIQUE constraint failed: items.name"),
        (TRIGGER.replace("ACTION", "ABORT, 'not twice'"), "not twice"),
        (TRIGGER.replace("ACTION", "IGNORE"), "does not let the item in"),
    ],
)
def test_what_the_database_refuses_names_the_place_and_nothing_is_stored(
    service: Service, script: str, refused: str
) -> None:
    with serving(service) as client:
        with closing(apsw.Connection(str(service.settings.database_path))) as shell:
            shell.set_busy_timeout(5000)
            shell.execute(script)
        problem = assert_problem(batch(client, *named("a", "b", "a", "c")), 409)
        assert problem["detail"].startswith("items.2: ")
        assert refused in problem["detail"]
        assert names(client) == []
        assert batch(client, *named("a", "b")).status_code == 201


def test_body_over_the_limit_is_413(client: httpx2.Client) -> None:
    largest = {"name": "n" * 200, "description": "d" * 2000}
    assert_problem(batch(client, *[largest] * MAX_BATCH), 413)
    fitting = 1024 * 1024 // (len(json.dumps(largest)) + 2) - 1
    assert batch(client, *[largest] * fitting).status_code == 201


def test_batch_is_no_item(client: httpx2.Client) -> None:
    for method in ("PUT", "PATCH", "DELETE"):
        response = client.request(method, "/api/items/batch", json={"name": "x"} if method != "DELETE" else None)
        assert_problem(response, 405)
        assert response.headers["allow"] == "POST"


def test_batch_that_comes_again_with_its_key_is_done_once(client: httpx2.Client) -> None:
    body, key = {"items": named("a", "b")}, {"idempotency-key": '"one"'}
    answers = [client.post("/api/items/batch", json=body, headers=key) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].content == answers[1].content
    assert names(client) == ["a", "b"]
