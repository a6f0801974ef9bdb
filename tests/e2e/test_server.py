"""The server as an operator sees it: a process, its log, its exit codes and its files."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import apsw
import httpx2
import pytest
from playhouse.apsw_ext import APSWDatabase

from core.migrations import migrate
from tests.e2e.conftest import Server
from tests.e2e.processes import ROOT, StartProcess

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]


def infra(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DATABASE_PATH": str(tmp_path / "data" / "app.db"), **environment}
    command = [sys.executable, "-m", "infra", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_the_server_cleanly(start_server: StartServer, tmp_path: Path, number: signal.Signals) -> None:
    server = start_server()
    server.client.post("/api/items", json={"name": "x"}).raise_for_status()
    assert (tmp_path / "data" / "app.db-wal").stat().st_size > 0
    assert server.process.end(number) in (0, -number)
    assert not (tmp_path / "data" / "app.db-wal").exists()
    assert not [line for line in server.process.log if line["level"] in ("ERROR", "CRITICAL")]
    assert not [line for line in server.process.lines if "error" in line.lower()]  # `grep -i error` finds none of them


def test_open_request_is_answered_before_the_server_ends(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(BUSY_TIMEOUT_SECONDS="20")
    with closing(apsw.Connection(str(tmp_path / "data" / "app.db"))) as other:
        other.execute("BEGIN IMMEDIATE")
        answers: list[httpx2.Response] = []
        threads: list[threading.Thread] = []
        # Those that come first are under way together, held up by the lock; whoever comes later waits behind them
        while "database_writes_waiting 0.0" in server.client.get("/metrics").text:
            thread = threading.Thread(
                target=lambda: answers.append(server.client.post("/api/items", json={"name": "x"}))
            )
            thread.start()
            threads.append(thread)
            time.sleep(0.05)
        server.process.popen.send_signal(signal.SIGTERM)
        server.process.wait_for("Shutting down")
        other.execute("ROLLBACK")
    for thread in threads:
        thread.join(30)
    assert [answer.status_code for answer in answers] == [201] * len(threads)
    server.process.popen.wait(30)
    assert not (tmp_path / "data" / "app.db-wal").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PORT": "x"}, "PORT='x'"),
        ({"BACKUP_URL": "ftp://x"}, "BACKUP_URL='ftp://x'"),
        ({"DATABASE_PATH": "/proc/nowhere/app.db", "BACKUP_URL": "file:///tmp"}, "directory cannot be created"),
        ({"BACKUP_URL": "file:///proc/nowhere"}, "file:///proc/nowhere"),
    ],
)
@pytest.mark.parametrize("command", [["-m", "handler"], ["-m", "uvicorn", "handler.asgi:app"]])
def test_wrong_setting_is_one_clear_line_and_exit_code_2(
    start_process: StartProcess, environment: dict[str, str], message: str, command: list[str]
) -> None:
    process = start_process(sys.executable, *command, **environment)
    process.popen.wait(30)
    assert process.end() == 2
    (line,) = process.log
    assert line["level"] == "CRITICAL"
    assert message in line["message"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"HOST": "256.1.1.1"}, "HOST='256.1.1.1' is no address to listen on"),
        ({"HOST": "192.0.2.1"}, "HOST='192.0.2.1', PORT=0: cannot listen there"),
        ({"MAX_CONNECTIONS": "2000000000"}, "MAX_CONNECTIONS=2000000000: needs 2000000200 open files, and "),
        ({"HOST": "0.0.0.0"}, "HOST='0.0.0.0' lets other machines in, and AUTH_MODE does not say whom"),
        ({"HOST": "::"}, "HOST='::' lets other machines in, and AUTH_MODE does not say whom"),
        ({"BACKUP_URL": "s3://bucket/x", "AWS_ENDPOINT_URL": "garbage"}, "AWS_ENDPOINT_URL='garbage'"),
    ],
)
def test_wrong_address_is_one_clear_line_and_exit_code_2(
    start_process: StartProcess, environment: dict[str, str], message: str
) -> None:
    process = start_process(sys.executable, "-m", "handler", **environment)
    process.popen.wait(30)
    assert process.end() == 2
    (line,) = process.log
    assert message in line["message"]


def test_taken_port_is_refused_before_anything_is_opened(start_process: StartProcess, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        process = start_process(sys.executable, "-m", "handler", PORT=str(other.getsockname()[1]))
        process.popen.wait(30)
    assert process.end() == 2
    (line,) = process.log
    assert "cannot listen there: Address already in use" in line["message"]
    assert not (tmp_path / "data").exists()


def test_store_that_does_not_answer_delays_neither_start_nor_stop(
    start_server: StartServer, s3: str, tmp_path: Path
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        server = start_server(
            BACKUP_URL=s3,
            AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{silent.getsockname()[1]}",
            MAINTENANCE_INTERVAL_SECONDS="1",
            TMPDIR=str(temporary),
        )
        assert server.client.get("/ready").status_code == 200
        assert time.monotonic() - started < 30
        started = time.monotonic()
        # the interpreter ends in its own way after this signal, as it does as a container's first process
        assert server.process.end(signal.SIGINT) in (0, -signal.SIGINT)
        assert time.monotonic() - started < 30
    assert not (tmp_path / "data" / "app.db-wal").exists()


def test_stop_during_maintenance_leaves_no_copy_behind(start_server: StartServer, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "data").mkdir()
    with closing(APSWDatabase(str(tmp_path / "data" / "app.db"))) as database:
        migrate(database)
        database.execute_sql("CREATE TABLE big AS SELECT randomblob(60000000) AS filler")
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="1", TMPDIR=str(temporary))
    while not any(file.name == "app.db.gz" for file in temporary.rglob("*")):
        time.sleep(0.01)
    assert server.process.end() in (0, -signal.SIGTERM)
    assert list(temporary.iterdir()) == []


def test_missing_bucket_is_refused_at_start(start_process: StartProcess, s3: str) -> None:
    process = start_process(sys.executable, "-m", "handler", BACKUP_URL="s3://nowhere/x")
    process.popen.wait(30)
    assert process.end() == 2
    (line,) = process.log
    assert "s3://nowhere/x: there is no such bucket" in line["message"]


def test_second_server_of_one_file_is_refused(start_server: StartServer, start_process: StartProcess) -> None:
    first = start_server()
    second = start_process(sys.executable, "-m", "handler")
    second.popen.wait(30)
    assert second.end() == 2
    assert f"in use by process {first.process.popen.pid}" in second.log[-1]["message"]
    assert first.client.get("/ready").status_code == 200


def test_plain_uvicorn_logs_json_too(start_process: StartProcess) -> None:
    process = start_process(sys.executable, "-m", "uvicorn", "handler.asgi:app", "--port", "0")
    url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    assert httpx2.get(f"{url}/health", trust_env=False).status_code == 200
    process.end(signal.SIGINT)
    requests = [line for line in process.log if line.get("path") == "/health"]
    assert len(requests) == 1
    assert requests[0]["status_code"] == 200


def test_address_is_believed_from_the_same_proxies_under_plain_uvicorn(start_process: StartProcess) -> None:
    limits = {"RATE_LIMIT": "0.001", "RATE_BURST": "1", "FORWARDED_ALLOW_IPS": "192.0.2.1"}
    process = start_process(sys.executable, "-m", "uvicorn", "handler.asgi:app", "--port", "0", **limits)
    url = process.wait_for(r"Uvicorn running on (http://[0-9.:]+)")[1]
    answers = [
        httpx2.get(f"{url}/api/items", headers={"x-forwarded-for": claim}, trust_env=False).status_code
        for claim in ("203.0.113.1", "203.0.113.2")
    ]
    assert answers == [200, 429]


def test_server_opens_as_many_files_as_it_lets_connections_be(start_process: StartProcess) -> None:
    command = f"ulimit -Sn 64; exec {sys.executable} -m handler"
    process = start_process("sh", "-c", command, PORT="0", MAX_CONNECTIONS="200")
    port = int(process.wait_for(r"Uvicorn running on http://[0-9.]+:(\d+)")[1])
    with ExitStack() as stack:
        for _ in range(150):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), 10))
        assert httpx2.get(f"http://127.0.0.1:{port}/ready", trust_env=False).status_code == 200


def test_lost_file_and_lost_log_come_back_from_a_backup(start_server: StartServer, tmp_path: Path) -> None:
    backup_url = (tmp_path / "elsewhere").as_uri()
    server = start_server(BACKUP_URL=backup_url, MAINTENANCE_INTERVAL_SECONDS="0")
    for n in range(10):
        server.client.post("/api/items", json={"name": f"item {n}"}).raise_for_status()
    items = server.client.get("/api/items").json()
    made = infra(tmp_path, "backup", "--json", BACKUP_URL=backup_url)
    assert json.loads(made.stdout)["rows"]["items"] == 10
    server.process.end()
    shutil.rmtree(tmp_path / "data")
    restored = infra(tmp_path, "restore", "latest", BACKUP_URL=backup_url)
    assert restored.returncode == 0, restored.stderr
    assert start_server(BACKUP_URL=backup_url).client.get("/api/items").json() == items


def test_server_backs_up_by_itself(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="1")
    server.process.wait_for("maintenance done")
    assert (tmp_path / "data" / "backups" / "app-latest.db.gz").exists()
    assert "maintenance_last_success_timestamp_seconds" in server.client.get("/metrics").text
    assert server.process.end() in (0, -signal.SIGTERM)
