"""What a commit costs, in Markdown: bytes and requests beside Litestream's, cold starts, commits a second.

`make bench-log`. Everything goes through a proxy that counts; the store is an S3 server of the end-to-end tests.
"""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import quantiles

import peewee
from pydantic_core import to_json

from core.idempotency import Answer, Attempt, once
from core.items import create_item, probe
from core.models import IdempotencyKey, Item
from core.schemas import NewItem
from infra.settings import Settings
from infra.sqlite.database import SqliteDatabase, open_sqlite
from tests.e2e.processes import starting_processes
from tests.e2e.proxy import Forward, Proxy, Reply, Request, delayed, pass_on, proxy_before
from tests.e2e.stores import S3, bucket_at, start_ministack

MEGABYTE = 1_000_000
SIZES = [1, 10, 100]  # MB
STATEMENTS, PER_SECOND = 50, 5
LENGTHS = [10, 100, 1000]  # commits
WRITERS = [1, 2, 4, 8]
GROUPS = [1, 8, 64, 256]
KEPT_KEYS, KEPT_HOURS = 10_000, 24
TOGETHER = {1: 50, 8: 20, 128: 5}  # writes a commit, and how many commits
PUT_SECONDS, GET_SECONDS = 0.025, 0.010
_DISTANCE = f"when a PUT takes {PUT_SECONDS * 1000:.0f} ms and a GET {GET_SECONDS * 1000:.0f} ms"
WRITING_SECONDS = float(os.environ.get("BENCH_SECONDS", "10"))


def main() -> None:
    if sys.argv[1:2] == ["writer"]:
        return write_for_a_while(Path(sys.argv[2]))
    with starting_processes() as start, tempfile.TemporaryDirectory() as directory:
        endpoint = start_ministack(start)
        reports = {
            "commits": report_commits,
            "starts": report_starts,
            "writers": report_writers,
            "groups": report_groups,
            "keys": report_keys,
        }
        for report in [reports[name] for name in sys.argv[1:] or reports]:
            with bucket_at(endpoint) as bucket, proxy_before(endpoint) as proxy:
                os.environ.update(bucket.environment(proxy.endpoint))
                report(bucket, proxy, Path(directory))


def open_at(path: Path, *, lasting: bool = True, **settings: str) -> SqliteDatabase:
    environment = {**os.environ, "DATABASE_PATH": str(path), "READ_FRESHNESS_SECONDS": "0", **settings}
    return open_sqlite(Settings.from_environment(environment), lasting=lasting)


def insert(number: int) -> Callable[[peewee.Database], object]:
    new = NewItem.model_validate({"name": f"item {number}", "price": "12.50"})
    return partial(create_item, new=new)


class Tally:
    """What passed the proxy since the last one."""

    def __init__(self, proxy: Proxy) -> None:
        requests, proxy.requests = proxy.requests, []
        self.requests = len(requests)
        self.puts = sum(request.method == "PUT" for request, _ in requests)
        self.sent = sum(len(request.body) for request, _ in requests)
        self.received = sum(len(reply.body) for _, reply in requests if reply)


# Bytes and requests


def report_commits(bucket: S3, proxy: Proxy, directory: Path) -> None:
    print(f"\n### One row inserted, {STATEMENTS} times, {PER_SECOND} a second\n")
    print("| data | commit log: bytes a row | requests a row | Litestream: bytes a row | requests a row |")
    print("|---|---|---|---|---|")
    for size in SIZES:
        seed = directory / f"{size}" / "app.db"
        fill(seed, size)
        ours, litestream = count_ours(bucket, proxy, seed), count_litestream(bucket, proxy, seed)
        cells = [f"{tally.sent / STATEMENTS:,.0f} | {tally.requests / STATEMENTS:.2f}" for tally in (ours, litestream)]
        print(f"| {size} MB | {cells[0]} | {cells[1]} |", flush=True)


def fill(path: Path, megabytes: int) -> None:
    database = open_at(path, REPLICA_URL=(path.parent / "replica").as_uri())

    def rows(db: peewee.Database) -> None:
        for first in range(0, megabytes * 1000, 1000):
            Item.insert_many(
                [
                    {
                        "name": f"row {number}",
                        "description": os.urandom(400).hex(),
                        "created_at": "2026-01-01T00:00:00.000000Z",
                        "updated_at": "2026-01-01T00:00:00.000000Z",
                    }
                    for number in range(first, first + 1000)
                ]
            ).execute(db)

    asyncio.run(database.write(rows))
    database.close()


def count_ours(bucket: S3, proxy: Proxy, seed: Path) -> Tally:
    path = seed.parent / "ours" / "app.db"
    path.parent.mkdir()
    shutil.copy(seed, path)
    database = open_at(path, REPLICA_URL=bucket.url(f"ours-{seed.parent.name}"))
    asyncio.run(database.write(insert(0)))  # the first one also proves that the store keeps create-if-absent
    Tally(proxy)
    for number in paced():
        asyncio.run(database.write(insert(number)))
    tally = Tally(proxy)
    database.close()
    return tally


def count_litestream(bucket: S3, proxy: Proxy, seed: Path) -> Tally:
    path = seed.parent / "litestream.db"
    shutil.copy(seed, path)
    database = peewee.SqliteDatabase(str(path), pragmas={"journal_mode": "wal", "wal_autocheckpoint": 0})
    prefix = f"litestream-{seed.parent.name}"
    url = f"{bucket.url(prefix)}?endpoint={proxy.endpoint}&region=us-east-1&forcePathStyle=true"
    command = [str(Path(sys.prefix) / "bin" / "litestream"), "replicate", str(path), url]
    # Its S3 client refuses to work with a CA bundle from the environment
    environment = {name: value for name, value in os.environ.items() if name != "AWS_CA_BUNDLE"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        insert(0)(database)
        # It sends the whole database several times before it sends only what changes
        wait_until(lambda: all(bucket.keys(f"{prefix}/{level}/") for level in ("0000", "0001", "0009")))
        Tally(proxy)
        for number in paced():
            insert(number)(database)
    finally:
        process.send_signal(signal.SIGINT)  # it sends what is left
        process.wait(60)
        database.close()
    return Tally(proxy)


def paced() -> Iterator[int]:
    started = time.monotonic()
    for number in range(1, STATEMENTS + 1):
        time.sleep(max(0.0, started + number / PER_SECOND - time.monotonic()))
        yield number


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


# Cold starts and reads


def report_starts(bucket: S3, proxy: Proxy, directory: Path) -> None:
    print("\n### Cold start and warm read, by the number of single commits since the last merged object\n")
    print("| commits | requests of a cold start | bytes | requests of a warm read | bytes |")
    print("|---|---|---|---|---|")
    writer = open_at(directory / "starts" / "app.db")
    for length in LENGTHS:
        while writer.txid < length:
            asyncio.run(writer.write(insert(writer.txid)))
        Tally(proxy)
        database = open_at(directory / f"cold-{length}" / "app.db", lasting=False)
        cold = Tally(proxy)
        asyncio.run(database.read(probe))
        warm = Tally(proxy)
        database.close()
        print(f"| {length:,} | {cold.requests:,} | {cold.received:,} | {warm.requests} | {warm.received} |", flush=True)
    writer.close()


# Many writers


def report_writers(bucket: S3, proxy: Proxy, directory: Path) -> None:
    print(f"\n### Commits a second {_DISTANCE}\n")
    print("| writer processes | commits a second | median | p99 | slowest |")
    print("|---|---|---|---|---|")
    for writers in WRITERS:
        os.environ["REPLICA_URL"] = bucket.url(f"writers-{writers}")
        proxy.rule = pass_on
        with started_writers(writers, directory / f"writers-{writers}") as processes:
            proxy.rule = at_a_distance
            for process in processes:
                assert process.stdin
                process.stdin.write("go\n")
                process.stdin.flush()
            found = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in processes]
        latencies = sorted(latency * 1000 for each in found for latency in each)
        points = quantiles(latencies, n=100, method="inclusive")
        rate = len(latencies) / WRITING_SECONDS
        row = f"| {writers} | {rate:.1f} | {points[49]:.0f} ms | {points[98]:.0f} ms | {latencies[-1]:.0f} ms |"
        print(row, flush=True)


# Requests that share commits


def report_groups(bucket: S3, proxy: Proxy, directory: Path) -> None:
    print(f"\n### Writes a second of one server {_DISTANCE}\n")
    print("| concurrent requests | writes a second | writes an object | bytes a write | median | slowest |")
    print("|---|---|---|---|---|---|")
    database = open_at(directory / "groups" / "app.db")
    asyncio.run(database.write(insert(0)))
    proxy.rule = at_a_distance
    for concurrent in GROUPS:
        Tally(proxy)
        latencies = sorted(asyncio.run(write_together(database, concurrent)))
        tally = Tally(proxy)
        cells = (
            f"{len(latencies) / WRITING_SECONDS:,.0f}",
            f"{len(latencies) / tally.puts:,.1f}",
            f"{tally.sent / len(latencies):,.0f}",
            f"{latencies[len(latencies) // 2] * 1000:.0f} ms",
            f"{latencies[-1] * 1000:.0f} ms",
        )
        print(f"| {concurrent} | {' | '.join(cells)} |", flush=True)
    database.close()


# Idempotency keys


def report_keys(bucket: S3, proxy: Proxy, directory: Path) -> None:
    print(f"\n### Bytes of a commit, {KEPT_KEYS:,} keys of the last {KEPT_HOURS} hours being kept\n")
    print("| writes a commit | without keys: bytes a write | with a key each | a key costs |")
    print("|---|---|---|---|")
    database = open_at(directory / "keys" / "app.db", REPLICA_URL=bucket.url("keys"))
    for _ in range(KEPT_HOURS):
        asyncio.run(database.write(an_hour_later))
        asyncio.run(database.write(an_hour_of_keys))
    for together, commits in TOGETHER.items():
        without, with_key = (bytes_a_write(database, proxy, make, together, commits) for make in (insert, insert_once))
        cells = (f"{without:,.0f}", f"{with_key:,.0f}", f"{with_key - without:,.0f}")
        print(f"| {together} | {' | '.join(cells)} |", flush=True)
    database.close()


def an_hour_later(db: peewee.Database) -> None:
    IdempotencyKey.update(hour=IdempotencyKey.hour - 1).execute(db)


def an_hour_of_keys(db: peewee.Database) -> None:
    for number in range(KEPT_KEYS // KEPT_HOURS):
        insert_once(number)(db)


def insert_once(number: int) -> Callable[[peewee.Database], object]:
    new = NewItem.model_validate({"name": f"item {number}", "price": "12.50"})
    attempt = Attempt("", str(uuid.uuid4()), os.urandom(32))

    def write(db: peewee.Database) -> Answer:
        item = create_item(db, new)
        headers = {"content-type": "application/json", "etag": '"1"', "location": f"/api/items/{item.id}"}
        return Answer(201, headers, to_json(item))

    return lambda db: once(db, attempt, write, KEPT_HOURS + 1)


def bytes_a_write(
    database: SqliteDatabase,
    proxy: Proxy,
    make: Callable[[int], Callable[[peewee.Database], object]],
    together: int,
    commits: int,
) -> float:
    async def write() -> None:
        for commit in range(commits):
            await asyncio.gather(*(database.write(make(commit * together + n)) for n in range(together)))

    Tally(proxy)
    asyncio.run(write())
    return Tally(proxy).sent / (together * commits)


async def write_together(database: SqliteDatabase, concurrent: int) -> list[float]:
    """The seconds that each write took, each of so many writers writing one after the other."""
    found: list[float] = []
    end = time.monotonic() + WRITING_SECONDS

    async def write() -> None:
        while (started := time.monotonic()) < end:
            await database.write(insert(len(found)))
            found.append(time.monotonic() - started)

    await asyncio.gather(*(write() for _ in range(concurrent)))
    return found


def at_a_distance(request: Request, forward: Forward) -> Reply | None:
    seconds = {"PUT": PUT_SECONDS, "GET": GET_SECONDS}.get(request.method)
    return (delayed(seconds) if seconds else pass_on)(request, forward)


@contextmanager
def started_writers(number: int, directory: Path) -> Iterator[list["subprocess.Popen[str]"]]:
    processes = []
    for n in range(number):
        command = [sys.executable, "-m", "benchmarks.commit_log", "writer", str(directory / str(n) / "app.db")]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def write_for_a_while(path: Path) -> None:
    """One writer process: the seconds that each of its commits took."""
    database = open_at(path, lasting=False, COMMIT_TIMEOUT_SECONDS="60")

    async def write() -> list[float]:
        found: list[float] = []
        end = time.monotonic() + WRITING_SECONDS
        while (started := time.monotonic()) < end:
            await database.write(insert(len(found)))
            found.append(time.monotonic() - started)
        return found

    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asyncio.run(write())))
    database.close()


if __name__ == "__main__":
    main()
