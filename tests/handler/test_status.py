import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import httpx2
import pytest

from core import errors
from handler.asgi import create_app
from handler.service import Service, open_server_service
from handler.status import prober
from infra.commitlog import LogObject
from infra.maintenance.drill import Drill, Restored
from infra.objectives.history_file import HistoryFile
from infra.objectives.status import moment_text
from infra.objectives.stores import Found, stores_of
from infra.objectives.watch import Watch
from infra.storage.object_store import ObjectStore
from infra.telemetry.newest_errors import ERRORS
from tests.conftest import MakeSettings, assert_problem, serving, settings_in

pytestmark = pytest.mark.usefixtures("quick_machine")


@pytest.fixture(scope="module")
def service_and_client(
    tmp_path_factory: pytest.TempPathFactory, quick_machine: None
) -> Iterator[tuple[Service, httpx2.Client]]:
    service = open_server_service(settings_in(tmp_path_factory.mktemp("status")))
    with serving(service) as client:
        for name in ("Lamp", "Torch"):
            assert client.post("/api/items", json={"name": name}).status_code == 201
        client.get("/api/items/99")
        yield service, client


@pytest.fixture
def service(service_and_client: tuple[Service, httpx2.Client]) -> Service:
    return service_and_client[0]


@pytest.fixture
def client(service_and_client: tuple[Service, httpx2.Client]) -> httpx2.Client:
    return service_and_client[1]


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_status_says_that_all_is_well_and_shows_what_it_says_so_by(client: httpx2.Client, service: Service) -> None:
    client.get("/health")  # on this connection, so what came before is counted
    service.watch.stores._asked = float("-inf")  # as some seconds later
    answer = client.get("/ops/status")
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json()
    assert (found["state"], found["reason"], found["alerts"], found["not_asked"]) == (
        "well",
        "Everything is well.",
        [],
        [],
    )
    objectives = {objective["name"]: objective for objective in found["objectives"]}
    assert objectives["availability"]["values"] == {"5m": 1, "1h": 1, "24h": 1, "30d": 1}
    assert objectives["availability"]["state"] == objectives["error_rate"]["state"] == "met"
    assert objectives["response_time_p95"]["values"]["5m"] > 0
    assert objectives["query_time_p95"]["values"]["5m"] > 0
    assert not any(objective["per_instance"] for objective in objectives.values())
    assert (found["service"]["name"], found["service"]["per_instance"]) == ("cloud-native-poc", False)
    log = found["log"]
    assert log["url"] == service.settings.replica_url
    assert [commit["txid"] for commit in log["commits"]][:2] == [f"{4:016x}", f"{3:016x}"]
    assert [commit["writes"] for commit in log["commits"]][:2] == [1, 1]
    assert (log["txid"], log["lag"]) == (f"{4:016x}", 0)
    assert all(commit["bytes"] > 0 for commit in log["commits"])
    assert found["gauges"]["commit_log_txid"] == 4


def test_requests_of_operators_and_probes_are_none_of_the_api(client: httpx2.Client, service: Service) -> None:
    before = service.metrics.totals().requests
    for path in ("/health", "/ready", "/metrics", "/ops/status", "/ops/history", "/docs", "/health"):
        client.get(path)
    assert service.metrics.totals().requests == before == 3


@pytest.mark.sqlite_only("commits of the log")
@pytest.mark.parametrize(("span", "step", "points"), [("hour", 60, 60), ("day", 600, 144)])
def test_history_is_in_steps_and_its_last_one_goes_on(client: httpx2.Client, span: str, step: int, points: int) -> None:
    client.get("/ops/status")  # which looks
    found = client.get("/ops/history", params={"span": span}).json()
    assert (found["span"], found["step_seconds"], len(found["points"])) == (span, step, points)
    known = [point for point in found["points"] if point["commits"] is not None]
    assert sum(point["commits"] for point in known) == 4
    assert known[-1]["memory_bytes"] > 1_000_000
    assert known[-1]["database_bytes"] > 0
    assert found["points"][0]["requests_per_second"] is None


def test_history_of_no_span_is_refused(client: httpx2.Client) -> None:
    assert client.get("/ops/history").json()["span"] == "hour"
    assert assert_problem(client.get("/ops/history?span=year"), 422)["errors"][0]["field"] == "span"


def test_newest_errors_are_shown(client: httpx2.Client) -> None:
    logger = logging.getLogger("of.a.test")
    logger.addHandler(ERRORS)
    logger.error("it has failed")
    logger.removeHandler(ERRORS)
    error = client.get("/ops/status").json()["errors"][0]
    assert (error["level"], error["message"], error["logger"], error["request_id"]) == (
        "ERROR",
        "it has failed",
        "of.a.test",
        None,
    )


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_backups_are_shown_with_their_proof(make_settings: MakeSettings) -> None:
    service = open_server_service(make_settings())
    assert service.maintenance
    with serving(service) as client:
        client.post("/api/items", json={"name": "x"})
        assert service.maintenance.run().succeeded
        store = ObjectStore(service.settings.replica_url)
        sound = Restored("", "", {}, 2.5, 0)
        store.put("drill.json", json.dumps(asdict(Drill(time.time(), time.time(), sound, sound))).encode())
        service.watch.stores._asked = float("-inf")  # as some seconds later
        found = client.get("/ops/status").json()
        [backup] = found["backups"]
        assert backup["name"].startswith("app-")
        assert backup["bytes"] > 0
        newest = service.maintenance._maintenance.backups.newest_manifest()
        assert newest
        assert backup["at"] == moment_text(datetime.fromisoformat(newest.created_at).timestamp())
        assert backup["proven_at"] >= backup["at"][:16]
        objectives = {objective["name"]: objective for objective in found["objectives"]}
        assert (objectives["rpo_backup"]["values"]["5m"], objectives["rpo_backup"]["state"]) == (0, "met")
        assert (objectives["rto"]["values"]["30d"], objectives["rto"]["state"]) == (2.5, "met")


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_what_stops_serving_is_down_and_what_serves_in_part_degraded(
    client: httpx2.Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = service.settings.database_path
    moved = path.rename(path.with_name("moved.db"))
    found = client.get("/ops/status").json()
    assert (found["state"], found["alerts"][0]["name"]) == ("down", "NotReady")
    assert found["alerts"][0]["runbook"] == "RUNBOOK.md#alert-notready"
    assert "was removed or replaced" in found["reason"]
    moved.rename(path)

    def is_read_only(database: object) -> None:
        raise errors.DatabaseUnavailable("it is not writable")

    monkeypatch.setattr("infra.sqlite.database.SqliteDatabase.check_writable", is_read_only)
    found = client.get("/ops/status").json()
    assert (found["state"], found["alerts"][0]["name"]) == ("degraded", "WritesRefused")
    assert "it is not writable" in found["reason"]
    monkeypatch.undo()
    assert client.get("/ops/status").json()["alerts"] == []


def test_store_that_hangs_keeps_neither_status_nor_a_stop_waiting(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = open_server_service(make_settings())
    hanging, go_on = threading.Event(), threading.Event()

    def hang() -> Found:
        hanging.set()
        go_on.wait(60)
        return Found()

    service.watch.stores._ask = hang
    monkeypatch.setattr("handler.status._ASK_SECONDS", 0.05)
    with serving(service) as client:
        found = client.get("/ops/status").json()
        assert hanging.is_set()
        assert not go_on.is_set()
        assert found["not_asked"] == ["log and backups: the stores did not answer in time, so what is shown is older"]
        assert found["state"] == "well"
        assert client.get("/ops/history").status_code == 200
    assert not go_on.is_set()  # and the server has stopped
    go_on.set()
    assert HistoryFile(service.settings.database_path).read()


async def hang(*arguments: object) -> None:
    await asyncio.Event().wait()


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_ready_waits_for_no_store_that_hangs(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.sqlite.database.SqliteDatabase.verify", hang)
    monkeypatch.setattr("handler.ops._STORE_TIMEOUT_SECONDS", 0.05)
    found = client.get("/ready").json()
    assert (found["status"], found["store"][:18]) == ("degraded", "No answer in time:")


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_status_waits_for_no_database_that_hangs(client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.sqlite.database.SqliteDatabase.read_local", hang)
    monkeypatch.setattr("handler.status._CONDITION_SECONDS", 0.05)
    found = client.get("/ops/status").json()
    assert (found["state"], found["reason"]) == (
        "down",
        "Nothing can be served: no answer of the database in time.",
    )
    monkeypatch.undo()
    assert client.get("/ops/status").json()["alerts"] == []


def test_process_that_hangs_is_noticed_by_the_thread_that_watches(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handler.status._PROBE_SECONDS", 0.05)
    loop = asyncio.new_event_loop()  # which nobody runs
    assert prober(service, loop)().unready.startswith("the process did not answer within ")
    for _ in range(3):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_store_that_says_why_not_is_named(make_settings: MakeSettings, s3: str) -> None:
    settings = make_settings(BACKUP_URL="s3://nowhere/x")
    ObjectStore(settings.replica_url).check_directories()
    found = stores_of(settings, lambda: 0)
    assert found.ask().wait(30)
    assert found.found
    [trouble] = found.found.troubles
    assert trouble.startswith("the backups: ")


@pytest.mark.sqlite_only("the log, its backups and its file")
def test_newest_commits_are_twenty_of_however_many(make_settings: MakeSettings, tmp_path: Path) -> None:
    settings = make_settings()
    store = ObjectStore(settings.replica_url)
    for txid in range(1, 41):
        store.put(f"ltx/0/{txid:016x}-{txid:016x}.ltx", b"x")
    stores = stores_of(settings, lambda: 38)
    assert stores.ask().wait(30)
    assert stores.found
    commits: list[LogObject] = stores.found.commits
    assert [commit.max_txid for commit in commits] == list(range(40, 20, -1))


def test_server_looks_by_itself_and_keeps_what_it_saw(make_settings: MakeSettings) -> None:
    service = open_server_service(make_settings())
    with serving(service) as client:
        until = time.monotonic() + 20
        while service.watch.history.until == service.watch.history.began:
            assert time.monotonic() < until
            time.sleep(0.01)
        client.post("/api/items", json={"name": "x"})
    history = HistoryFile(service.settings.database_path).read()
    assert history
    assert history.window("24h").counts.requests == 1
    with serving(open_server_service(service.settings)) as client:
        objectives = {found["name"]: found for found in client.get("/ops/status").json()["objectives"]}
        assert objectives["restarts"]["values"]["24h"] == 1
        assert objectives["error_rate"]["values"]["24h"] == 0


def test_watch_that_cannot_be_stopped_keeps_nobody_from_closing_the_database(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = open_server_service(make_settings())

    stop = Watch.stop

    def fail(watch: Watch) -> None:
        stop(watch)
        raise RuntimeError("a bug")

    async def live() -> None:
        app = create_app(service)
        async with app.router.lifespan_context(app):
            pass

    monkeypatch.setattr(Watch, "stop", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(live())
    open_server_service(service.settings).database.close()
