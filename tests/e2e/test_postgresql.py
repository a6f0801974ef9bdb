"""The service on PostgreSQL as processes: many at once, and a server that is killed, frozen or wrong."""

import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx2
import psycopg
import pytest

from tests.conftest import assert_problem
from tests.e2e.conftest import Server
from tests.e2e.evidence import run_together
from tests.e2e.processes import StartProcess, until
from tests.postgresql import USER, Cluster

pytestmark = pytest.mark.e2e

PROCESSES = 8
LIVES = 4

# What one of many processes does with the database class itself, so that use cases are of any shape
_WORK = """
import asyncio, random, sys
from functools import partial
from infra.database import open_database
from infra.settings import Settings
from infra.telemetry.metrics import Metrics

metrics = Metrics()
database = open_database(Settings.from_environment(), lasting=False, metrics=metrics)

def add_one(db, item):
    [(quantity,)] = db.execute_sql("SELECT quantity FROM items WHERE id = %s", (item,)).fetchall()
    db.execute_sql("UPDATE items SET quantity = %s WHERE id = %s", (quantity + 1, item))

def leave(db, item, other):
    [(on_duty,)] = db.execute_sql("SELECT sum(quantity) FROM items WHERE id IN (%s, %s)", (item, other)).fetchall()
    db.execute_sql("UPDATE items SET quantity = %s WHERE id = %s", (0 if on_duty > 1 else 1, item))

async def main(kind, times):
    for _ in range(times):
        if kind == "lost":
            uses = [partial(add_one, item=random.randrange(1, 4)) for _ in range(2)]
        else:
            pair = random.sample((1, 2), 2)
            uses = [partial(leave, item=pair[0], other=pair[1])]
        await asyncio.gather(*map(database.write, uses))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
database.close()
print("repeated", metrics._retries.value)
"""


def work(start: StartProcess, url: str, kind: str, times: int) -> float:
    """By many processes at once; how often they ran something again."""
    environment = {"DATABASE_URL": url, "DATABASE_CONNECTIONS": "2", "COMMIT_TIMEOUT_SECONDS": "60"}
    running = [start(sys.executable, "-c", _WORK, kind, str(times), **environment) for _ in range(PROCESSES)]
    repeated = 0.0
    for process in running:
        repeated += float(process.wait_for(r"repeated ([0-9.]+)", 300)[1])
        assert process.popen.wait(60) == 0
        process.end()
    return repeated


def rows(url: str, sql: str) -> list[tuple[int, ...]]:
    with psycopg.connect(url) as db:
        return db.execute(sql).fetchall()


def with_items(url: str, number: int, quantity: int) -> None:
    with psycopg.connect(url) as db:
        for _ in range(number):
            db.execute(
                "INSERT INTO items (name, quantity, created_at, updated_at) VALUES ('x', %s, '', '')", (quantity,)
            )


def test_no_update_is_lost_by_many_processes(start_process: StartProcess, migrated_url: str) -> None:
    with_items(migrated_url, 3, 0)
    repeated = work(start_process, migrated_url, "lost", 25)
    assert rows(migrated_url, "SELECT sum(quantity)::int FROM items") == [(PROCESSES * 25 * 2,)]
    assert repeated > 0


def test_no_write_skew_by_many_processes(start_process: StartProcess, migrated_url: str) -> None:
    """At no time do both leave: a trigger on the rows would not see it, each transaction alone is right."""
    with_items(migrated_url, 2, 1)
    found: set[int] = set()
    over = threading.Event()

    def look() -> None:
        with psycopg.connect(migrated_url, autocommit=True) as db:
            while not over.is_set():
                found.add(db.execute("SELECT sum(quantity)::int FROM items").fetchall()[0][0])

    looking = threading.Thread(target=look)
    looking.start()
    repeated = work(start_process, migrated_url, "skew", 40)
    over.set()
    looking.join()
    assert found <= {1, 2}
    assert repeated > 0


# The server is killed


class Sent:
    """What was sent, each under a key of its own, and what is known of it."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, int] = {}  # by name: the id
        self.unknown: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.over = threading.Event()

    def write(self, url: httpx2.URL, prefix: str) -> None:
        with httpx2.Client(base_url=url, timeout=30, trust_env=False) as client:
            for number in itertools.count():
                name = f"{prefix}-{number}"
                while not (self._is_settled(client, name) or self.over.is_set()):
                    time.sleep(0.05)
                if self.over.is_set():
                    return

    def _is_settled(self, client: httpx2.Client, name: str) -> bool:
        """Send it, again if need be: whatever became of the first, it is done once."""
        answer = client.post("/api/items", json={"name": name}, headers={"Idempotency-Key": name})
        if answer.status_code == 201:
            self.acknowledged[name] = answer.json()["id"]
            self.unknown.discard(name)
            return True
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"] == "1"
        body = answer.json()
        self.kinds[f"{body['code']} {body['stored']}"] += 1
        if body["stored"] == "unknown":
            self.unknown.add(name)
        return False


def test_nothing_acknowledged_is_lost_or_done_twice_when_postgresql_is_killed_under_load(
    start_server: Callable[..., Server], postgresql: Cluster, migrated_url: str
) -> None:
    server = start_server(DATABASE_URL=migrated_url, COMMIT_TIMEOUT_SECONDS="2")
    sent = Sent()

    def kill_and_start() -> None:
        chance = random.Random(1)
        for life in range(LIVES):
            at_least = len(sent.acknowledged) + chance.randrange(30, 120)
            until(lambda at_least=at_least: len(sent.acknowledged) >= at_least, 120)  # type: ignore[misc]
            postgresql.kill()
            if life % 2:
                until(lambda: sent.kinds["database_unavailable no"] > 0)
            postgresql.start()
        at_least = len(sent.acknowledged) + 50
        until(lambda: len(sent.acknowledged) >= at_least, 120)
        sent.over.set()

    writers = [partial(sent.write, server.client.base_url, f"w{number}") for number in range(8)]
    try:
        run_together([*writers, kill_and_start])
    finally:
        sent.over.set()
    found = rows(migrated_url, "SELECT name, id FROM items")
    ids = {str(name): item_id for name, item_id in found}
    assert len(found) == len(ids)  # none twice
    assert {name: ids.get(name) for name in sent.acknowledged} == sent.acknowledged
    assert len(set(ids) - set(sent.acknowledged)) <= len(writers)  # each writer's last, which it has not settled
    assert sent.kinds


def test_server_that_is_killed_leaves_postgresql_nothing_half_done(
    start_server: Callable[..., Server], migrated_url: str
) -> None:
    sent = Sent()
    for life in range(LIVES):
        server = start_server(DATABASE_URL=migrated_url)
        at_least = len(sent.acknowledged) + 40

        def kill(server: Server = server, at_least: int = at_least) -> None:
            until(lambda: len(sent.acknowledged) >= at_least, 60)
            server.process.end(signal.SIGKILL)

        def write(server: Server = server, prefix: str = f"life{life}") -> None:
            with pytest.raises(httpx2.TransportError):
                sent.write(server.client.base_url, prefix)

        run_together([write, kill])
    ids = {str(name): item_id for name, item_id in rows(migrated_url, "SELECT name, id FROM items")}
    assert {name: ids.get(name) for name in sent.acknowledged} == sent.acknowledged


def test_server_stops_in_time_while_postgresql_is_frozen(
    start_server: Callable[..., Server], postgresql: Cluster, migrated_url: str
) -> None:
    server = start_server(DATABASE_URL=migrated_url)
    server.client.post("/api/items", json={"name": "x"}).raise_for_status()
    with postgresql.silent():
        asking = threading.Thread(target=partial(_ask, server.client))
        asking.start()
        until(lambda: "http_requests_in_flight 2" in server.client.get("/metrics").text)
        code = server.process.end(signal.SIGTERM)
        asking.join()
    assert code in (0, 1)  # 1: it was not waited for


def _ask(client: httpx2.Client) -> None:
    with suppress(httpx2.TransportError):
        client.get("/api/items")


@pytest.fixture
def small_disk(postgresql: Cluster) -> Iterator[Path]:
    """PostgreSQL's, for one database."""
    path = postgresql.directory / "small"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", path], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    owner = postgresql.directory.stat()
    os.chown(path, owner.st_uid, owner.st_gid)
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_full_disk_of_postgresql_is_a_507_until_there_is_room(
    start_server: Callable[..., Server], postgresql: Cluster, migrated_url: str, small_disk: Path
) -> None:
    template = migrated_url.rpartition("/")[2]
    with postgresql.superuser() as db:
        db.execute(f"CREATE TABLESPACE small LOCATION '{small_disk}'")
        db.execute(f"CREATE DATABASE small OWNER {USER} TEMPLATE {template} TABLESPACE small")
    try:
        server = start_server(DATABASE_URL=postgresql.url("small"))
        item = {"name": "x", "description": "y" * 1000}
        acknowledged = 0
        while (answer := server.client.post("/api/items/batch", json={"items": [item] * 400})).status_code == 201:
            acknowledged += 400
        assert assert_problem(answer, 507)["code"] == "database_full"
        assert server.client.get("/api/items", params={"limit": 1}).status_code == 200
        subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
        server.client.post("/api/items", json=item).raise_for_status()
        server.process.end()
        assert rows(postgresql.url("small"), "SELECT count(*) FROM items") == [(acknowledged + 1,)]
    finally:
        postgresql.drop_database("small")
        with postgresql.superuser() as db:
            db.execute("DROP TABLESPACE small")


def test_wrong_password_ends_the_process_with_2_and_is_in_no_line(
    start_process: StartProcess, postgresql: Cluster, migrated_url: str
) -> None:
    name = migrated_url.rpartition("/")[2]
    url = postgresql.url(name, password="a-wrong-secret")
    process = start_process(sys.executable, "-m", "handler", DATABASE_URL=url)
    assert process.popen.wait(60) == 2
    process.end()
    assert "password authentication failed" in process.lines[-1]
    assert "secret" not in "\n".join(process.lines)
