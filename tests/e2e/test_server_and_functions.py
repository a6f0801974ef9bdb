"""A server and functions of Lambda on one log, at the same time."""

import itertools
import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import Server
from tests.e2e.emulator import Emulator, emulating
from tests.e2e.evidence import Claims, restored_and_checked, run_together, write_items
from tests.e2e.processes import StartProcess
from tests.e2e.stores import S3

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]
FUNCTIONS, WRITES = 3, 40
TXID = "x-commit-txid"


@pytest.fixture
def functions(start_process: StartProcess, bucket: S3) -> Iterator[list[Emulator]]:
    with ExitStack() as stack:
        yield [stack.enter_context(emulating(start_process, **bucket.environment())) for _ in range(FUNCTIONS)]


@pytest.fixture
def start(start_server: StartServer, bucket: S3) -> Callable[[], Server]:
    return lambda: start_server(**bucket.environment(), MAINTENANCE_INTERVAL_SECONDS="0")


def write_by_function(function: Emulator, prefix: str, claims: Claims) -> None:
    for number in range(WRITES):
        name = f"{prefix}-{number}"
        answer = function.request("POST", "/api/items", json.dumps({"name": name}))
        claims.record(name, answer["statusCode"], json.loads(answer["body"]))


def test_all_of_them_write_and_nothing_is_lost(
    functions: list[Emulator],
    start: Callable[[], Server],
    bucket: S3,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    claims, numbers = Claims(), itertools.count()
    server = start()
    url = server.client.base_url
    writers = [partial(write_by_function, function, f"function-{next(numbers)}", claims) for function in functions]
    writers += [partial(write_items, url, f"server-{number}", claims, WRITES) for number in range(4)]

    def kill_the_server() -> None:
        claims.wait_for(WRITES)
        server.process.end(signal.SIGKILL)
        write_items(start().client.base_url, "again", claims, WRITES)

    run_together([*writers, kill_the_server])
    assert claims.refused == set()
    assert len(claims.acknowledged) >= (FUNCTIONS + 1) * WRITES
    claims.check(restored_and_checked(bucket, tmp_path, monkeypatch))


def test_each_reads_at_once_what_the_other_wrote(functions: list[Emulator], start: Callable[[], Server]) -> None:
    server = start()
    created = server.client.post("/api/items", json={"name": "by the server"}).raise_for_status()
    answer = functions[0].request("GET", created.headers["location"])
    assert json.loads(answer["body"]) == created.json()
    written = functions[0].request("PUT", created.headers["location"], '{"name": "by the function"}')
    seen = {TXID: written["headers"][TXID]}
    assert server.client.get(created.headers["location"], headers=seen).json()["name"] == "by the function"
