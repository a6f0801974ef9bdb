"""Whether reads stay quick while the service is busy, in Markdown: a GET beside 64 writers, and beside maintenance.

`make bench-calm`. A real server with its log in a directory; one connection that asks for an item every 5 ms, and wrk
that writes. `--megabytes` is the size of the database. It needs wrk.
"""

import argparse
import asyncio
import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles

import peewee

from core.items import create_item
from core.models import Item
from core.schemas import NewItem
from infra.settings import Settings
from infra.sqlite.database import open_sqlite

WRITERS = 64
EVERY_SECONDS = 0.005
ALONE_SECONDS, WRITING_SECONDS = 8, 8
SINGLE_COMMITS = 2048  # to merge
_WRITE = """
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
wrk.body = '{"name": "item", "price": "12.50", "quantity": 3}'
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calm", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=50, help="the size of the database; 50 unless given")
    parser.add_argument("--rounds", type=int, default=3, help="3 unless given")
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {}
    peaks: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        fill(place / "filled", options.megabytes)
        for number in range(options.rounds):
            here = place / f"round-{number}"
            shutil.copytree(place / "filled", here)
            for phase, latencies in measure(here, peaks).items():
                found.setdefault(phase, []).append(latencies)
            shutil.rmtree(here)
    print(f"\n### A GET every {EVERY_SECONDS * 1000:.0f} ms, database of {options.megabytes:,} MB\n")
    print("| while | GETs | p50 | p99 | slowest | p99 ÷ alone |")
    print("|---|---|---|---|---|---|")
    alone = median(map(p99, found["alone"]))
    for phase, rounds in found.items():
        middle, most = median(map(median, rounds)), median(map(p99, rounds))
        slowest = max(map(max, rounds))
        print(
            f"| {phase} | {sum(map(len, rounds)):,} | {middle * 1000:.1f} ms | {most * 1000:.1f} ms | "
            f"{slowest * 1000:.0f} ms | {most / alone:.1f} |"
        )
    for name in peaks[0]:
        print(f"{name}: {median(peak[name] for peak in peaks):.0f} MB")


def p99(latencies: list[float]) -> float:
    return quantiles(latencies, n=100)[98]


def fill(directory: Path, megabytes: int) -> None:
    """A database of that size with a log beside it, which nobody has merged yet."""
    environment = {"DATABASE_PATH": str(directory / "app.db"), "SLOW_STATEMENT_MS": "0"}
    database = open_sqlite(Settings.from_environment(environment))

    def rows(db: peewee.Database) -> None:
        for _ in range(20):
            Item.insert_many(
                [
                    {
                        "name": f"row {number}",
                        "description": os.urandom(400).hex(),
                        "created_at": "2026-01-01T00:00:00.000000Z",
                        "updated_at": "2026-01-01T00:00:00.000000Z",
                    }
                    for number in range(500)
                ]
            ).execute(db)

    async def write() -> None:
        while (directory / "app.db").stat().st_size < megabytes * 1_000_000:
            await database.write(rows)
        for _ in range(SINGLE_COMMITS):
            await database.write(lambda db: create_item(db, NewItem.model_validate({"name": "item"})))

    asyncio.run(write())
    database.close()


@dataclass
class Probe:
    """Asks for an item, again and again: when each answer came (seconds since 1970), and how long it took."""

    port: int
    asked: list[tuple[float, float]] = field(default_factory=list)

    def ask_while(self, condition: Callable[[], object]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        due, look = time.monotonic(), 0.0
        while time.monotonic() < look or condition():
            if time.monotonic() >= look:
                look = time.monotonic() + 0.1
            due = max(due + EVERY_SECONDS, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            started = time.perf_counter()
            connection.request("GET", "/api/items/1")
            answer = connection.getresponse()
            answer.read()
            took = time.perf_counter() - started
            if answer.status != 200:
                raise SystemExit(f"GET was answered {answer.status}")
            self.asked.append((time.time(), took))
        connection.close()

    def ask_for(self, seconds: float) -> list[float]:
        """How long each took."""
        end, first = time.monotonic() + seconds, len(self.asked)
        self.ask_while(lambda: time.monotonic() < end)
        return [took for _, took in self.asked[first:]]

    def between(self, start: float, end: float) -> list[float]:
        return [took for at, took in self.asked if start <= at < end]


def measure(directory: Path, peaks: list[dict[str, float]]) -> dict[str, list[float]]:
    """How long GETs took, by what went on meanwhile."""
    log = directory / "log"
    with serving(directory, log) as (port, pid):
        probe, begun = Probe(port), time.time()
        probe.ask_while(lambda: not re.search("maintenance (done|failed)", log.read_text()))
        ends = ends_of_phases(directory)
        found = {
            "compaction": probe.between(begun, ends[0]),
            "snapshot": probe.between(ends[0], ends[1]),
            "backup and proof": probe.between(ends[1], time.time()),
        }
        peak = {"server's peak after maintenance": peak_of(pid)}
        time.sleep(1)
        found = {"alone": probe.ask_for(ALONE_SECONDS), **found}
        with writing(port, directory):
            found[f"{WRITERS} writers"] = probe.ask_for(WRITING_SECONDS)
        peaks.append({**peak, "and after the writers": peak_of(pid)})
    return found


def ends_of_phases(directory: Path) -> tuple[float, float]:
    """When the last run was merged, and when the snapshot was there."""
    made = list((directory / "replica" / "ltx").glob("[1-9]/*.ltx"))
    changed = {path: path.stat().st_ctime for path in made}
    return (
        max(changed[path] for path in made if path.parent.name != "9"),
        max(changed[path] for path in made if path.parent.name == "9"),
    )


@contextmanager
def serving(directory: Path, log: Path) -> Iterator[tuple[int, int]]:
    """A server that begins with maintenance: its port and its process."""
    environment = {**os.environ, "DATABASE_PATH": str(directory / "app.db"), "PORT": "0", "AUTH_MODE": "none"}
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "handler"], env=environment, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        while not (found := re.search(r"running on http://[0-9.]+:(\d+)", log.read_text())):
            if server.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.01)
        yield int(found[1]), server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


@contextmanager
def writing(port: int, directory: Path) -> Iterator[None]:
    script = directory / "write.lua"
    script.write_text(_WRITE)
    with (directory / "wrk").open("wb") as out:
        wrk = subprocess.Popen(
            [
                "wrk",
                "-t1",
                f"-c{WRITERS}",
                f"-d{WRITING_SECONDS + 2}s",
                "-s",
                script,
                f"http://127.0.0.1:{port}/api/items",
            ],
            stdout=out,
        )
    time.sleep(1)
    yield
    wrk.wait(60)
    if "Non-2xx" in (said := (directory / "wrk").read_text()):
        raise SystemExit(said)


def peak_of(pid: int) -> float:
    """Megabytes of memory at most, so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
