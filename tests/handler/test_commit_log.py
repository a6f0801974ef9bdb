"""The commit log as callers see it: which commit an answer shows, and what a failed write says."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from core.errors import (
    DatabaseLocked,
    ObjectExists,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    TooManyWrites,
    TransactionTooSlow,
)
from handler.service import Service, open_server_service
from infra.storage.object_store import ObjectStore
from tests.conftest import MakeSettings, assert_problem, serving
from tests.e2e.processes import until

pytestmark = pytest.mark.sqlite_only("the commit log")

HEADER = "x-commit-txid"
Start = Callable[[str], httpx2.Client]


@pytest.fixture
def two(make_settings: MakeSettings, tmp_path: Path) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """Two servers on one log, far from fresh by themselves."""

    def open_one(name: str) -> Service:
        return open_server_service(
            make_settings(
                DATABASE_PATH=tmp_path / name / "app.db",
                REPLICA_URL=(tmp_path / "log").as_uri(),
                READ_FRESHNESS_SECONDS=3600,
            )
        )

    with serving(open_one("a")) as a, serving(open_one("b")) as b:
        yield a, b


def test_answers_name_the_commit_they_show(client: httpx2.Client) -> None:
    created = client.post("/api/items", json={"name": "x"})
    txid = created.headers[HEADER]
    assert len(txid) == 16
    assert client.get(created.headers["location"]).headers[HEADER] == txid
    assert assert_problem(client.get("/api/items/99"), 404)
    assert client.get("/api/items/99").headers[HEADER] == txid
    assert client.delete(created.headers["location"]).headers[HEADER] == f"{int(txid, 16) + 1:016x}"
    assert HEADER not in client.get("/health").headers


def test_caller_reads_its_own_write_from_another_instance(two: tuple[httpx2.Client, httpx2.Client]) -> None:
    a, b = two
    assert b.get("/api/items").json()["items"] == []
    created = a.post("/api/items", json={"name": "x"})
    assert b.get("/api/items").json()["items"] == []  # within the freshness it was given
    seen = {HEADER: created.headers[HEADER]}
    assert b.get(created.headers["location"], headers=seen).json() == created.json()
    assert b.put(created.headers["location"], json={"name": "y"}, headers=seen).status_code == 200


def test_write_on_an_old_state_is_no_404(two: tuple[httpx2.Client, httpx2.Client]) -> None:
    a, b = two
    created = a.post("/api/items", json={"name": "x"})
    b.post("/api/items", json={"name": "z"})  # its conflict shows it what is new
    assert b.patch(created.headers["location"], json={"name": "y"}).json()["name"] == "y"


def test_commit_that_nobody_made_is_412(client: httpx2.Client) -> None:
    for unknown in ("0000000000000010", "7" + "f" * 15):
        assert_problem(client.get("/api/items", headers={HEADER: unknown}), 412)
        assert_problem(client.post("/api/items", json={"name": "x"}, headers={HEADER: unknown}), 412)
    assert client.get("/api/items").json()["items"] == []


@pytest.mark.parametrize("value", ["1", "x" * 16, "F" * 16, "f" * 16, "8" + "0" * 15, "-000000000000001", "0" * 17, ""])
def test_malformed_commit_is_400(client: httpx2.Client, value: str) -> None:
    assert HEADER.title() in assert_problem(client.get("/api/items", headers={HEADER: value}), 400)["detail"].title()


@pytest.mark.parametrize(
    ("failure", "stored"),
    [(StoreUnreachable("away"), "no"), (StoreRefused("denied"), "no"), (StoreUnavailable("no reply"), "unknown")],
)
def test_failed_write_says_whether_it_was_stored(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, failure: Exception, stored: str
) -> None:
    with serving(open_server_service(make_settings(COMMIT_TIMEOUT_SECONDS=0.1, READ_FRESHNESS_SECONDS=3600))) as client:

        def fail(*arguments: Any) -> None:
            raise failure

        monkeypatch.setattr(ObjectStore, "create", fail)
        response = client.post("/api/items", json={"name": "x"})
        problem = assert_problem(response, 503)
        assert response.headers["retry-after"] == "1"
        assert problem["stored"] == stored
        assert ("txid" in problem) is (stored == "unknown")
        assert client.get("/api/items").json()["items"] == []
        monkeypatch.undo()
        assert client.post("/api/items", json={"name": "x"}).status_code == 201


@pytest.mark.parametrize("arrives_first", [False, True])
def test_unknown_outcome_names_the_commit_to_wait_for_and_then_a_read_is_certain(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch, arrives_first: bool
) -> None:
    held: list[tuple[Any, ...]] = []
    create = ObjectStore.create

    def hold(*arguments: Any) -> None:
        held.append(arguments)
        raise StoreUnavailable("no reply")

    with serving(open_server_service(make_settings(COMMIT_TIMEOUT_SECONDS=0.1))) as client:
        client.post("/api/items", json={"name": "before"})
        monkeypatch.setattr(ObjectStore, "create", hold)
        problem = assert_problem(client.post("/api/items", json={"name": "late"}), 503)
        waiting_for = {HEADER: problem["txid"]}
        assert problem["txid"] in problem["detail"]
        assert_problem(client.get("/api/items", headers=waiting_for), 412)
        if arrives_first:
            create(*held[0])
        monkeypatch.undo()
        until(lambda: client.get("/api/items", headers=waiting_for).status_code == 200)  # nobody else writes
        names = [item["name"] for item in client.get("/api/items", headers=waiting_for).json()["items"]]
        assert names == (["before", "late"] if arrives_first else ["before"])
        with pytest.raises(ObjectExists):
            create(*held[0])
        assert client.post("/api/items", json={"name": "after"}).status_code == 201
        assert [item["name"] for item in client.get("/api/items").json()["items"]] == [*names, "after"]


def test_unknown_outcome_names_nothing_where_no_answer_does(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In backup-only mode the log is the instance's own."""
    service = open_server_service(make_settings(COMMIT_TIMEOUT_SECONDS=0.1))
    private = replace(service, settings=service.settings.model_copy(update={"replica_url": ""}))
    with serving(private) as client:
        with monkeypatch.context() as patch:
            patch.setattr(ObjectStore, "create", _away)
            problem = assert_problem(client.post("/api/items", json={"name": "x"}), 503)
        assert problem["stored"] == "unknown"
        assert "txid" not in problem


def test_reads_go_on_while_the_store_is_away(make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(open_server_service(make_settings(READ_FRESHNESS_SECONDS=3600))) as client:
        client.post("/api/items", json={"name": "x"})
        for verb in ("read", "directories"):
            monkeypatch.setattr(ObjectStore, verb, _away)
        assert len(client.get("/api/items").json()["items"]) == 1
        answer = client.get("/ready")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        assert answer.json()["database"] == "connected"
        assert "away" in answer.json()["store"]


def test_read_that_must_be_fresh_fails_while_the_store_is_away(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(open_server_service(make_settings(READ_FRESHNESS_SECONDS=0))) as client:
        for verb in ("read", "directories"):
            monkeypatch.setattr(ObjectStore, verb, _away)
        response = client.get("/api/items")
        assert_problem(response, 503)
        assert response.headers["retry-after"] == "1"


def _away(*arguments: Any) -> None:
    raise StoreUnavailable("the store is away")


@pytest.mark.parametrize(
    ("failure", "detail"),
    [
        (TooManyWrites("1000 writes are waiting already."), "Too many writes are waiting"),
        (TransactionTooSlow("stopped"), "took too long"),
        (DatabaseLocked("locked"), "busy, or locked"),
    ],
)
def test_write_that_found_no_room_may_be_tried_again(
    service: Service, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, failure: Exception, detail: str
) -> None:
    async def fail(*arguments: Any) -> None:
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(service.database, "write", fail)
        response = client.post("/api/items", json={"name": "x"})
    problem = assert_problem(response, 503)
    assert response.headers["retry-after"] == "1"
    assert problem["stored"] == "no"
    assert detail in problem["detail"]


def test_request_that_is_given_up_at_the_end_is_answered(
    service: Service, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cancelled(*arguments: Any) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patch:
        for verb in ("read", "write"):
            patch.setattr(service.database, verb, cancelled)
        problem = assert_problem(client.post("/api/items", json={"name": "x"}), 503)
        assert (problem["code"], problem["stored"]) == ("stopping", "unknown")
        assert "stored" not in assert_problem(client.get("/api/items"), 503)


def test_concurrent_requests_share_commits_and_each_names_its_own(client: httpx2.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: client.post("/api/items", json={"name": f"item {n}"}), range(160)))
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["id"] for answer in answers}) == 160
    txids = [int(answer.headers[HEADER], 16) for answer in answers]
    assert len(set(txids)) < 160
    for answer in answers:
        found = client.get(answer.headers["location"], headers={HEADER: answer.headers[HEADER]})
        assert found.json() == answer.json()
