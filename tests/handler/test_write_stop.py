"""While the data is moved to another engine nobody can write, and everybody can read."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import apsw
import httpx2
import peewee
import pytest

from core import api_keys
from core.api_keys import Scope
from core.errors import WritesStopped
from handler.service import Service, open_server_service
from infra.clock import Clock
from infra.commitlog import open_log
from infra.moving import write_stop
from infra.moving.rows import tables
from infra.moving.write_stop import Reason, Stop
from infra.operators.keys import in_log
from infra.settings import Settings
from infra.sqlite.database import open_sqlite
from tests.conftest import MakeSettings, assert_problem, open_at, serving, write
from tests.infra.operators.test_sql import quantities

SECONDS = 3600


def stop_writes(url: str, scratch: Path, seconds: int | None = SECONDS, reason: Reason = Reason.MOVING) -> None:
    """As another process does it, which has its own copy of the log."""
    until = None if seconds is None else int(time.time()) + seconds
    stop = Stop(reason, "db.example.com/it's", "c0ffee", until)

    def use_case(db: peewee.Database) -> None:
        write_stop.put(db, stop, [table.name for table in tables()])

    scratch.mkdir()
    in_log(open_log(url, Clock()), scratch / "app.db", use_case)


def lift(url: str, scratch: Path) -> None:
    scratch.mkdir()
    in_log(open_log(url, Clock()), scratch / "app.db", write_stop.lift)


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    """Who only meets the stop would see that it is over as late as any other reader."""
    return make_settings(READ_FRESHNESS_SECONDS=0)


@pytest.fixture
def item(client: httpx2.Client) -> str:
    return str(client.post("/api/items", json={"name": "before"}).headers["location"])


@pytest.fixture
def stopped(client: httpx2.Client, item: str, settings: Settings, tmp_path: Path) -> None:
    """Committed by somebody else: the server does not know it before it writes."""
    stop_writes(settings.replica_url, tmp_path / "stop")


def assert_stopped(answer: httpx2.Response) -> None:
    found = assert_problem(answer, 503)
    assert (found["code"], found["stored"], answer.headers["retry-after"]) == ("writes_stopped", "no", "1")
    assert "db.example.com" not in answer.text  # that is the operator's to know


@pytest.mark.usefixtures("stopped")
def test_every_kind_of_write_is_503_and_reads_go_on(client: httpx2.Client, item: str) -> None:
    assert_stopped(client.post("/api/items", json={"name": "x"}))
    assert_stopped(client.post("/api/items/batch", json={"items": [{"name": "x"}, {"name": "y"}]}))
    assert_stopped(client.put(item, json={"name": "x"}))
    assert_stopped(client.patch(item, json={"name": "x"}))
    assert_stopped(client.delete(item))
    assert [found["name"] for found in client.get("/api/items").json()["items"]] == ["before"]
    assert client.get(item).status_code == 200


@pytest.mark.usefixtures("stopped")
def test_all_that_share_a_transaction_are_told_and_nothing_is_committed(
    client: httpx2.Client, service: Service
) -> None:
    def post(number: int) -> httpx2.Response:
        return client.post("/api/items", json={"name": str(number)})

    with ThreadPoolExecutor(8) as pool:
        for answer in pool.map(post, range(24)):
            assert_stopped(answer)
    head = max(found.max_txid for found in open_log(service.settings.replica_url, Clock()).objects.everything())
    assert service.database.txid == head  # that of the stop


def test_writes_go_on_when_it_is_lifted(
    client: httpx2.Client, stopped: None, settings: Settings, tmp_path: Path
) -> None:
    assert_stopped(client.post("/api/items", json={"name": "x"}))
    lift(settings.replica_url, tmp_path / "lift")
    assert client.post("/api/items", json={"name": "x"}).status_code == 201


def test_writes_go_on_when_its_time_is_over(
    client: httpx2.Client, item: str, settings: Settings, tmp_path: Path
) -> None:
    stop_writes(settings.replica_url, tmp_path / "stop", seconds=0)
    assert client.post("/api/items", json={"name": "x"}).status_code == 201
    assert client.get("/ready").json()["status"] == "ready"


def test_answer_that_was_kept_is_given_again_and_a_new_key_is_not_used_up(
    client: httpx2.Client, settings: Settings, tmp_path: Path
) -> None:
    first = client.post("/api/items", json={"name": "x"}, headers={"Idempotency-Key": '"first"'})
    stop_writes(settings.replica_url, tmp_path / "stop")
    again = client.post("/api/items", json={"name": "x"}, headers={"Idempotency-Key": '"first"'})
    assert (again.status_code, again.content) == (201, first.content)
    assert_stopped(client.post("/api/items", json={"name": "y"}, headers={"Idempotency-Key": '"second"'}))
    lift(settings.replica_url, tmp_path / "lift")
    done = client.post("/api/items", json={"name": "y"}, headers={"Idempotency-Key": '"second"'})
    assert (done.status_code, "idempotent-replayed" in done.headers) == (201, False)


def test_key_whose_use_cannot_be_noted_lets_in_all_the_same(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings(AUTH_MODE="keys", READ_FRESHNESS_SECONDS=0)
    service = open_server_service(settings)
    make = partial(api_keys.create, name="x", scopes=frozenset({Scope.READ, Scope.WRITE}), expires_at=None)
    headers = {"Authorization": f"Bearer {asyncio.run(service.database.write(make))}"}
    with serving(service) as client:
        stop_writes(settings.replica_url, tmp_path / "stop")
        assert client.get("/api/items", headers=headers).status_code == 200
        assert_stopped(client.post("/api/items", json={"name": "x"}, headers=headers))
        assert client.get("/api/items", headers=headers).status_code == 200


@pytest.mark.usefixtures("stopped")
def test_start_serves_what_is_there_and_says_that_it_takes_no_writes(
    make_settings: MakeSettings, tmp_path: Path
) -> None:
    other = make_settings(DATABASE_PATH=tmp_path / "other" / "app.db", REPLICA_URL=make_settings().replica_url)
    with serving(open_server_service(other)) as client:
        found = client.get("/ready").json()
        assert (found["status"], "is being moved to db.example.com/it's" in found["database"]) == ("degraded", True)
        assert len(client.get("/api/items").json()["items"]) == 1
        assert_stopped(client.post("/api/items", json={"name": "x"}))


@pytest.mark.usefixtures("stopped")
def test_cold_start_of_a_function_serves_as_well(settings: Settings, tmp_path: Path) -> None:
    cold = settings.model_copy(update={"database_path": tmp_path / "tmp" / "app.db"})
    with closing(open_sqlite(cold, lasting=False)) as database:
        assert quantities(database) == [0]
        with pytest.raises(WritesStopped):
            write(database, "x")


@pytest.mark.usefixtures("stopped")
def test_shell_on_the_file_meets_it_as_well(client: httpx2.Client, settings: Settings) -> None:
    assert_stopped(client.post("/api/items", json={"name": "x"}))  # from then on the file has it
    with closing(apsw.Connection(str(settings.database_path))) as shell:
        for statement in (
            "DELETE FROM items",
            "UPDATE items SET name = 'x'",
            "INSERT OR REPLACE INTO api_keys (id) VALUES (1)",
        ):
            with pytest.raises(apsw.ConstraintError, match="writes are stopped: the database is being moved to"):
                shell.execute(statement)


def test_what_a_shell_wrote_before_its_server_knew_is_kept_and_named(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(open_at(settings.database_path, REPLICA_URL=settings.replica_url)) as database:
        write(database, "before")
        stop_writes(settings.replica_url, tmp_path / "stop")
        with closing(apsw.Connection(str(settings.database_path))) as shell:
            shell.execute("UPDATE items SET quantity = 7")
        for _ in range(2):  # the second finds what the first has put aside
            with pytest.raises(WritesStopped):
                write(database, "x")
        assert quantities(database) == [0]
    assert list(settings.database_path.parent.glob("app.db.changes-*"))
    assert "do not fit the state that the log has since: items 1" in caplog.text
