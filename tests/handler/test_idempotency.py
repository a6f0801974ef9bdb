"""A write that is sent again with its Idempotency-Key is done once, and answered as the first time."""

import asyncio
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import apsw
import httpx2
import pytest

from core import idempotency
from core.errors import StoreUnavailable
from core.idempotency import Answer, Attempt, once
from core.models import IdempotencyKey
from handler.service import Service, open_server_service
from infra.storage.object_store import ObjectStore
from tests.conftest import MakeSettings, assert_problem, open_at, serving
from tests.e2e.processes import until
from tests.log_watch import kept_lines

KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}
LAMP = {"name": "Lamp"}


@pytest.fixture
def two(make_settings: MakeSettings, tmp_path: Path) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    def settings_of(name: str) -> Any:
        log = (tmp_path / "log").as_uri()
        return make_settings(
            DATABASE_PATH=tmp_path / name / "app.db",
            REPLICA_URL=log,
            READ_FRESHNESS_SECONDS=3600,
            COMMIT_TIMEOUT_SECONDS=1,
        )

    with serving(open_server_service(settings_of("a"))) as a, serving(open_server_service(settings_of("b"))) as b:
        yield a, b


def names(client: httpx2.Client, **headers: str) -> list[str]:
    return [item["name"] for item in client.get("/api/items", headers=headers).json()["items"]]


def same(first: httpx2.Response, again: httpx2.Response) -> bool:
    kept = ("location", "content-type", "etag")
    return (again.status_code, again.content) == (first.status_code, first.content) and all(
        again.headers.get(name) == first.headers.get(name) for name in kept
    )


def test_each_kind_of_write_is_done_once_and_answered_alike(client: httpx2.Client) -> None:
    first = client.post("/api/items", json=LAMP, headers=KEY)
    again = client.post("/api/items", json=LAMP, headers=KEY)
    assert (first.status_code, same(first, again), names(client)) == (201, True, ["Lamp"])
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (None, "true")
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    url = first.headers["location"]
    for number, (method, body) in enumerate((("PUT", LAMP), ("PATCH", {"quantity": 7}), ("DELETE", None))):
        headers = {"Idempotency-Key": f"key-{number}"}
        first = client.request(method, url, json=body, headers=headers)
        again = client.request(method, url, json=body, headers=headers)
        assert first.is_success
        assert same(first, again)
        assert again.headers["idempotent-replayed"] == "true"


@pytest.mark.sqlite_only("commits of the log")
def test_repeated_write_makes_no_commit(client: httpx2.Client) -> None:
    first = client.post("/api/items", json=LAMP, headers=KEY)
    again = client.post("/api/items", json=LAMP, headers=KEY)
    assert again.headers["x-commit-txid"] == first.headers["x-commit-txid"]


@pytest.mark.parametrize(
    "change",
    [
        {"json": {"name": "Torch"}},
        {"method": "PUT", "url": "/api/items/1"},
        {"params": {"x": "1"}},
        {"headers": {**KEY, "If-Match": '"1"'}},
    ],
)
def test_another_request_under_the_key_is_422(client: httpx2.Client, change: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"method": "POST", "url": "/api/items", "json": LAMP, "headers": KEY}
    client.request(**asked)
    problem = assert_problem(client.request(**asked | change), 422)
    assert problem["code"] == "idempotency_key_reused"
    assert names(client) == ["Lamp"]


@pytest.mark.parametrize(
    "key", ["", '""', '"', '"a', 'a"b', "a b", "a,b", '"a\\b"', "é", '"' + "x" * 256 + '"', '"a";b']
)
def test_what_is_no_key_is_400(client: httpx2.Client, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    assert assert_problem(client.post("/api/items", json=LAMP, headers=headers), 400)["code"] == "malformed_header"
    assert names(client) == []


def test_two_keys_are_400(client: httpx2.Client) -> None:
    headers = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    assert_problem(client.post("/api/items", json=LAMP, headers=headers), 400)


def test_a_key_is_the_same_with_and_without_quotes(client: httpx2.Client) -> None:
    client.post("/api/items", json=LAMP, headers={"Idempotency-Key": "a-key"})
    again = client.post("/api/items", json=LAMP, headers={"Idempotency-Key": '"a-key"'})
    assert again.headers["idempotent-replayed"] == "true"


def test_what_stored_nothing_is_not_remembered(client: httpx2.Client) -> None:
    for _ in range(2):
        problem = assert_problem(client.put("/api/items/1", json=LAMP, headers=KEY), 404)
        assert problem["code"] == "not_found"
    client.post("/api/items", json={"name": "Torch"})
    assert client.put("/api/items/1", json=LAMP, headers=KEY).json()["name"] == "Lamp"


def test_another_instance_answers_alike_though_it_has_not_seen_the_first(
    two: tuple[httpx2.Client, httpx2.Client],
) -> None:
    a, b = two
    assert names(b) == []
    first = a.post("/api/items", json=LAMP, headers=KEY)
    assert same(first, b.post("/api/items", json=LAMP, headers=KEY))
    assert names(b) == names(a) == ["Lamp"]
    assert assert_problem(b.post("/api/items", json={"name": "y"}, headers=KEY), 422)


def test_many_at_once_are_one(two: tuple[httpx2.Client, httpx2.Client]) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: two[n % 2].post("/api/items", json=LAMP, headers=KEY), range(16)))
    assert all(same(answers[0], answer) for answer in answers), [answer.text for answer in answers]
    assert sum("idempotent-replayed" not in answer.headers for answer in answers) == 1
    assert names(two[0]) == ["Lamp"]


@pytest.mark.sqlite_only("commits of the log")
@pytest.mark.parametrize("arrives", [False, True])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_unknown_outcome_is_made_known_by_the_same_key(
    two: tuple[httpx2.Client, httpx2.Client], monkeypatch: pytest.MonkeyPatch, arrives: bool, elsewhere: bool
) -> None:
    a, b = two
    create, held = ObjectStore.create, []

    def hold(*arguments: Any) -> None:
        held.append(arguments)
        raise StoreUnavailable("no reply")

    monkeypatch.setattr(ObjectStore, "create", hold)
    problem = assert_problem(a.post("/api/items", json=LAMP, headers=KEY), 503)
    assert "Send it again with the same Idempotency-Key: it is done once." in problem["detail"]
    if arrives:
        create(*held[0])
    monkeypatch.undo()
    again = (b if elsewhere else a).post("/api/items", json=LAMP, headers=KEY)
    assert again.status_code == 201
    assert ("idempotent-replayed" in again.headers) is arrives
    assert names(a, **{"x-commit-txid": again.headers["x-commit-txid"]}) == ["Lamp"]


def test_old_keys_go_with_later_writes_a_few_at_a_time(tmp_path: Path) -> None:
    database = open_at(tmp_path / "app.db")

    def attempt(number: int) -> Answer:
        asked = Attempt("", str(number), b"f")
        return asyncio.run(database.write(lambda db: once(db, asked, lambda _: Answer(200, {}, b""), 24)))

    def age(hours: int) -> None:
        asyncio.run(database.write(lambda db: IdempotencyKey.update(hour=IdempotencyKey.hour - hours).execute(db)))

    def kept() -> int:
        return asyncio.run(database.read(lambda db: IdempotencyKey.select().count(db)))

    try:
        for number in range(10):
            attempt(number)
        age(24)
        assert attempt(0).is_repeated
        age(-30)  # by the clock of another instance, which is ahead
        assert attempt(0).is_repeated
        age(30 + 1)
        assert not attempt(0).is_repeated
        assert kept() == 10 - 4 + 1
        assert attempt(0).is_repeated
        assert kept() == 10 - 4 + 1
    finally:
        database.close()


@pytest.mark.parametrize("statement", [idempotency._FIND, idempotency._OLD, idempotency._REMOVE])
def test_no_statement_goes_through_all_keys(tmp_path: Path, statement: str) -> None:
    database = open_at(tmp_path / "app.db")
    plan = f"EXPLAIN QUERY PLAN {statement}"
    values = (0,) * statement.count("?")
    try:
        steps = asyncio.run(database.read(lambda db: db.execute_sql(plan, values).fetchall()))
        assert [step for *_, step in steps if "SCAN" in step and step != "SCAN hours"] == []
    finally:
        database.close()


def test_delete_that_is_cut_off_in_its_body_deletes_nothing(client: httpx2.Client) -> None:
    url = client.post("/api/items", json=LAMP).headers["location"]
    with kept_lines("handler.request") as lines:
        with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
            connection.sendall(
                f"DELETE {url} HTTP/1.1\r\nHost: x\r\nIdempotency-Key: k\r\nContent-Length: 9\r\n\r\nx".encode()
            )
        until(lambda: any(f"DELETE {url} 400" in line["message"] for line in lines))
    assert names(client) == ["Lamp"]


@pytest.mark.sqlite_only("what a shell writes past the types")
@pytest.mark.parametrize("spoilt", ["status = 99999", "status = 404", "headers = '[1]'", """headers = '{"etag": 1}'"""])
def test_row_that_is_no_answer_is_409(service: Service, spoilt: str) -> None:
    with serving(service) as client:
        client.post("/api/items", json=LAMP, headers=KEY)
        with closing(apsw.Connection(str(service.settings.database_path))) as shell:
            shell.execute(f"UPDATE idempotency_keys SET {spoilt}")
        problem = assert_problem(client.post("/api/items", json=LAMP, headers=KEY), 409)
        assert "What is kept for this Idempotency-Key is no answer" in problem["detail"]
