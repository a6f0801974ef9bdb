"""What the service does over HTTP, beside what people would pick instead: docs/performance.md.

`make bench`; with --quick some of it, which is only printed. All have the same routes, rows and durability; rounds are
interleaved, so that whatever else the machine does comes to all alike, and medians count.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.commit_log import at_a_distance
from benchmarks.performance import CREATE, LIST, PAGE, READ, Loads, Measured, rates, times, write_pages
from benchmarks.servers import ITEMS, PEERS, ROOT, Load, Server, all_servers, command
from tests.e2e.processes import starting_processes
from tests.e2e.proxy import proxy_before
from tests.e2e.stores import bucket_at, start_ministack

STARTS = 3


@dataclass(frozen=True)
class Row:
    """One kind of load, of those that load.lua knows. CURSOR in `path` is the one of page 10,000."""

    name: str
    kind: str
    clients: int
    path: str = "/"
    with_bare: bool = False


ROWS = [
    Row("GET /health, 16 clients", "get", 16, "/health", with_bare=True),
    Row("GET an item, 1 client", "find", 1, with_bare=True),
    Row(READ, "find", 16, with_bare=True),
    Row(LIST, "get", 16, "/api/items", with_bare=True),
    Row("list of 1, page 1, 16 clients", "get", 16, "/api/items?limit=1"),
    Row("list of 1, page 10,000, 16 clients", "get", 16, "/api/items?limit=1&cursor=CURSOR"),
    Row("search of a text that 11 names have, 16 clients", "get", 16, "/api/items?q=m%20777"),
    Row("POST, 1 client", "post", 1),
    Row("POST, 16 clients", "post", 16),
    Row(CREATE, "post", 64),
    Row("PUT with keys, 16 clients", "put", 16),
    Row("PATCH with keys, 16 clients", "patch", 16),
    Row("POST, then DELETE, with keys, 16 clients", "remove", 16),
    Row("batch of 10 with keys, 16 clients", "batch", 16),
]
QUICK = [row for row in ROWS if row.name in (READ, LIST, CREATE)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http")
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    if not shutil.which("wrk"):
        raise SystemExit("needs wrk: apt-get install wrk")
    if given.quick:
        with tempfile.TemporaryDirectory() as name, all_servers(Path(name)) as servers:
            rows = {row.name: measure(row, servers, 1, 1) for row in QUICK}
        print(rates(rows), times(rows), sep="\n\n")
    else:
        write_pages(measure_all(given.seconds, given.rounds), given.seconds, given.rounds)
        print(PAGE.read_text())


def measure_all(seconds: int, rounds: int) -> Measured:
    with tempfile.TemporaryDirectory() as name, all_servers(Path(name)) as servers:
        rows = {row.name: measure(row, servers, seconds, rounds) for row in ROWS}
        beside = measure_beside(servers, seconds, rounds)
        memory = {name: server.peak_megabytes for name, server in servers.items()}
    with tempfile.TemporaryDirectory() as name, starting_processes() as start:
        endpoint = start_ministack(start)
        starts = measure_starts(endpoint, Path(name))
        distant = measure_at_a_distance(endpoint, Path(name), seconds, rounds)
    return Measured(rows, beside, memory, starts, distant)


def measure(row: Row, servers: dict[str, Server], seconds: int, rounds: int) -> Loads:
    """Each server in turn, so many times."""
    found = defaultdict(list)
    for _ in range(rounds):
        for name, server in servers.items():
            if name != "bare" or row.with_bare:
                path = row.path.replace("CURSOR", cursor_of_last(server)) if "CURSOR" in row.path else row.path
                found[name].append(server.load(row.kind, row.clients, seconds, path))
    return {name: middle(loads) for name, loads in found.items()}


def measure_beside(servers: dict[str, Server], seconds: int, rounds: int) -> Loads:
    """What reads find while others write."""
    found = defaultdict(list)
    for _ in range(rounds):
        for name, server in servers.items():
            if name != "bare":
                writers = server.begin("post", 64, seconds + 1)
                found[name].append(server.load("find", 16, seconds))
                server.finish(writers)
    return {name: middle(loads) for name, loads in found.items()}


def cursor_of_last(server: Server) -> str:
    """Where the last of the items begins that all have."""
    if server.name != "ours":
        return str(ITEMS - 1)
    return f"{server.ask('GET', f'/api/items/{ITEMS - 1}')['created_at']}~{ITEMS - 1}"


def middle(loads: list[Load]) -> Load:
    return Load(*(median(getattr(load, field) for load in loads) for field in ("rate", "p50", "p99", "cpu")))


def measure_starts(endpoint: str, directory: Path) -> dict[str, float]:
    """Seconds of the processor until a function of Lambda has its handler, its log or database being empty."""
    ours, peer = [], []
    for number in range(STARTS + 1):
        with bucket_at(endpoint) as bucket:
            environment = {**bucket.environment(), "AUTH_MODE": "none", "AWS_LAMBDA_FUNCTION_NAME": "items"}
            ours.append(start_seconds(sys.executable, "handler.aws_lambda", environment, directory))
        environment = {"DATABASE_PATH": str(directory / f"peer-{number}.db")}
        peer.append(start_seconds(str(PEERS / "python"), "benchmarks.peers.function", environment, directory))
    # The first ones also write what Python keeps of modules
    return {"ours": median(ours[1:]), "threads": median(peer[1:])}


def start_seconds(python: str, module: str, environment: dict[str, str], directory: Path) -> float:
    program = f"import {module}, time; print(time.process_time())"
    given = {"PATH": os.environ["PATH"], "TMPDIR": str(directory), **environment}
    done = subprocess.run(
        [python, "-c", program], cwd=ROOT, env=given, check=True, stdout=subprocess.PIPE, text=True, timeout=60
    )
    return float(done.stdout.splitlines()[-1])


def measure_at_a_distance(endpoint: str, directory: Path, seconds: int, rounds: int) -> Load:
    """What writers find whose server's log is on S3."""
    with bucket_at(endpoint) as bucket, proxy_before(endpoint) as proxy:
        server = Server("ours", command("ours"), bucket.environment(proxy.endpoint), directory / "s3")
        try:
            server.wait_until_ready()
            proxy.rule = at_a_distance
            return middle([server.load("post", 256, seconds) for _ in range(rounds)])
        finally:
            server.close()


if __name__ == "__main__":
    main()
