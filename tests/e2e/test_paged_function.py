"""Functions whose database is opened page by page: real runtimes, a real S3 server, and trouble while pages come."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.e2e.emulator import Emulator, children, command_line, emulating
from tests.e2e.evidence import Claims, restored_and_checked, run_together
from tests.e2e.processes import StartProcess
from tests.e2e.proxy import Forward, Proxy, Reply, Request, proxy_before
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e

ITEMS = 4000
_FILL = (
    f"WITH RECURSIVE n(v) AS (SELECT 1 UNION ALL SELECT v + 1 FROM n WHERE v < {ITEMS}) "
    "INSERT INTO items (name, description, created_at, updated_at) "
    "SELECT 'item ' || v, hex(randomblob(400)), '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z' FROM n"
)
_PAGED = {"PAGED_ABOVE_MB": "always", "PAGE_CACHE_MB": "1"}


def infra(bucket: S3, tmp_path: Path, *arguments: str) -> str:
    """What an operator types, on a machine that has no database of its own."""
    environment = {**os.environ, **bucket.environment(), "DATABASE_PATH": str(tmp_path / "operator" / "app.db")}
    done = subprocess.run(
        [sys.executable, "-m", "infra", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def large(bucket: S3, tmp_path: Path, start_process: StartProcess) -> S3:
    """A bucket with a log of some megabytes, and a snapshot at its head."""
    with emulating(start_process, **bucket.environment()) as function:
        assert function.request("POST", "/api/items", '{"name": "the first one"}')["statusCode"] == 201
    infra(bucket, tmp_path, "sql", _FILL)
    infra(bucket, tmp_path, "maintain")
    return bucket


@pytest.fixture
def proxy(large: S3) -> Iterator[Proxy]:
    with proxy_before(large.endpoint) as proxy:
        yield proxy


@pytest.fixture
def function(start_process: StartProcess, large: S3, proxy: Proxy) -> Iterator[Emulator]:
    with emulating(start_process, **large.environment(proxy.endpoint), **_PAGED) as function:
        yield function


def is_page_fetch(request: Request) -> bool:
    return request.method == "GET" and "/0009/" in request.path and ".ltx" in request.path


def ranges(proxy: Proxy) -> list[str]:
    return [request.headers["range"] for request, _ in proxy.requests if is_page_fetch(request)]


def found(answer: dict[str, Any]) -> dict[str, Any]:
    assert answer["statusCode"] in (200, 201), answer
    return dict(json.loads(answer["body"]))


def snapshots(bucket: S3) -> list[str]:
    return [key for key in bucket.keys("log/0009/") if key.endswith(".ltx")]


def test_cold_start_and_a_point_read_take_five_requests(function: Emulator, proxy: Proxy) -> None:
    assert found(function.request("GET", "/api/items/2000"))["name"] == "item 1999"
    asked = [f"{request.method} {request.path.partition('?')[0]}" for request, _ in proxy.requests]
    assert len(asked) <= 5, asked
    read = sum(len(reply.body) for _, reply in proxy.requests if reply)
    assert read < 0.2 * 3_000_000
    fetched = ranges(proxy)
    proxy.requests.clear()
    found(function.request("GET", "/api/items/2000"))
    assert not set(ranges(proxy)) & set(fetched)  # what is read ahead by now lies elsewhere


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_write_takes_at_most_three_requests_for_pages(function: Emulator, proxy: Proxy, method: str) -> None:
    """What is read ahead by the way begins with the second invocation."""
    place = "/api/items" if method == "POST" else "/api/items/1234"
    found(function.request(method, place, '{"name": "new"}'))
    assert len(ranges(proxy)) <= 3


def test_lists_and_searches_are_as_from_the_whole_file(
    function: Emulator, start_process: StartProcess, large: S3
) -> None:
    with emulating(start_process, **large.environment(), PAGED_ABOVE_MB="never") as whole:
        for query in ("limit=50", "limit=50&order=-created_at", "q=item+39&limit=100", "limit=5&count=true"):
            answers = [each.request("GET", "/api/items", query=query) for each in (function, whole)]
            assert found(answers[0]) == found(answers[1]), query


def test_function_that_is_killed_while_pages_come_begins_anew(function: Emulator, proxy: Proxy) -> None:
    arrived = threading.Event()

    def kill(request: Request, forward: Forward) -> Reply | None:
        if is_page_fetch(request) and not arrived.is_set():
            arrived.set()
            function.kill_runtime()
            return None
        return forward(request)

    proxy.rule = kill
    written = found(function.request("POST", "/api/items", '{"name": "kept"}'))
    answer = function.request("GET", "/api/items/3000")
    assert arrived.is_set()
    if "statusCode" not in answer:  # the emulator's word for a runtime that has died
        answer = function.request("GET", "/api/items/3000")
    assert found(answer)["name"] == "item 2999"
    assert found(function.request("GET", f"/api/items/{written['id']}"))["name"] == "kept"


def test_function_that_is_frozen_while_pages_come_goes_on(function: Emulator, proxy: Proxy) -> None:
    frozen = threading.Event()

    def freeze(request: Request, forward: Forward) -> Reply | None:
        reply = forward(request)
        if is_page_fetch(request) and not frozen.is_set():
            frozen.set()
            function.signal_runtime(signal.SIGSTOP)
            threading.Timer(5, function.signal_runtime, [signal.SIGCONT]).start()  # past the client's time-out
            return None
        return reply

    found(function.request("GET", "/api/items/1"))
    proxy.rule = freeze
    answer = function.request("GET", "/api/items/3500")
    assert frozen.is_set()
    assert answer["statusCode"] in (200, 503), answer
    assert found(function.request("GET", "/api/items/3500"))["name"] == "item 3499"
    found(function.request("POST", "/api/items", '{"name": "after the frost"}'))


def test_pruned_snapshot_is_replaced_under_a_live_reader(
    function: Emulator, proxy: Proxy, large: S3, tmp_path: Path
) -> None:
    assert found(function.request("GET", "/api/items/100"))["name"] == "item 99"
    [old] = snapshots(large)
    infra(large, tmp_path, "sql", "UPDATE items SET description = hex(randomblob(400))")
    infra(large, tmp_path, "maintain")
    [new] = set(snapshots(large)) - {old}
    for key in large.keys("log/0009/"):
        if key.startswith(old.removesuffix(".ltx")):
            large.delete(key)
    infra(large, tmp_path, "sql", "UPDATE items SET name = 'renamed' WHERE id = 3500")
    assert found(function.request("GET", "/api/items/3500"))["name"] == "renamed"
    assert found(function.request("GET", "/api/items/2500"))["name"] == "item 2499"
    found(function.request("POST", "/api/items", '{"name": "on the new one"}'))
    assert new in snapshots(large)


def test_snapshot_that_vanishes_between_two_pages_of_a_read(
    function: Emulator, proxy: Proxy, large: S3, tmp_path: Path
) -> None:
    found(function.request("GET", "/api/items/100"))
    [old] = snapshots(large)
    infra(large, tmp_path, "sql", "DELETE FROM items WHERE id % 2 = 0")
    infra(large, tmp_path, "maintain")
    fetched: list[str] = []

    def prune(request: Request, forward: Forward) -> Reply | None:
        if is_page_fetch(request):
            fetched.append(request.path)
            if len(fetched) == 2:
                large.delete(old)
        return forward(request)

    proxy.rule = prune
    answer = found(function.request("GET", "/api/items", query="q=item&limit=100&count=true"))
    assert answer["total"] == ITEMS // 2


def test_damaged_block_is_a_503_that_names_its_object(function: Emulator, proxy: Proxy, large: S3) -> None:
    [key] = snapshots(large)
    body = bytearray(large.read(key))
    for offset in range(len(body) // 4, 3 * len(body) // 4, 2000):
        body[offset] ^= 0x10
    large.write(key, bytes(body))
    wrong = [
        answer
        for number in range(1000, 3000, 250)
        if (answer := function.request("GET", f"/api/items/{number}"))["statusCode"] != 200
    ]
    assert wrong
    assert {answer["statusCode"] for answer in wrong} == {503}
    for number in range(1000, 3000, 250):
        answer = function.request("GET", f"/api/items/{number}")
        assert answer["statusCode"] == 503 or found(answer)["name"] == f"item {number - 1}"
    function.process.wait_for(key.rpartition("/")[2])  # in the log lines


def test_store_without_pages_is_a_503_and_no_wrong_answer(function: Emulator, proxy: Proxy) -> None:
    found(function.request("GET", "/api/items/100"))
    proxy.rule = lambda request, forward: Reply(503, {}, b"SlowDown") if is_page_fetch(request) else forward(request)
    assert function.request("GET", "/api/items/3000")["statusCode"] == 503
    refused = function.request("PATCH", "/api/items/3000", '{"name": "x"}')
    assert refused["statusCode"] == 503
    assert json.loads(refused["body"]).get("stored", "no") == "no"
    proxy.rule = lambda request, forward: forward(request)
    assert found(function.request("GET", "/api/items/3000"))["name"] == "item 2999"
    assert found(function.request("PATCH", "/api/items/3000", '{"name": "y"}'))["name"] == "y"


def test_write_gives_up_when_a_listed_snapshot_is_not_there(function: Emulator, proxy: Proxy) -> None:
    found(function.request("GET", "/api/items/100"))
    proxy.rule = lambda request, forward: Reply(404, {}, b"") if is_page_fetch(request) else forward(request)
    proxy.requests.clear()
    answer = function.request("PATCH", "/api/items/3000", '{"name": "x"}')
    assert (answer["statusCode"], json.loads(answer["body"])["stored"]) == (503, "no")
    assert len(proxy.requests) < 20
    proxy.rule = lambda request, forward: forward(request)
    assert found(function.request("PATCH", "/api/items/3000", '{"name": "y"}'))["name"] == "y"


def test_counted_search_whose_pages_are_away_is_a_503(function: Emulator, proxy: Proxy) -> None:
    """It reads in a transaction within another, which the error that comes up through SQLite has ended."""
    found(function.request("GET", "/api/items/100"))
    proxy.rule = lambda request, forward: Reply(503, {}, b"SlowDown") if is_page_fetch(request) else forward(request)
    assert function.request("GET", "/api/items", query="q=item&count=true")["statusCode"] == 503
    proxy.rule = lambda request, forward: forward(request)
    assert found(function.request("GET", "/api/items", query="q=item&count=true"))["total"] == ITEMS


def test_counted_search_goes_on_when_its_snapshot_was_deleted(
    function: Emulator, proxy: Proxy, large: S3, tmp_path: Path
) -> None:
    found(function.request("GET", "/api/items/100"))
    old = large.keys("log/0009/")
    infra(large, tmp_path, "sql", "UPDATE items SET description = hex(randomblob(400)) WHERE id < 3000")
    infra(large, tmp_path, "maintain")
    for key in old:
        large.delete(key)
    assert found(function.request("GET", "/api/items", query="q=item&count=true"))["total"] == ITEMS


def test_paged_and_whole_functions_write_and_nothing_is_lost(
    start_process: StartProcess, large: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claims = Claims()

    def write(function: Emulator, prefix: str) -> None:
        for number in range(30):
            name = f"{prefix}-{number}"
            answer = function.request("POST", "/api/items", json.dumps({"name": name}))
            claims.record(name, answer["statusCode"], json.loads(answer["body"]))
            target = 1 + (number * 137) % ITEMS
            assert function.request("GET", f"/api/items/{target}")["statusCode"] == 200

    with ExitStack() as stack:
        start: Callable[..., Emulator] = lambda **more: stack.enter_context(  # noqa: E731
            emulating(start_process, **large.environment(), **more)
        )
        functions = [start(**_PAGED), start(**_PAGED), start(PAGED_ABOVE_MB="never")]
        run_together([partial(write, each, f"function-{place}") for place, each in enumerate(functions)])
    with closing(apsw.Connection(str(restored_and_checked(large, tmp_path, monkeypatch)))) as connection:
        claims.check_items(list(connection.execute("SELECT id, name FROM items WHERE name LIKE 'function-%'")))
    assert len(claims.acknowledged) == 90


def test_what_is_on_disk_is_bounded(function: Emulator) -> None:
    for number in range(1, ITEMS, 97):
        found(function.request("GET", f"/api/items/{number}"))
    [runtime] = [pid for pid in children(function.process.popen.pid) if "awslambdaric" in command_line(pid)]
    held = [os.readlink(link) for link in Path(f"/proc/{runtime}/fd").iterdir()]
    [cache] = {path for path in held if path.endswith("app.db.pages")}
    assert Path(cache).stat().st_size <= 1024 * 1024
    database = Path(cache.removesuffix(".pages")).stat()
    assert database.st_size > 3_000_000
    assert database.st_blocks * 512 < 100_000
