"""An instance that begins with nothing but the log: how long until it has answered, and what it reads for that.

`make bench-cold-start`. The store is a real S3 server, each request to it takes 15 ms more. Each start is a process of
its own; rounds are interleaved, medians count. The result is docs/cold-starts.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.distance import Counts, at_a_distance
from benchmarks.large_logs import items_in, make_log, write_on
from benchmarks.performance import machine, table
from benchmarks.servers import ROOT
from benchmarks.starts import memory_of
from tests.e2e.emulator import children, command_line, emulating
from tests.e2e.processes import starting_processes
from tests.e2e.stores import S3, bucket_at, start_ministack

PAGE = ROOT / "docs" / "cold-starts.md"
BEGIN, END = "<!-- as `make bench-cold-start` has measured it -->\n", "<!-- until here -->\n"
FAR = 0.015  # seconds that each request takes more
FOLLOWING = 20  # commits, in the rows that have any
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
    "again": "+ the newest 50 again",
}
_ABOVE = {"paged": "always", "whole": "never"}  # PAGED_ABOVE_MB

Figures = tuple[float, int, int]  # seconds, requests, bytes of their answers


@dataclass(frozen=True, slots=True)
class Start:
    """One of them."""

    steps: dict[str, Figures]
    memory: float  # MB, at most
    function: Figures | None = None  # a real function's first answer, and what it took
    function_memory: float = 0.0

    def first_answer(self) -> Figures:
        """Return what it took up to the first item."""
        opened, read = self.steps["open"], self.steps["read"]
        return opened[0] + read[0], opened[1] + read[1], opened[2] + read[2]


Starts = dict[str, list[Start]]  # by the way to start
Found = dict[tuple[int, int], Starts]  # by megabytes, and commits behind the snapshot


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--sizes", default="1,100,1000", help="of the databases, MB")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"the result to {PAGE.name}")
    given = parser.parse_args()
    sizes = [int(size) for size in given.sizes.split(",")]
    found: Found = {}
    for size in sizes:  # each with a server of its own, which keeps all that it has in memory
        with (
            tempfile.TemporaryDirectory() as name,
            starting_processes() as start,
            bucket_at(start_ministack(start)) as s3,
        ):
            url = make_log(s3, size, Path(name))
            for following in (0, FOLLOWING):
                write_on(s3, url, following)
                found[size, following] = measured(s3, url, size, following, given.rounds)
    text = page(found, given.rounds)
    print(text)
    if given.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + text + END + rest.partition(END)[2])


# What is measured


def measured(s3: S3, url: str, megabytes: int, following: int, rounds: int) -> Starts:
    """Start each way in turn, so many times; each finds the same log."""
    found: Starts = {kind: [] for kind in CALLED}
    items = items_in(megabytes)
    with at_a_distance(s3.endpoint, FAR) as (endpoint, counts):
        variables = s3.environment(endpoint) | {"REPLICA_URL": url, "AWS_LAMBDA_FUNCTION_NAME": "items"}
        for _ in range(rounds):
            for kind, starts in found.items():
                with put_back(s3, url):
                    started = one_start(kind, variables, items, counts)
                if kind in _ABOVE:
                    figures, memory = first_answer_of_a_function(kind, variables, items, counts)
                    started = replace(started, function=figures, function_memory=memory)
                starts.append(started)
                print(f"{title(megabytes, following)}, {kind}: {started}", file=sys.stderr)
    return found


@contextmanager
def put_back(s3: S3, url: str) -> Iterator[None]:
    """Delete what is added to a log meanwhile, or each start would read the writes of those before. Nobody has it open
    when the context ends.
    """
    prefix = f"{url.removeprefix(s3.url(''))}/"
    before = set(s3.keys(prefix))
    yield
    for key in set(s3.keys(prefix)) - before:
        s3.delete(key)


def one_start(kind: str, variables: dict[str, str], items: int, counts: Path) -> Start:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.starts", kind, directory, str(items), str(counts)],
            env=inherited | (variables if kind in _ABOVE else for_litestream(variables)),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
    said = json.loads(done.stdout)
    return Start({step: tuple(figures) for step, figures in said["steps"].items()}, said["memory"])


def for_litestream(variables: dict[str, str]) -> dict[str, str]:
    """Its extension has what is there when the process begins."""
    rest = {name: value for name, value in variables.items() if name != "AWS_ENDPOINT_URL_S3"}
    endpoint = variables["AWS_ENDPOINT_URL_S3"]
    url = f"{variables['REPLICA_URL']}?endpoint={endpoint}&region=us-east-1&forcePathStyle=true"
    return rest | {"LITESTREAM_REPLICA_URL": url}


def first_answer_of_a_function(kind: str, variables: dict[str, str], items: int, counts: Path) -> tuple[Figures, float]:
    """Start a real function under Lambda's runtime interface emulator, which begins it with the first invocation.
    Returns what that took until it was answered, imports and all, and its memory in MB.
    """
    seen = Counts(counts)
    with (
        tempfile.TemporaryDirectory() as directory,
        starting_processes(TMPDIR=directory) as start,
        emulating(start, **variables, PAGED_ABOVE_MB=_ABOVE[kind]) as function,
    ):
        since, before = time.perf_counter(), seen.read()
        answer = function.request("GET", f"/api/items/{items // 2}")
        seconds, passed = time.perf_counter() - since, seen.read() - before
        assert answer["statusCode"] == 200, answer
        [memory] = [memory_of(pid) for pid in children(function.process.popen.pid) if is_runtime(pid)]
    return (seconds, passed.requests, passed.bytes), memory


def is_runtime(pid: int) -> bool:
    return "awslambdaric" in command_line(pid)


# What is shown


def page(found: Found, rounds: int) -> str:
    sizes = ",".join(str(size) for size in dict.fromkeys(size for size, _ in found))
    ways = list(CALLED.values())
    beside = [f"{way} ÷ {CALLED['paged']}" for kind, way in CALLED.items() if kind != "paged"]
    first = table([*ways, *beside], {title(*which): until_first(starts) for which, starts in found.items()})
    each = [f"## {title(*which)}\n\n{table(ways, rows_of(starts))}" for which, starts in found.items()]
    return f"""\
Measured by `make bench-cold-start SIZES={sizes} ROUNDS={rounds}` on
{machine()}, {datetime.now(UTC):%Y-%m-%d}: milliseconds / requests / bytes of their answers, medians.

## From nothing to an item by its id

{first}

{(chr(10) * 2).join(each)}
"""


def title(megabytes: int, following: int) -> str:
    return f"{megabytes:,} MB{f', and {following} commits behind the snapshot' if following else ''}"


def until_first(starts: Starts) -> list[str]:
    """Each way's cell, then the others' times as multiples of that page by page."""
    first = {kind: [start.first_answer() for start in some] for kind, some in starts.items()}
    seconds = {kind: middle(figures)[0] for kind, figures in first.items()}
    ratios = [f"{other / seconds['paged']:.1f}" for kind, other in seconds.items() if kind != "paged"]
    return [*map(cell, first.values()), *ratios]


def rows_of(starts: Starts) -> dict[str, list[str]]:
    rows = {
        said: [cell([start.steps[step] for start in some if step in start.steps]) for some in starts.values()]
        for step, said in STEPS.items()
    }
    rows["memory at most, MB"] = [
        f"{statistics.median(start.memory for start in some):.0f}" for some in starts.values()
    ]
    rows["a function's first answer"] = [
        cell([start.function for start in some if start.function]) for some in starts.values()
    ]
    rows["its memory at most, MB"] = [
        f"{statistics.median(start.function_memory for start in some):.0f}" if some[0].function else ""
        for some in starts.values()
    ]
    return rows


def middle(figures: list[Figures]) -> list[float]:
    return [statistics.median(column) for column in zip(*figures, strict=True)]


def cell(figures: list[Figures]) -> str:
    if not figures:
        return ""
    seconds, requests, size = middle(figures)
    return f"{seconds * 1000:,.0f} / {requests:,.0f} / {size:,.0f}"


if __name__ == "__main__":
    main()
