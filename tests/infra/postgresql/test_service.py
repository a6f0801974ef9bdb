"""The service as its callers and operators see it."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from handler.asgi import server_app
from handler.service import Service, open_server_service
from infra.__main__ import main
from infra.settings import Settings
from tests.conftest import MakeSettings, assert_problem, serving
from tests.e2e.processes import until
from tests.postgresql import Cluster


@pytest.fixture
def settings(make_settings: MakeSettings, migrated_url: str) -> Settings:
    return make_settings(DATABASE_URL=migrated_url, DATABASE_CONNECTIONS=2)


@pytest.fixture
def service(settings: Settings) -> Service:
    return open_server_service(settings)


@pytest.fixture
def client(service: Service) -> Iterator[httpx2.Client]:
    with serving(service) as client:
        yield client


def test_answers_name_no_commit(client: httpx2.Client) -> None:
    written = client.post("/api/items", json={"name": "x"}, headers={"X-Commit-Txid": "00000000000000ff"})
    assert written.status_code == 201
    assert "x-commit-txid" not in written.headers
    assert "x-commit-txid" not in client.get("/api/items").headers


def test_status_says_nothing_of_a_log_or_of_backups(client: httpx2.Client) -> None:
    status = client.get("/ops/status").json()
    assert (status["state"], status["log"], status["backups"], status["not_asked"]) == ("well", None, [], [])
    assert not {"rpo_log", "rpo_backup", "rto"} & {objective["name"] for objective in status["objectives"]}
    assert not [name for name in status["gauges"] if name.startswith(("commit_log", "database_kept", "data_volume"))]


def test_metrics_have_no_rows_that_do_not_apply(client: httpx2.Client) -> None:
    client.post("/api/items", json={"name": "x"}).raise_for_status()
    rows = {line.split("{")[0].split(" ")[0] for line in client.get("/metrics").text.splitlines() if line[0] != "#"}
    for absent in (
        "store_",
        "maintenance_",
        "backup_",
        "restore_",
        "commit_log_txid",
        "commit_log_writes",
        "data_volume",
    ):
        assert not [row for row in rows if row.startswith(absent)]
    assert {"commit_log_commits_total", "commit_log_conflicts_total", "database_queue_duration_seconds_sum"} <= rows


def test_who_finds_no_connection_free_may_try_again(service: Service, client: httpx2.Client) -> None:
    busy, under_way = threading.Event(), threading.Semaphore(0)
    database = service.database

    def keep(transactions: object) -> None:
        under_way.release()
        busy.wait(30)

    kept = [database._threads.submit(keep, None) for _ in range(2)]  # type: ignore[attr-defined]
    for _ in kept:
        assert under_way.acquire(timeout=30)
    answer = client.post("/api/items", json={"name": "x"})
    busy.set()
    body = assert_problem(answer, 503)
    assert (body["code"], body["stored"], answer.headers["retry-after"]) == ("database_locked", "no", "1")
    assert client.post("/api/items", json={"name": "x"}).status_code == 201


@pytest.fixture
def impatient(make_settings: MakeSettings, migrated_url: str) -> Iterator[httpx2.Client]:
    settings = make_settings(DATABASE_URL=migrated_url, COMMIT_TIMEOUT_SECONDS="0.5")
    with serving(open_server_service(settings)) as client:
        yield client


def test_database_that_is_away_is_a_503_and_not_ready_until_it_is_back(
    impatient: httpx2.Client, postgresql: Cluster
) -> None:
    client = impatient
    until(lambda: client.get("/ready").status_code == 200)
    with postgresql.away():
        read = client.get("/api/items")
        assert (assert_problem(read, 503)["code"], read.headers["retry-after"]) == ("database_unavailable", "1")
        written = assert_problem(client.post("/api/items", json={"name": "x"}), 503)
        assert (written["code"], written["stored"]) == ("database_unavailable", "no")
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
        assert "No connection to 127.0.0.1" in ready.json()["database"]
        assert client.get("/health").status_code == 200
    until(lambda: client.get("/ready").status_code == 200)
    assert client.post("/api/items", json={"name": "x"}).status_code == 201


def test_service_starts_before_its_database(
    make_settings: MakeSettings, migrated_url: str, postgresql: Cluster
) -> None:
    with postgresql.away():
        service = open_server_service(make_settings(DATABASE_URL=migrated_url), lambda error: None)
        starting = serving(service)
        client = starting.__enter__()
        ready = client.get("/ready")
        assert (ready.status_code, "The start waits" in ready.json()["database"]) == (503, True)
        assert_problem(client.get("/api/items"), 503)
    until(lambda: client.get("/ready").status_code == 200)
    assert client.post("/api/items", json={"name": "x"}).status_code == 201
    starting.__exit__(None, None, None)


def test_ready_waits_for_no_database_that_is_away(
    make_settings: MakeSettings, migrated_url: str, postgresql: Cluster
) -> None:
    settings = make_settings(DATABASE_URL=migrated_url, COMMIT_TIMEOUT_SECONDS=600)
    with serving(open_server_service(settings)) as client:
        with postgresql.away():
            assert client.get("/ready").status_code == 503  # within the client's 20 s
        until(lambda: client.get("/ready").status_code == 200)


def test_database_that_is_only_read_is_ready_in_part(
    make_settings: MakeSettings, migrated_url: str, postgresql: Cluster
) -> None:
    with postgresql.superuser() as db:
        db.execute(f"ALTER DATABASE {migrated_url.rpartition('/')[2]} SET default_transaction_read_only = on")
    with serving(open_server_service(make_settings(DATABASE_URL=migrated_url))) as client:
        assert client.get("/ready").json()["status"] == "degraded"
        assert client.get("/api/items").status_code == 200
        written = assert_problem(client.post("/api/items", json={"name": "x"}), 503)
        assert (written["code"], written["stored"]) == ("database_unavailable", "no")


def test_wrong_password_ends_the_start_and_is_not_shown(
    make_settings: MakeSettings, postgresql: Cluster, database_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = postgresql.url(database_name, password="a-wrong-secret")
    with pytest.raises(SystemExit) as end:
        server_app(make_settings(DATABASE_URL=url, AUTH_MODE="none"))
    assert end.value.code == 2
    assert "cannot start: No connection to 127.0.0.1" in caplog.text
    assert "secret" not in caplog.text


def test_export_is_streamed_of_one_state(client: httpx2.Client) -> None:
    names = [f"n{number}" for number in range(1200)]
    for begin in range(0, 1200, 400):
        batch = {"items": [{"name": name} for name in names[begin : begin + 400]]}
        client.post("/api/items/batch", json=batch).raise_for_status()
    lines = client.get("/api/items/export").text.splitlines()
    assert [json.loads(line)["name"] for line in lines] == names


# Operators


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, migrated_url: str) -> str:
    monkeypatch.setenv("DATABASE_URL", migrated_url)
    return migrated_url


def test_keys_are_made_listed_and_revoked(
    served: str, make_settings: MakeSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["keys", "create", "somebody", "--scope", "read"]) == 0
    key = capsys.readouterr().out.strip()
    with serving(open_server_service(make_settings(DATABASE_URL=served, AUTH_MODE="keys"))) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.get("/api/items").status_code == 200
        assert client.post("/api/items", json={"name": "x"}).status_code == 403
        assert main(["keys", "list", "--json"]) == 0
        [listed] = json.loads(capsys.readouterr().out)
        assert (listed["name"], listed["state"]) == ("somebody", "valid")
        assert main(["keys", "revoke", listed["id"]]) == 0
        assert client.get("/api/items").status_code == 401
    assert main(["keys", "revoke", "aaaaaaaa"]) == 1


def test_keys_wait_for_the_service_that_makes_their_table(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATABASE_URL", database_url)
    assert main(["keys", "list"]) == 1
    assert "start this release's service once" in capsys.readouterr().err


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("command", "tool"),
    [
        (["sql", "SELECT 1"], "psql"),
        (["backup"], "pg_dump"),
        (["backups"], "backups"),
        (["restore", "latest"], "PITR"),
        (["maintain"], "autovacuum"),
        (["log"], "pg_stat_wal"),
        (["verify"], "pg_amcheck"),
        (["drill"], "pg_restore"),
        (["changes", "file"], "none"),
        (["status"], "/ops/status"),
    ],
)
def test_command_for_the_log_names_what_does_it_there(
    command: list[str], tool: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    said = capsys.readouterr().err
    assert tool in said
    assert "secret" not in said


@pytest.mark.usefixtures("served")
def test_incident_report_says_which_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["incident", "it is slow", "-o", "-"]) == 0
    said = capsys.readouterr().out
    assert "- database: PostgreSQL, 127.0.0.1:" in said
    assert "secret" not in said
    assert "commit log none" not in said
