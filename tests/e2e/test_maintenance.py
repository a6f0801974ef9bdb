"""Maintenance by the real commands, in the real Lambda runtime, over real servers of S3, killed anywhere."""

import json
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path

import apsw
import httpx2
import pytest

from infra.commitlog import ltx
from infra.commitlog.objects import ObjectNames
from infra.commitlog.raw_file import pages_of
from infra.storage.object_store import ObjectStore
from tests.e2e.conftest import Server
from tests.e2e.emulator import emulating
from tests.e2e.evidence import Claims, items_in, restored_and_checked
from tests.e2e.processes import Process, StartProcess
from tests.e2e.stores import S3, bucket_at

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
PAGE_SIZE = 4096
MB = 1024 * 1024


@pytest.fixture(params=["ministack", "moto"])
def any_bucket(request: pytest.FixtureRequest) -> Iterator[S3]:
    name = {"ministack": "ministack_endpoint", "moto": "locked_moto_endpoint"}[request.param]
    with bucket_at(request.getfixturevalue(name)) as s3:
        yield s3


def infra(start_process: StartProcess, *arguments: str, **environment: str) -> Process:
    return start_process(sys.executable, "-m", "infra", *arguments, **environment)


def done(process: Process) -> str:
    """What it printed."""
    code = process.popen.wait(300)
    process.end()
    assert code == 0, process.lines
    return "\n".join(process.lines)


@contextmanager
def writing(server: Server, claims: Claims) -> Iterator[None]:
    """Until the context ends."""
    stop = threading.Event()

    def write() -> None:
        for number in count():
            if stop.is_set():
                return
            name = f"item {number}"
            answer = server.client.post("/api/items", json={"name": name})
            claims.record(name, answer.status_code, answer.json())

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_killed_anywhere_and_several_at_once_beside_a_server_that_writes(
    start_process: StartProcess,
    start_server: StartServer,
    any_bucket: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = any_bucket.environment()
    server = start_server(**environment, MAINTENANCE_INTERVAL_SECONDS="0")
    claims = Claims()
    rng = random.Random(5)
    with writing(server, claims):
        for _ in range(6):
            together = [infra(start_process, "maintain", **environment) for _ in range(2)]
            time.sleep(rng.uniform(0.3, 1.5))
            for process in together:
                process.end(signal.SIGKILL)
        done(infra(start_process, "maintain", **environment))
    printed = done(infra(start_process, "maintain", **environment))
    assert "problem" not in printed
    claims.check(restored_and_checked(any_bucket, tmp_path, monkeypatch))
    runs = any_bucket.versions("log/0001/")
    assert len(runs) == len(any_bucket.keys("log/0000/")) // 16
    assert set(runs.values()) == {1}
    assert "is sound" in done(infra(start_process, "verify", **environment))


def test_functions_on_lambda_serve_and_maintain(
    start_process: StartProcess, any_bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = any_bucket.environment()
    serving = {name: value for name, value in environment.items() if name != "BACKUP_URL"}
    claims = Claims()
    with (
        emulating(start_process, **serving) as function,
        emulating(start_process, "handler.aws_maintenance.handler", **environment) as maintenance,
    ):
        for number in range(40):
            answer = function.request("POST", "/api/items", json.dumps({"name": f"item {number}"}))
            claims.record(f"item {number}", answer["statusCode"], json.loads(answer["body"]))
        assert maintenance.invoke({"action": "merge"}) == {"runs_merged": 2}
        assert maintenance.invoke({"action": "merge"}) == {"runs_merged": 0}
        report = maintenance.invoke({"action": "maintain"})
        assert (report["problems"], report["unfinished"]) == ([], False)
        assert report["verified"]["rows"]["items"] == 40
        assert "errorMessage" in maintenance.invoke({"requestContext": {}})
        maintenance.kill_runtime()
        maintenance.invoke({"action": "merge"})  # the one that finds it dead
        assert maintenance.invoke({"action": "maintain"})["verified"] == report["verified"]
        assert function.request("GET", "/api/items")["statusCode"] == 200
    assert len(claims.acknowledged) == 40
    claims.check(restored_and_checked(any_bucket, tmp_path, monkeypatch))


def test_problem_makes_the_invocation_fail(start_process: StartProcess, bucket: S3) -> None:
    environment = bucket.environment()
    with emulating(start_process, "handler.aws_maintenance.handler", **environment) as maintenance:
        bucket.write(f"log/0000/{1:016x}-{1:016x}.ltx", b"no LTX file")
        found = maintenance.invoke({"action": "maintain"})
        assert found["errorType"] == "MaintenanceError"
        assert "0000000000000001.ltx is cut short" in found["errorMessage"]


def test_server_looks_after_its_log_by_itself(start_server: StartServer, bucket: S3) -> None:
    server = start_server(**bucket.environment(), MAINTENANCE_INTERVAL_SECONDS="1")
    for number in range(20):
        server.client.post("/api/items", json={"name": f"item {number}"})
    server.process.wait_for('maintenance done.*"rows": ?{"items": ?20\\b')
    text = server.client.get("/metrics").text
    assert "verification_last_success_timestamp_seconds" in text
    assert bucket.keys("log/0001/") == [f"log/0001/{1:016x}-{16:016x}.ltx"]
    assert server.process.end() in (0, -signal.SIGTERM)


def names_of(client: httpx2.Client) -> list[str]:
    return sorted(item["name"] for item in client.get("/api/items?limit=100").json()["items"])


@pytest.mark.parametrize("kind", ["file", "s3"])
def test_any_moment_comes_back_into_the_running_service_and_goes_again(
    start_process: StartProcess, start_server: StartServer, bucket: S3, kind: str, tmp_path: Path
) -> None:
    environment = bucket.environment() if kind == "s3" else {}
    server = start_server(**environment, READ_FRESHNESS_SECONDS="0")
    for name in ("a", "b"):
        assert server.client.post("/api/items", json={"name": name}).status_code == 201
    time.sleep(0.01)
    moment = time.time()
    time.sleep(0.01)
    for item in server.client.get("/api/items").json()["items"]:
        assert server.client.delete(f"/api/items/{item['id']}").status_code == 204
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(moment)) + f"{moment % 1:.6f}Z"[1:]
    printed = done(infra(start_process, "restore", "--at", at, **environment))
    assert names_of(server.client) == ["a", "b"]
    server.client.post("/api/items", json={"name": "c"})
    [undo] = [line.partition("python -m infra ")[2] for line in printed.splitlines() if "to undo it" in line]
    done(infra(start_process, *undo.split(), **environment))
    assert names_of(server.client) == []
    saved = tmp_path / "saved.db"
    done(infra(start_process, "restore", "--at", at, "-o", str(saved), **environment))
    assert [name for _, name in items_in(saved)] == ["a", "b"]
    assert names_of(server.client) == []


def test_gigabyte_is_looked_after_in_a_quarter_of_one(
    start_process: StartProcess, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = bucket.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = ObjectStore(bucket.url("log"), timeout=300)
    rows = large_log(store, tmp_path)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from infra.__main__ import main\n"
        "code = main(['maintain'])\n"
        "print(Path('/proc/self/status').read_text())\n"  # getrusage also counts who has started the process
        "sys.exit(code)"
    )
    printed = done(start_process(sys.executable, "-c", code, TMPDIR=str(tmp_path), **environment))
    assert f"{rows:,} t" in printed
    assert f"snapshot made at TXID {33:016x}" in printed
    kilobytes = int(printed.partition("VmHWM:")[2].split()[0])
    assert kilobytes < 256 * 1024


def large_log(store: ObjectStore, directory: Path) -> int:
    """A database of 1 GB as the first commit, with 32 small ones on top; returns how many rows it has."""
    path, first = directory / "large.db", directory / "first.ltx"
    with closing(apsw.Connection(str(path))) as connection:
        for statement in ("PRAGMA synchronous = off", "CREATE TABLE t (id INTEGER PRIMARY KEY, v)", "BEGIN"):
            connection.execute(statement)
        while path.stat().st_size < 1024 * MB:
            connection.execute(
                "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 10000) "
                "INSERT INTO t (v) SELECT hex(randomblob(250)) || zeroblob(3200) FROM n"
            )
        connection.execute("COMMIT")
        rows = int(str(connection.execute("SELECT count(*) FROM t").get))
    size = path.stat().st_size // PAGE_SIZE
    names = ObjectNames(store.url)
    with first.open("wb") as file:
        writer = ltx.Writer(ltx.Header(PAGE_SIZE, size, 1, 1, 1_700_000_000_000, 0, 1), file.write)
        for number, page in pages_of(path, PAGE_SIZE):
            writer.add(number, page)
        checksum = writer.end()
    store.put(names.name(0, 1, 1), first)
    first.unlink()
    page = next(page for number, page in pages_of(path, PAGE_SIZE) if number == 1)
    path.unlink()
    for txid in range(2, 34):
        body, checksum = ltx.encode(
            ltx.Header(PAGE_SIZE, size, txid, txid, 1_700_000_000_000 + txid, checksum, txid), [(1, page)]
        )
        store.put(names.name(0, txid, txid), bytes(body))
    return rows
