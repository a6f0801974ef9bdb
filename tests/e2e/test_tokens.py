"""What a caller has been shown by one server, it is shown by the other: X-Commit-Txid handed on, over HTTP."""

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from tests.e2e.conftest import Server

pytestmark = pytest.mark.e2e

HEADER = "X-Commit-Txid"
WRITES = 300


@pytest.mark.parametrize("store", ["directory", "ministack"])
def test_reader_that_goes_from_one_server_to_the_other_never_sees_less(
    store: str, request: pytest.FixtureRequest, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    environment = {"REPLICA_URL": (tmp_path / "log").as_uri(), "MAINTENANCE_INTERVAL_SECONDS": "0"}
    if store == "ministack":
        bucket = request.getfixturevalue("bucket")
        environment |= bucket.environment()
    a, b = (start_server(DATABASE_PATH=str(tmp_path / name / "app.db"), **environment) for name in "ab")
    item = a.client.post("/api/items", json={"name": "x"}).headers["location"]
    done = threading.Event()

    def write() -> None:
        try:
            for value in range(1, WRITES + 1):
                a.client.patch(item, json={"quantity": value}).raise_for_status()
        finally:
            done.set()

    def read() -> list[tuple[int, int]]:
        pairs: list[tuple[int, int]] = []
        with httpx2.Client(timeout=30, trust_env=False) as client:
            while not done.is_set() or not pairs:
                first = client.get(f"{a.client.base_url}{item}").raise_for_status()
                seen = {HEADER: first.headers[HEADER]}
                second = client.get(f"{b.client.base_url}{item}", headers=seen).raise_for_status()
                pairs.append((first.json()["quantity"], second.json()["quantity"]))
        return pairs

    with ThreadPoolExecutor(4) as pool:
        readers = [pool.submit(read) for _ in range(3)]
        pool.submit(write).result()
        pairs = list(itertools.chain.from_iterable(reader.result() for reader in readers))
    assert len(pairs) > WRITES / 10
    assert [(first, second) for first, second in pairs if second < first] == []
