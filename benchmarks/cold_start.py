"""A function's instance that begins with nothing: how long until it has answered, and what it reads for that.

`make bench-cold-start`. The store is a real S3 server, each request to it takes 15 ms more. Each start is a process of
its own; rounds are interleaved, medians count. The result is docs/cold-starts.md.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import apsw
from playhouse.apsw_ext import APSWDatabase

from benchmarks.distance import at_a_distance
from benchmarks.performance import machine, table
from benchmarks.servers import ROOT
from core.items import patch_item
from core.migrations import migrate
from core.schemas import ItemPatch
from infra.clock import Clock
from infra.commitlog import Paging, Replica, open_log, publish_file
from infra.commitlog.upkeep import Compactor
from infra.storage.object_store import TRANSFER_SECONDS, ObjectStore
from tests.e2e.processes import starting_processes
from tests.e2e.stores import S3, bucket_at, start_ministack

PAGE = ROOT / "docs" / "cold-starts.md"
BEGIN, END = "<!-- as `make bench-cold-start` has measured it -->\n", "<!-- until here -->\n"
FAR = 0.015  # seconds that each request takes more
FOLLOWING = 20  # commits, in the rows that have any
MB = 1024 * 1024
CALLED = {
    "paged": "page by page",
    "whole": "whole",
    "vfs": "Litestream's VFS",
    "restore": "`litestream restore`",
}
STEPS = {
    "open": "open",
    "read": "+ an item by its id",
    "list": "+ the 50 newest items",
    "write": "+ create one",
    "again": "the same list again",
}
_ROW = 760  # bytes that an item takes


@dataclass(frozen=True, slots=True)
class Start:
    """One of them."""

    steps: dict[str, tuple[float, int, int]]  # seconds, requests, bytes
    memory: float  # MB, at most

    def first_answer(self) -> tuple[float, int, int]:
        """Return seconds, requests and bytes up to the first item."""
        opened, read = self.steps["open"], self.steps["read"]
        return opened[0] + read[0], opened[1] + read[1], opened[2] + read[2]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--sizes", default="1,100,1000", help="of the databases, MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"the result to {PAGE.name}")
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    with tempfile.TemporaryDirectory() as name, starting_processes() as start, bucket_at(start_ministack(start)) as s3:
        found = {}
        for size in sizes:
            for following in (0, FOLLOWING):
                url = make_log(s3, size, following, Path(name))
                found[size, following] = measured(s3, url, size, following, given.rounds)
    text = page(found, given.rounds)
    print(text)
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


# What is there


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def make_log(s3: S3, megabytes: int, following: int, directory: Path) -> str:
    """A log whose newest snapshot holds so many megabytes, and has so many commits behind it."""
    path = directory / "made.db"
    make_database(path, megabytes)
    url = s3.url(f"{megabytes}-{following}")
    with environment(s3.environment()):
        log = open_log(url, Clock(), TRANSFER_SECONDS)
        _, position = publish_file(path, log, Clock())
        steps = Compactor(log, ObjectStore(url, timeout=TRANSFER_SECONDS), Clock())
        steps.store_snapshot(path, position, directory)
        path.unlink()
        write_on(url, following, directory)
    return url


def write_on(url: str, commits: int, directory: Path) -> None:
    clock = Clock()
    replica = Replica(
        directory / f"{Path(url).name}.db",
        open_log(url, clock),
        clock,
        lasting=False,
        paging=Paging(above=0, cache=64 * MB),
    )
    replica.open()
    for number in range(commits):
        replica.write(partial(patch_item, item_id=number * 61 + 1, patch=ItemPatch(quantity=number)), float("inf"), 0.0)
    replica.close()


def make_database(path: Path, megabytes: int) -> None:
    """Items of about 600 bytes each, whose text is words."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("page_size", 1024)
        connection.execute("VACUUM")
    database = APSWDatabase(str(path))
    with database:
        migrate(database)
    rng = random.Random(1)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(rng.choices(words, k=100)) for _ in range(4000)]
    begin = datetime(2026, 1, 1, tzinfo=UTC)

    def rows() -> Iterator[tuple[Any, ...]]:
        for number in range(megabytes * MB // _ROW):
            created = (begin + timedelta(seconds=number)).isoformat(timespec="microseconds").replace("+00:00", "Z")
            text = texts[rng.randrange(4000)][: rng.randint(350, 600)]
            yield f"item {number}", text, number % 10_000, number % 50, created, created

    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA journal_mode = off").fetchall()
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO items (name, description, price_cents, quantity, created_at, updated_at) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            rows(),
        )
        connection.execute("COMMIT")


# What is measured


def measured(s3: S3, url: str, megabytes: int, following: int, rounds: int) -> dict[str, list[Start]]:
    """By the way to start, each in turn, so many times."""
    found: dict[str, list[Start]] = {kind: [] for kind in CALLED}
    items = megabytes * MB // _ROW
    with at_a_distance(s3.endpoint, FAR) as (endpoint, counts):
        for _ in range(rounds):
            for kind, starts in found.items():
                started = one_start(kind, s3.environment(endpoint) | {"REPLICA_URL": url}, items, counts)
                starts.append(started)
                shown = {step: (round(seconds * 1000), *rest) for step, (seconds, *rest) in started.steps.items()}
                print(f"{megabytes} MB + {following}, {kind}: {shown}, {started.memory:.0f} MB", file=sys.stderr)
    return found


def for_litestream(variables: dict[str, str]) -> dict[str, str]:
    """Its extension has what is there when the process begins."""
    endpoint = variables.pop("AWS_ENDPOINT_URL_S3")
    url = f"{variables['REPLICA_URL']}?endpoint={endpoint}&region=us-east-1&forcePathStyle=true"
    return variables | {"LITESTREAM_REPLICA_URL": url}


def one_start(kind: str, variables: dict[str, str], items: int, counts: Path) -> Start:
    variables = {**variables, "AWS_LAMBDA_FUNCTION_NAME": "items"}
    if kind in ("vfs", "restore"):
        variables = for_litestream(variables)
    directory = Path(tempfile.mkdtemp())
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.starts", kind, str(directory), str(items), str(counts)],
            env=inherited | variables,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
    finally:
        shutil.rmtree(directory)
    said = json.loads(done.stdout)
    return Start({step: tuple(figures) for step, figures in said["steps"].items()}, said["memory"])


# What is shown


def page(found: dict[tuple[int, int], dict[str, list[Start]]], rounds: int) -> str:
    sizes = ",".join(str(size) for size in dict.fromkeys(size for size, _ in found))
    tables = [
        f"### {size:,} MB{f', and {following} commits behind the snapshot' if following else ''}\n\n"
        + table(list(CALLED.values()), rows_of(starts))
        for (size, following), starts in found.items()
    ]
    return f"""\
Measured by `make bench-cold-start SIZES={sizes} ROUNDS={rounds}` on
{machine()}, {datetime.now(UTC):%Y-%m-%d}: milliseconds / requests / bytes of each step, medians.

{(chr(10) * 2).join(tables)}
"""


def rows_of(starts: dict[str, list[Start]]) -> dict[str, list[str]]:
    rows = {
        title: [cell([start.steps[step] for start in some if step in start.steps]) for some in starts.values()]
        for step, title in STEPS.items()
    }
    first = {kind: middle([start.first_answer() for start in some])[0] for kind, some in starts.items()}
    rows["until the first item, ÷ whole"] = [f"{seconds / first['whole']:.3f}" for seconds in first.values()]
    rows["memory at most, MB"] = [
        f"{statistics.median(start.memory for start in some):.0f}" for some in starts.values()
    ]
    return rows


def middle(figures: list[tuple[float, int, int]]) -> list[float]:
    return [statistics.median(column) for column in zip(*figures, strict=True)]


def cell(figures: list[tuple[float, int, int]]) -> str:
    if not figures:
        return "cannot"
    seconds, requests, size = middle(figures)
    return f"{seconds * 1000:,.0f} / {requests:,.0f} / {size:,.0f}"


if __name__ == "__main__":
    main()
