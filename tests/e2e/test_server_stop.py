"""How a server ends."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, restored_and_checked
from tests.e2e.processes import until
from tests.e2e.proxy import Gate, Proxy, pass_on, proxy_before
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
WRITERS = 20


@pytest.fixture
def proxy(bucket: S3) -> Iterator[Proxy]:
    with proxy_before(bucket.endpoint) as proxy:
        yield proxy


@pytest.fixture
def server(start_server: StartServer, bucket: S3, proxy: Proxy) -> Server:
    return start_server(**bucket.environment(proxy.endpoint), MAINTENANCE_INTERVAL_SECONDS="0")


def write(url: httpx2.URL, name: str, claims: Claims) -> None:
    try:
        answer = httpx2.post(f"{url}/api/items", json={"name": name}, timeout=30, trust_env=False)
    except httpx2.HTTPError:
        return claims.record(name, 0, {})
    claims.record(name, answer.status_code, answer.json())


def writing(server: Server, gate: Gate, claims: Claims) -> list[threading.Thread]:
    """One commit is under way, the others wait for it."""
    first, *others = threads = [
        threading.Thread(target=partial(write, server.client.base_url, f"item {n}", claims)) for n in range(WRITERS)
    ]
    first.start()
    assert gate.reached.wait(30)
    for thread in others:
        thread.start()
    until(lambda: waiting_in(server) == len(others))
    return threads


def waiting_in(server: Server) -> float:
    text = server.client.get("/metrics").text
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("database_writes_waiting "))


def test_full_queue_refuses_at_once_and_the_loop_goes_on(start_server: StartServer, bucket: S3, proxy: Proxy) -> None:
    server = start_server(
        **bucket.environment(proxy.endpoint), MAINTENANCE_INTERVAL_SECONDS="0", WRITE_QUEUE_LIMIT=str(WRITERS - 1)
    )
    claims = Claims()
    proxy.rule = gate = Gate()
    threads = writing(server, gate, claims)
    for _ in range(3):
        refused = server.client.post("/api/items", json={"name": "one too many"})
        assert (refused.status_code, refused.json()["stored"]) == (503, "no")
        assert int(refused.headers["retry-after"]) > 0
        assert server.client.get("/health").status_code == 200
    assert len(claims) == 0
    gate.open()
    for thread in threads:
        thread.join()
    assert len(claims.acknowledged) == WRITERS


def test_what_is_in_hand_is_stored_and_answered(
    server: Server, proxy: Proxy, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    proxy.rule = gate = Gate()
    threads = writing(server, gate, claims)
    server.process.popen.send_signal(signal.SIGTERM)
    server.process.wait_for("Shutting down")
    gate.open()
    for thread in threads:
        thread.join()
    assert server.process.popen.wait(30) in (0, -signal.SIGTERM)
    server.process.end()
    assert len(claims.acknowledged) == WRITERS
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))
    assert not (tmp_path / "data" / "app.db-wal").exists()


def test_second_signal_ends_it_at_once(
    server: Server,
    proxy: Proxy,
    bucket: S3,
    start_server: StartServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims = Claims()
    write(server.client.base_url, "before", claims)
    proxy.rule = gate = Gate()
    threads = writing(server, gate, claims)
    server.process.popen.send_signal(signal.SIGTERM)
    server.process.wait_for("Shutting down")
    server.process.popen.send_signal(signal.SIGTERM)
    assert server.process.popen.wait(30) == 128 + signal.SIGTERM  # while the store still keeps its reply back
    gate.open()
    for thread in threads:
        thread.join()
    proxy.rule = pass_on
    again = start_server(**bucket.environment(), MAINTENANCE_INTERVAL_SECONDS="0")
    write(again.client.base_url, "after", claims)
    assert claims.acknowledged.keys() == {"before", "after"}
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_store_that_never_answers_does_not_keep_it_alive(
    server: Server, proxy: Proxy, bucket: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()
    write(server.client.base_url, "before", claims)
    proxy.rule = gate = Gate()
    threads = writing(server, gate, claims)
    started = time.monotonic()
    server.process.popen.send_signal(signal.SIGTERM)
    server.process.popen.wait(60)
    print(f"ended {time.monotonic() - started:.1f} s after the signal:", *server.process.lines[-3:], sep="\n")
    stored = len(bucket.keys("log/0000/"))
    gate.open()
    until(lambda: len(bucket.keys("log/0000/")) == stored + 1)  # it lands after all
    for thread in threads:
        thread.join()
    assert claims.acknowledged.keys() == {"before"}
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_each_answer_has_its_line_when_a_server_has_stopped(start_server: StartServer) -> None:
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    ids = [server.client.get("/health").headers["x-request-id"] for _ in range(200)]
    server.process.end()
    assert [line["request_id"] for line in server.process.log if line.get("path") == "/health"] == ids


def test_kill_takes_the_lines_of_the_last_moment_at_most(start_server: StartServer) -> None:
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    ids = [server.client.get("/health").headers["x-request-id"] for _ in range(200)]
    server.process.wait_for(ids[-1])
    ids.append(server.client.get("/health").headers["x-request-id"])
    server.process.end(signal.SIGKILL)
    lines = [line for line in server.process.lines if '"/health"' in line]
    assert len(lines) >= 200
    assert all(request_id in line for request_id, line in zip(ids, lines, strict=False))
