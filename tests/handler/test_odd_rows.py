"""What a shell may write past the API's checks is served, or refused by name; nothing is a 500."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from core import items
from core.errors import WriteRefused
from core.migrations import scripts
from core.schemas import ROWIDS, NewItem
from handler.service import Service, open_server_service
from infra.settings import Settings
from tests.conftest import assert_problem, serving

pytestmark = pytest.mark.sqlite_only("what SQLite's types let in")

Rows = dict[int, dict[str, tuple[str, Any]]]  # by id: what stands for a column's value, and its bytes or value


def make_database(path: Path, encoding: str) -> None:
    path.parent.mkdir(parents=True)
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("".join(scripts()) + f"PRAGMA user_version = {len(scripts())}")


@pytest.fixture(params=["UTF-8", "UTF-16le", "UTF-16be"])
def any_service(request: pytest.FixtureRequest, settings: Settings) -> Service:
    make_database(settings.database_path, request.param)
    return open_server_service(settings)


TIME = "2026-01-31T12:00:00.000000Z"  # as the API writes it


@contextmanager
def shell(service: Service) -> Iterator[apsw.Connection]:
    """What an operator has beside the running service."""
    with closing(apsw.Connection(str(service.settings.database_path))) as connection:
        connection.set_busy_timeout(5000)
        yield connection


def put(connection: apsw.Connection, rows: Rows) -> None:
    """In place of all that are there, and with no check of the table."""
    connection.pragma("ignore_check_constraints", True)
    with connection:
        connection.execute("DELETE FROM items; DELETE FROM sqlite_sequence")
        for item_id, given in rows.items():
            defaults = {"name": "n", "created_at": "2026-01-01", "updated_at": "2026-01-01"}
            row = {name: ("?", value) for name, value in defaults.items()} | given
            names, marks = ", ".join(row), ", ".join(mark for mark, _ in row.values())
            values = [value for _, value in row.values() if value is not None]
            connection.execute(f"INSERT INTO items (id, {names}) VALUES (?, {marks})", [item_id, *values])


def ids_by_page(client: httpx2.Client, limit: int, order: str) -> list[int]:
    found: list[int] = []
    query: dict[str, str] = {"limit": str(limit), "order": order}
    while True:
        response = client.get("/api/items", params=query)
        assert response.status_code == 200, response.text
        found += [item["id"] for item in response.json()["items"]]
        if (cursor := response.json()["next_cursor"]) is None:
            return found
        query["cursor"] = cursor


@pytest.mark.parametrize(
    "rows",
    [
        {2: {"name": ("CAST(? AS TEXT)", b"L\xf6ffel")}, -3: {}, 0: {"description": ("?", "a\x00b")}},
        {1: {"created_at": ("?", "x" * 200)}, 2: {"created_at": ("?", "x" * 200)}, 3: {"created_at": ("?", "é")}},
        {1: {"created_at": ("CAST(? AS TEXT)", b"\x3d\xd8")}, 2: {"created_at": ("?", b"\xff")}, 3: {}},
        {n: {"created_at": ("?", time)} for n, time in enumerate([TIME, TIME.encode(), TIME])},
        {1: {"version": ("?", ROWIDS[-1])}, ROWIDS[-1]: {"price_cents": ("?", ROWIDS[-1])}},
        {1: {"name": ("?", b"blob"), "quantity": ("?", 1.5), "price_cents": ("?", "dear"), "version": ("?", b"")}},
    ],
)
def test_whatever_sqlite_takes_can_be_listed_read_changed_and_deleted(any_service: Service, rows: Rows) -> None:
    with serving(any_service) as client:
        with shell(any_service) as connection:
            put(connection, rows)
        _check_all(client, rows)


def _check_all(client: httpx2.Client, rows: Rows) -> None:
    ascending = ids_by_page(client, 1, "created_at")
    assert sorted(ascending) == sorted(rows)
    assert ids_by_page(client, 1, "-created_at") == ascending[::-1]
    assert client.get("/api/items", params={"q": "a"}).status_code == 200
    for item_id in rows:
        address = f"/api/items/{item_id}"
        item = client.get(address).json()
        assert item["id"] == item_id
        for response in (client.patch(address, json={"quantity": 1}), client.put(address, json={"name": "new"})):
            if response.status_code != 200:
                assert "CHECK constraint failed" in assert_problem(response, 409)["detail"]
        assert client.delete(address).status_code == 204
        assert_problem(client.get(address), 404)
    created = client.post("/api/items", json={"name": "new"})
    if ROWIDS[-1] in rows:
        assert "No id is left" in assert_problem(created, 409)["detail"]
    else:
        assert created.status_code == 201


@pytest.fixture
def service_and_client(service: Service) -> Iterator[tuple[Service, httpx2.Client]]:
    with serving(service) as client:
        assert client.post("/api/items", json={"name": "first"}).status_code == 201
        yield service, client


@pytest.mark.parametrize(
    ("script", "refused"),
    [
        ("CREATE UNIQUE INDEX one ON items (name)", "UNIQUE constraint failed: items.name"),
        ("CREATE UNIQUE INDEX one ON items (json_extract(name, '$'))", "malformed JSON"),
        ("CREATE TRIGGER t BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'not today'); END", "not today"),
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT RAISE(ROLLBACK, 'not today'); END", "not today"),
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT RAISE(FAIL, 'not today'); END", "not today"),
        ("CREATE TRIGGER t BEFORE INSERT ON items BEGIN SELECT RAISE(IGNORE); END", "does not let the item in"),
        ("CREATE TRIGGER t AFTER INSERT ON items BEGIN SELECT abs(-9223372036854775807 - 1); END", "integer overflow"),
    ],
)
def test_write_that_the_database_refuses_is_409_and_says_by_what(
    service_and_client: tuple[Service, httpx2.Client], script: str, refused: str, caplog: pytest.LogCaptureFixture
) -> None:
    service, client = service_and_client
    with shell(service) as connection:
        connection.execute("UPDATE items SET name = '1'; " + script)
    name = "1" if "UNIQUE constraint" in refused else "{"
    assert refused in assert_problem(client.post("/api/items", json={"name": name}), 409)["detail"]
    assert refused in caplog.text
    assert [item["name"] for item in client.get("/api/items").json()["items"]] == ["1"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_item_that_a_trigger_or_a_row_elsewhere_holds_is_409(
    service_and_client: tuple[Service, httpx2.Client], method: str
) -> None:
    service, client = service_and_client
    content = None if method == "DELETE" else {"name": "new"}
    with shell(service) as connection:
        event = "DELETE" if method == "DELETE" else "UPDATE"
        connection.execute(f"CREATE TRIGGER t BEFORE {event} ON items BEGIN SELECT RAISE(IGNORE); END")
    problem = assert_problem(client.request(method, "/api/items/1", json=content), 409)
    assert "keeps item 1 as it is" in problem["detail"]
    assert_problem(client.request(method, "/api/items/2", json=content), 404)


def test_what_refers_to_an_item_keeps_it_and_nobody_else_from_a_commit(
    service_and_client: tuple[Service, httpx2.Client],
) -> None:
    """Found out at the end of the transaction, which others share."""
    service, client = service_and_client
    with shell(service) as connection:
        connection.execute(
            "CREATE TABLE mine (item_id REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED); "
            "INSERT INTO mine VALUES (1)"
        )

    async def together() -> list[Any]:
        write, create = service.database.write, partial(items.create_item, new=NewItem(name="x"))
        delete = write(partial(items.delete_item, item_id=1))
        return await asyncio.gather(delete, *(write(create) for _ in range(5)), return_exceptions=True)

    refused, *others = asyncio.run(together())
    assert isinstance(refused, WriteRefused)
    assert "FOREIGN KEY" in str(refused)
    assert [item.name for item in others] == ["x"] * 5
    detail = assert_problem(client.delete("/api/items/1"), 409)["detail"]
    assert detail.endswith("FOREIGN KEY constraint failed; a row would refer to one that is not there, or not any more")


def test_odd_rows_are_named_in_the_log(
    service_and_client: tuple[Service, httpx2.Client], caplog: pytest.LogCaptureFixture
) -> None:
    service, client = service_and_client
    with shell(service) as connection:
        connection.execute("UPDATE items SET name = CAST(x'4cf66666656c' AS TEXT)")
    with caplog.at_level(logging.WARNING):
        assert client.get("/api/items/1").json()["name"] == "L\ufffdffel"
    assert "items 1 hold what the API does not write" in caplog.text


def test_page_that_ended_at_an_odd_time_needs_its_item(service_and_client: tuple[Service, httpx2.Client]) -> None:
    service, client = service_and_client
    with shell(service) as connection:
        put(connection, {1: {"created_at": ("?", "x" * 200)}, 2: {"created_at": ("?", "x" * 201)}})
    cursor = client.get("/api/items?limit=1").json()["next_cursor"]
    assert [item["id"] for item in client.get(f"/api/items?cursor={cursor}").json()["items"]] == [2]
    client.delete("/api/items/1")
    assert "begin again" in assert_problem(client.get(f"/api/items?cursor={cursor}"), 404)["detail"]
