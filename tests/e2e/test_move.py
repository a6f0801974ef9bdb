"""`python -m infra move` beside servers that never stop being written to: there, back, and there again, as the runbook
types it; and killed wherever that may be.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psycopg
import pytest

from infra.__main__ import main
from infra.clock import Clock
from infra.commitlog import open_log
from tests.e2e.conftest import Server
from tests.e2e.evidence import Claims, items_in
from tests.e2e.pages import blocks
from tests.e2e.processes import ROOT, Process, StartProcess, until
from tests.postgresql import Cluster

pytestmark = pytest.mark.e2e

WRITERS = 4
ENOUGH = 40  # writes of a phase
MANY = 300_000
FEW = 3000
MOST_MORE = 32 * 1024  # KiB: a few batches of rows, the caches of SQLite, and objects of the log as they are read
BLOCKS = {block.name: block.script for block in blocks("RUNBOOK.md")}

Start = Callable[..., Server]


class Load:
    """Writers that go on, whatever they are answered, through whichever servers there are."""

    def __init__(self, urls: list[httpx2.URL]) -> None:
        self.urls = urls
        self.claims = Claims()
        self.seen: Counter[str] = Counter()  # what refusals have said
        self.last: dict[str, set[int]] = {}  # by item: quantities that it may have
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]

    @contextmanager
    def running(self) -> Iterator["Load"]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._done.set()
            for thread in self._threads:
                thread.join()

    def more(self, writes: int = ENOUGH) -> None:
        """Wait until there are more acknowledged ones."""
        enough = len(self.claims.acknowledged) + writes
        until(lambda: len(self.claims.acknowledged) >= enough, 120)

    def _write(self, writer: int) -> None:
        with httpx2.Client(timeout=30, trust_env=False) as client:
            for number in count():
                if self._done.is_set():
                    return
                url = self.urls[number % len(self.urls)]
                name = f"{writer}-{number}"
                try:
                    answer = client.post(f"{url}/api/items", json={"name": name})
                except httpx2.HTTPError:
                    self.claims.record(name, 0, {})
                    continue
                body = answer.json()
                self.claims.record(name, answer.status_code, body)
                if answer.status_code != 201:
                    self.seen[body["code"]] += 1
                    time.sleep(0.02)
                elif number % 3 == 0:
                    self._change(client, url, name, answer.headers["location"], number)

    def _change(self, client: httpx2.Client, url: httpx2.URL, name: str, location: str, number: int) -> None:
        try:
            answer = client.patch(f"{url}{location}", json={"quantity": number})
        except httpx2.HTTPError:
            self.last[name] = {0, number}
            return
        refused = answer.status_code != 200 and answer.json().get("stored") == "no"
        self.last[name] = {0} if refused else {number} if answer.status_code == 200 else {0, number}

    def check(self, found: list[tuple[int, str, int]]) -> None:
        """Of all items, by id."""
        self.claims.check_items([(number, name) for number, name, _ in found])
        quantities = {name: quantity for _, name, quantity in found}
        assert [name for name, may_be in self.last.items() if quantities.get(name) not in may_be] == []
        ids = list(self.claims.acknowledged.values())
        assert len(set(ids)) == len(ids)


def rows(url: str, query: str = "SELECT id, name, quantity FROM items ORDER BY id") -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as db:
        return db.execute(query).fetchall()


def state_of(log: str, path: Path, environment: dict[str, str]) -> list[tuple[int, str, int]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        open_log(log, Clock()).restore(path)
    assert items_in(path)  # and it is sound
    import sqlite3

    with sqlite3.connect(path) as db:
        return db.execute("SELECT id, name, quantity FROM items ORDER BY id").fetchall()


def without_password(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return url.replace(f":{parts.password}@", "@"), str(parts.password)


def types(block: str, database: str, environment: dict[str, str]) -> str:
    """What the runbook says, on this machine instead of in a container."""
    url, password = without_password(database)
    script = re.sub(r"docker exec (-e \S+ )*cloud-native-poc python", sys.executable, BLOCKS[block])
    script = re.sub(r"postgresql://app@db\.example\.com/items", url, script)
    script = "\n".join(line for line in script.splitlines() if "infra move" in line)
    done = subprocess.run(
        ["bash", "-ec", script],
        cwd=ROOT,
        env=os.environ | environment | {"PGPASSWORD": password},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    assert password not in done.stdout + done.stderr
    return done.stdout


def log_in(directory: Path, request: pytest.FixtureRequest, store: str) -> dict[str, str]:
    if store == "ministack":
        return dict(request.getfixturevalue("bucket").environment())
    return {"REPLICA_URL": (directory / "log").as_uri()}


@pytest.mark.parametrize("store", ["directory", "ministack"])
def test_no_acknowledged_write_is_lost_on_the_way_there_and_back_and_there_again(
    store: str, request: pytest.FixtureRequest, start_server: Start, postgresql: Cluster, tmp_path: Path
) -> None:
    log = log_in(tmp_path, request, store) | {"MAINTENANCE_INTERVAL_SECONDS": "0"}
    new = log | {"REPLICA_URL": log["REPLICA_URL"] + "-new"}
    on_database = {"REPLICA_URL": "", "BACKUP_URL": "", "MAINTENANCE_INTERVAL_SECONDS": "0"}
    bases = [postgresql.url(postgresql.create_database()) for _ in range(2)]

    def started(name: str, **environment: str) -> list[Server]:
        return [
            start_server(DATABASE_PATH=str(tmp_path / f"{name}{number}" / "app.db"), **environment) for number in "ab"
        ]

    def switched(load: Load, servers: list[Server]) -> None:
        load.urls[:] = [server.client.base_url for server in servers]
        load.more()

    with Load([server.client.base_url for server in started("log", **log)]).running() as load:
        load.more()
        printed = types("Move to PostgreSQL", bases[0], log)
        assert re.search(r"nobody could write for [0-9.]+ s", printed)
        switched(load, started("there", DATABASE_URL=bases[0], **on_database))
        assert load.seen["writes_stopped"]
        load.seen.clear()
        types("Move back to a log", bases[0], new)
        switched(load, started("back", **new))
        assert load.seen["writes_stopped"]
        load.seen.clear()
        types("Move to PostgreSQL", bases[1], new)
        switched(load, started("again", DATABASE_URL=bases[1], **on_database))
        assert load.seen["writes_stopped"]
    load.check(rows(bases[1]))
    # Whatever the other sides have is a state that everything was in
    last = {name for _, name, _ in rows(bases[1])}
    for number, (url, environment) in enumerate([(log["REPLICA_URL"], log), (new["REPLICA_URL"], new)]):
        assert {name for _, name, _ in state_of(url, tmp_path / f"state{number}.db", environment)} <= last


def moving(start_process: StartProcess, url: str, log: dict[str, str], *arguments: str) -> Process:
    return start_process(sys.executable, "-m", "infra", "move", *arguments, url, **log)


STEPS = [
    "private copy",
    "check: ",
    "is being copied",
    "copy: ",
    "compare: ",
    "are copied",
    "writes are stopped",
]


def test_one_that_is_killed_anywhere_has_lost_nothing_and_is_run_again(
    start_server: Start, start_process: StartProcess, postgresql: Cluster, tmp_path: Path
) -> None:
    log = {"REPLICA_URL": (tmp_path / "log").as_uri(), "MAINTENANCE_INTERVAL_SECONDS": "0"}
    url = postgresql.url(postgresql.create_database())
    servers = [start_server(DATABASE_PATH=str(tmp_path / name / "app.db"), **log) for name in "ab"]
    with Load([server.client.base_url for server in servers]).running() as load:
        load.more()
        for step in STEPS:
            process = moving(start_process, url, log)
            process.wait_for(step)
            process.end(signal.SIGKILL)
        refused = start_process(sys.executable, "-m", "handler", DATABASE_URL=url, REPLICA_URL="", BACKUP_URL="")
        assert refused.popen.wait(60) == 2
        assert "A move into this database has not come to its end" in "\n".join(refused.lines)
        cancelled = moving(start_process, url, log, "--cancel")
        assert cancelled.popen.wait(60) == 0, cancelled.lines
        assert rows(url, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
        load.more()  # nobody waits until the stop would have ended by itself
        again = moving(start_process, url, log)
        assert again.popen.wait(60) == 0, again.lines
    load.check(rows(url))


def test_database_that_is_killed_on_the_way_has_changed_nothing(
    start_server: Start,
    start_process: StartProcess,
    postgresql: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = {"REPLICA_URL": (tmp_path / "log").as_uri(), "MAINTENANCE_INTERVAL_SECONDS": "0"}
    url = postgresql.url(postgresql.create_database())
    server = start_server(DATABASE_PATH=str(tmp_path / "a" / "app.db"), **log)
    for name, value in log.items():
        monkeypatch.setenv(name, value)
    fill(50_000)
    with Load([server.client.base_url]).running() as load:
        for step in ("is being copied", "writes are stopped"):
            process = moving(start_process, url, log)
            process.wait_for(step)
            postgresql.kill()
            assert process.popen.wait(60) == 1
            assert "Run it again" in "\n".join(process.lines)
            load.more()
            postgresql.start()
        again = moving(start_process, url, log)
        assert again.popen.wait(60) == 0, again.lines
    load.check([row for row in rows(url) if not row[1].startswith("filler")])


def fill(number: int) -> None:
    """So many items, through the log at REPLICA_URL."""
    numbers = f"WITH RECURSIVE r (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < {number}) "
    values = "SELECT 'filler ' || n, 'some text of ' || n, n, '2026-01-01T00:00:00.000000Z', '2026-01-01' FROM r"
    columns = "(name, description, price_cents, created_at, updated_at)"
    assert main(["sql", f"INSERT INTO items {columns} {numbers}{values}"]) == 0


def test_memory_does_not_grow_with_the_table(
    start_server: Start, postgresql: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "log").as_uri())
    monkeypatch.setenv("MAINTENANCE_INTERVAL_SECONDS", "0")
    start_server(DATABASE_PATH=str(tmp_path / "a" / "app.db"))
    fill(FEW)
    few = most_memory(postgresql.url(postgresql.create_database()))
    monkeypatch.setenv("REPLICA_URL", (tmp_path / "larger").as_uri())
    start_server(DATABASE_PATH=str(tmp_path / "b" / "app.db"))
    fill(MANY)
    url = postgresql.url(postgresql.create_database())
    many = most_memory(url)
    assert rows(url, "SELECT count(*) FROM items") == [(MANY,)]
    assert many - few < MOST_MORE, (few, many)


def most_memory(url: str) -> int:
    """That a move has ever had, in KiB."""
    script = (
        f"import sys; from infra.__main__ import main; code = main(['move', {url!r}]); "
        "print(open('/proc/self/status').read().partition('VmHWM:')[2].split()[0]); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])
