"""What the service does over HTTP, beside what people would pick instead: docs/performance.md.

`make bench`. All have the same routes, rows and durability; rounds are interleaved, so that whatever else the machine
does comes to all alike, and the medians count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.commit_log import at_a_distance
from benchmarks.servers import ITEMS, PEERS, ROOT, Load, Server, all_servers
from tests.e2e.processes import starting_processes
from tests.e2e.proxy import proxy_before
from tests.e2e.stores import bucket_at, start_ministack

SERVICES = ("ours", "sync", "async")
STARTS = 3


@dataclass(frozen=True)
class Row:
    """One kind of load. `path`: the same for each request, and CURSOR in it is that of page 10,000."""

    name: str
    kind: str
    clients: int
    path: str = "/"
    with_bare: bool = False
    quick: bool = False


FOUND = Row("`GET /api/items/{id}`, 16 clients", "find", 16, with_bare=True, quick=True)
ROWS = [
    Row("`GET /health`, 16 clients", "get", 16, "/health", with_bare=True),
    Row("`GET /api/items/{id}`, 1 client", "find", 1, with_bare=True),
    FOUND,
    Row("list of 50, 16 clients", "get", 16, "/api/items", with_bare=True, quick=True),
    Row("list, page 1 of one item", "get", 16, "/api/items?limit=1"),
    Row("list, page 10,000", "get", 16, "/api/items?limit=1&cursor=CURSOR"),
    Row("search, `?q=`, 11 of 10,000 match", "get", 16, "/api/items?q=m%20777"),
    Row("`POST`, 1 client", "post", 1),
    Row("`POST`, 16 clients", "post", 16, quick=True),
    Row("`POST`, 64 clients", "post", 64),
    Row("`PUT`, 16 clients, with keys", "put", 16),
    Row("`PATCH`, 16 clients, with keys", "patch", 16),
    Row("`POST`, then `DELETE`, 16 clients, with keys", "remove", 16),
    Row("batch of 10, 16 clients, with keys", "batch", 16),
]
BESIDE = "`GET /api/items/{id}`, 16 clients, beside 64 that `POST`"

Measured = dict[str, dict[str, Load]]  # by row, by server: the medians


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http")
    parser.add_argument("--seconds", type=float, default=3, help="of each row, server and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="some rows, printed and not written")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, all_servers(Path(name)) as servers:
        rows = [row for row in ROWS if row.quick or not given.quick]
        measured = {row.name: measure(row, servers, given.seconds, given.rounds) for row in rows}
        if not given.quick:
            measured[BESIDE] = measure_beside(servers, given.seconds, given.rounds)
        memory = {name: server.peak_megabytes for name, server in servers.items()}
    print(table(measured))
    print(memory)
    if given.quick:
        return
    with starting_processes() as start, tempfile.TemporaryDirectory() as name:
        endpoint = start_ministack(start)
        print(measure_starts(endpoint, Path(name)))
        print(measure_s3(endpoint, Path(name), given.seconds, given.rounds))


def measure(row: Row, servers: dict[str, Server], seconds: float, rounds: int) -> dict[str, Load]:
    """Every server in turn, so many times."""
    measured = [server for name, server in servers.items() if name != "bare" or row.with_bare]
    found = defaultdict(list)
    for _ in range(rounds):
        for server in measured:
            path = row.path.replace("CURSOR", cursor_of_last(server)) if "CURSOR" in row.path else row.path
            found[server.name].append(server.load(row.kind, row.clients, seconds, path))
    return {name: middle(loads) for name, loads in found.items()}


def measure_beside(servers: dict[str, Server], seconds: float, rounds: int) -> dict[str, Load]:
    """What reads find while others write. Their processor time is not theirs alone."""
    found = defaultdict(list)
    for _ in range(rounds):
        for name in SERVICES:
            writers = servers[name].begin("post", 64, seconds + 1)
            found[name].append(servers[name].load("find", 16, seconds))
            servers[name].finish(writers)
    return {name: middle(loads) for name, loads in found.items()}


def cursor_of_last(server: Server) -> str:
    """Before the last of the items that all have."""
    if server.name != "ours":
        return str(ITEMS - 1)
    created_at = server.ask("GET", f"/api/items/{ITEMS - 1}")["created_at"]
    return f"{created_at}~{ITEMS - 1}"


def middle(loads: list[Load]) -> Load:
    return Load(*(median(getattr(load, field) for load in loads) for field in ("rate", "p50", "p99", "cpu")))


def measure_starts(endpoint: str, directory: Path) -> dict[str, float]:
    """Seconds of the processor until a function of Lambda has its handler, its log or database being empty."""
    ours, peer = [], []
    for number in range(STARTS + 1):  # the first also writes what Python keeps of modules
        with bucket_at(endpoint) as bucket:
            environment = {**bucket.environment(), "AUTH_MODE": "none", "AWS_LAMBDA_FUNCTION_NAME": "items"}
            ours.append(start_seconds(sys.executable, "handler.aws_lambda", environment, directory))
        place = {"DATABASE_PATH": str(directory / f"peer-{number}.db")}
        peer.append(start_seconds(str(PEERS / "python"), "benchmarks.peers.function", place, directory))
    return {"ours": median(ours[1:]), "sync": median(peer[1:])}


def start_seconds(python: str, module: str, environment: dict[str, str], directory: Path) -> float:
    program = f"import {module}, time; print(time.process_time())"
    given = {"PATH": os.environ["PATH"], "TMPDIR": str(directory), **environment}
    done = subprocess.run([python, "-c", program], cwd=ROOT, env=given, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure_s3(endpoint: str, directory: Path, seconds: float, rounds: int) -> Load:
    """`POST` at 256 clients, each PUT and GET of the store taking as long as S3's."""
    with bucket_at(endpoint) as bucket, proxy_before(endpoint) as proxy:
        command = [sys.executable, "-m", "handler"]
        server = Server("ours", command, bucket.environment(proxy.endpoint), directory / "s3")
        try:
            server.wait_until_ready()
            proxy.rule = at_a_distance
            return middle([server.load("post", 256, seconds) for _ in range(rounds)])
        finally:
            server.close()


def table(measured: Measured) -> str:
    lines = ["| | ours | sync | async | bare | ÷ sync | ÷ async | ÷ bare |", "|---|" + "---|" * 7]
    for row, found in measured.items():
        rates = [
            f"{found[server].rate:,.0f}" if server in found else "" for server in ("ours", "sync", "async", "bare")
        ]
        ratios = [
            f"{found['ours'].rate / found[server].rate:.2f}" if server in found else ""
            for server in ("sync", "async", "bare")
        ]
        lines.append(f"| {row} | {' | '.join(rates + ratios)} |")
    lines += ["", "| | p50/p99/CPU ours | sync | async | bare |", "|---|---|---|---|---|"]
    for name, found in measured.items():
        cells = [
            f"{found[s].p50:.1f} / {found[s].p99:.1f} ms, {found[s].cpu:,.0f} µs" if s in found else ""
            for s in ("ours", "sync", "async", "bare")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
