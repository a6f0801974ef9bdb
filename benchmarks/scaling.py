"""The same routes on one log in a directory, on one in S3, and on PostgreSQL: the table of docs/scaling.md.

`make bench-scaling`. The service has one core and wrk the other, as in benchmarks/http.py; PostgreSQL, this machine's,
takes what it finds of both. Rounds are interleaved, medians count.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.commit_log import at_a_distance
from benchmarks.http import middle
from benchmarks.performance import machine, table
from benchmarks.servers import ROOT, Load, Server, command
from tests.e2e.processes import starting_processes
from tests.e2e.proxy import proxy_before
from tests.e2e.stores import bucket_at, start_ministack
from tests.postgresql import cluster

PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- as `make bench-scaling` has measured it -->\n", "<!-- until here -->\n"
CALLED = {
    "directory": "SQLite, log in a directory",
    "s3": "SQLite, log on S3, 25 ms a PUT",
    "postgresql": "PostgreSQL",
}
KINDS = {"GET an item": ("find", "/"), "list of 50": ("get", "/api/items"), "POST": ("post", "/")}
CLIENTS = (1, 16, 64)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling")
    parser.add_argument("--seconds", type=int, default=3, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, all_servers(Path(name)) as servers:
        found = {
            f"{title}, {clients} client{'s' * (clients > 1)}": measured(
                servers, kind, path, clients, given.seconds, given.rounds
            )
            for title, (kind, path) in KINDS.items()
            for clients in CLIENTS
        }
    text = f"""\
Measured by `make bench-scaling SECONDS={given.seconds} ROUNDS={given.rounds}` on
{machine()}, {datetime.now(UTC):%Y-%m-%d}: requests a second, and milliseconds at the median and the 99th percentile.

{table(list(CALLED.values()), {row: [cell(loads[name]) for name in CALLED] for row, loads in found.items()})}
"""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])
    print(text)


@contextmanager
def all_servers(directory: Path) -> Iterator[dict[str, Server]]:
    """By what they keep their rows in; each filled."""
    with ExitStack() as ended, tempfile.TemporaryDirectory() as store, starting_processes() as start:
        endpoint = start_ministack(start)
        bucket, proxy = ended.enter_context(bucket_at(endpoint)), ended.enter_context(proxy_before(endpoint))
        database = ended.enter_context(cluster())
        database.stop()
        database.start(fsync="on")  # the tests do without
        environments = {
            "directory": {},
            "s3": bucket.environment(proxy.endpoint),
            "postgresql": {"DATABASE_URL": database.url(database.create_database()), "DATABASE_CONNECTIONS": "16"},
        }
        servers = {}
        for name, environment in environments.items():
            servers[name] = Server(name, command("ours"), {"TMPDIR": store, **environment}, directory / name)
            ended.callback(servers[name].close)
        for server in servers.values():
            server.wait_until_ready()
            server.fill()
        proxy.rule = at_a_distance
        yield servers


def measured(
    servers: dict[str, Server], kind: str, path: str, clients: int, seconds: int, rounds: int
) -> dict[str, Load]:
    """Each server in turn, so many times."""
    found: dict[str, list[Load]] = {name: [] for name in servers}
    for _ in range(rounds):
        for name, server in servers.items():
            found[name].append(server.load(kind, clients, seconds, path))
    return {name: middle(loads) for name, loads in found.items()}


def cell(load: Load) -> str:
    return f"{load.rate:,.0f} ({load.p50:.1f} / {load.p99:.1f})"


if __name__ == "__main__":
    main()
