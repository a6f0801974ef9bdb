"""Operators with `sqlite3` on the database of a running server."""

import itertools
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import httpx2
import pytest

from infra.clock import Clock
from infra.commitlog import CommitLog, open_log
from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, items_in, run_together
from tests.e2e.processes import SHELL
from tests.infra.commitlog.conftest import litestream_restore

pytestmark = pytest.mark.e2e

StartServer = Callable[..., Server]

INSERT = (
    "INSERT INTO items (name, price_cents, quantity, created_at, updated_at, version) "
    "VALUES ('{name}', 0, 0, '2026-01-01T00:00:00.000000Z', '2026-01-01T00:00:00.000000Z', 1);"
)
WORKS = [
    "{insert}",
    "VACUUM;",
    "REINDEX;",
    "ANALYZE;",
    "CREATE INDEX IF NOT EXISTS idx_{name} ON items(quantity, name); DROP INDEX idx_{name};",
    "PRAGMA wal_checkpoint(TRUNCATE);",
    "{insert} PRAGMA wal_checkpoint(TRUNCATE); {insert}",
    "{insert} PRAGMA wal_checkpoint(RESTART); VACUUM; PRAGMA wal_checkpoint(TRUNCATE); {insert}",
    "BEGIN IMMEDIATE; {insert} COMMIT; PRAGMA wal_checkpoint(FULL);",
]
CHANGES_NOTHING = ["PRAGMA wal_checkpoint(TRUNCATE);"]
ROUNDS = 12


class Operator:
    """Somebody with the shell, and what they have inserted."""

    def __init__(self, database: Path) -> None:
        self.database = database
        self.inserted: list[str] = []

    def type(self, work: str) -> str:
        name = f"shell_{len(self.inserted)}"
        self.inserted += [name] * work.count("{insert}")
        script = ".timeout 5000\n" + work.format(insert=INSERT.format(name=name), name=name)
        done = subprocess.run([SHELL, str(self.database)], input=script, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), f"{work}: {done.stdout}{done.stderr}"
        return done.stdout

    def work(self, claims: Claims, stop: threading.Event) -> None:
        """Between two works at least one write is answered, however fast the shell is."""
        try:
            for number, work in enumerate(WORKS * ROUNDS):
                claims.wait_for(number)
                self.type(work)
        finally:
            stop.set()


def write_until(stop: threading.Event, url: httpx2.URL, prefix: str, claims: Claims) -> None:
    with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
        for number in itertools.count():
            if stop.is_set():
                return
            name = f"{prefix}-{number}"
            answer = client.post("/api/items", json={"name": name})
            claims.record(name, answer.status_code, answer.json())
            client.get("/api/items").raise_for_status()


def check_log_and_file_agree(data: Path, scratch: Path) -> None:
    log = open_log((data / "replica").as_uri(), Clock())
    log.restore(scratch / "ours.db")
    assert (scratch / "ours.db").read_bytes() == (data / "app.db").read_bytes()
    by_litestream = litestream_restore((data / "replica").as_uri(), scratch / "litestream.db")
    assert by_litestream.read_bytes() == (data / "app.db").read_bytes()


def test_shell_and_requests_write_at_the_same_time(start_server: StartServer, tmp_path: Path) -> None:
    data, claims, stop = tmp_path / "data", Claims(), threading.Event()
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    operator = Operator(data / "app.db")
    writers = [partial(write_until, stop, server.client.base_url, str(number), claims) for number in range(4)]
    run_together([*writers, partial(operator.work, claims, stop)])
    assert (claims.refused, claims.unknown) == (set(), set())
    server.process.end()
    assert not (data / "app.db-wal").exists()
    found = items_in(data / "app.db")
    assert [name for _, name in found if name.startswith("shell")] == operator.inserted
    assert {name: number for number, name in found if not name.startswith("shell")} == claims.acknowledged
    assert not list(data.glob("app.db.diverged-*"))
    check_log_and_file_agree(data, tmp_path)


@pytest.mark.parametrize("work", WORKS)
def test_work_of_the_shell_is_in_the_log_within_a_second(work: str, start_server: StartServer, tmp_path: Path) -> None:
    data = tmp_path / "data"
    server = start_server(MAINTENANCE_INTERVAL_SECONDS="0")
    server.client.post("/api/items", json={"name": "first"}).raise_for_status()
    log = open_log((data / "replica").as_uri(), Clock())
    operator = Operator(data / "app.db")
    before = head_of(log)
    shown = operator.type(work)
    if "TRUNCATE" in work or "RESTART" in work:
        assert not any(line.startswith("1|") for line in shown.splitlines()), shown  # busy
    done = time.monotonic()
    names = [(1, "first"), *((2 + index, name) for index, name in enumerate(operator.inserted))]
    while stored_items(log, tmp_path) != names or (head_of(log) == before and work not in CHANGES_NOTHING):
        assert time.monotonic() - done < 30
        time.sleep(0.05)
    print(f"{work}: in the log {time.monotonic() - done:.2f} s later")
    server.process.end()
    check_log_and_file_agree(data, tmp_path)


def head_of(log: CommitLog) -> int:
    return max(item.max_txid for item in log.objects.everything())


def stored_items(log: CommitLog, scratch: Path) -> list[tuple[int, str]]:
    path = scratch / "stored.db"
    path.unlink(missing_ok=True)
    log.restore(path)
    return items_in(path)
