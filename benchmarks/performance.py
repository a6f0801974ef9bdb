"""docs/performance.md and the lines of README.md, from what `make bench` has measured."""

import os
import platform
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.servers import ITEMS, NAMES, ROOT, Load

PAGE = ROOT / "docs" / "performance.md"
README = ROOT / "README.md"
BEGIN, END = "<!-- as `make bench` has measured it -->\n", "<!-- until here -->\n"
CALLED = {
    "ours": "this service",
    "threads": "FastAPI + SQLAlchemy",
    "asyncio": "the same in asyncio",
    "bare": "a constant",
}
READ, LIST, CREATE = "GET an item, 16 clients", "list of 50, 16 clients", "POST, 64 clients"
_MACHINE = Path("/proc/cpuinfo")

Loads = dict[str, Load]  # by the server's name


@dataclass(frozen=True)
class Measured:
    """All of it; medians of the rounds."""

    rows: dict[str, Loads]
    beside: Loads
    memory: dict[str, float]  # megabytes
    starts: dict[str, float]  # seconds
    distant: Load


def write_pages(measured: Measured, seconds: int, rounds: int) -> None:
    """docs/performance.md, and between its markers README.md, which may have none."""
    PAGE.write_text(page(measured, seconds, rounds))
    readme = README.read_text()
    if BEGIN in readme:
        before, _, rest = readme.partition(BEGIN)
        README.write_text(before + BEGIN + summary(measured) + END + rest.partition(END)[2])


def page(measured: Measured, seconds: int, rounds: int) -> str:
    distant = measured.distant
    return f"""\
# How fast it is

Measured by `make bench SECONDS={seconds} ROUNDS={rounds}` (`benchmarks/http.py`), which writes this page, on
{machine()}, {datetime.now(UTC):%Y-%m-%d}. Rounds are interleaved and medians are shown; such machines are noisy, so
the ratios count, not the figures.

The peers (`benchmarks/peers/`) are what people would pick instead, as the tutorials write it: FastAPI with SQLAlchemy
2, plain functions in its pool of threads; the same in asyncio over aiosqlite. A constant from bare Starlette is the
limit of all that is built on it. They have the service's routes, fields and statuses, and the durability of its
database: a WAL, synchronous=FULL. The service puts each commit into its log as well, here a directory, and looks at
the `Idempotency-Key` of a write, which the peers do not. Two things that no tutorial says are mended, or a peer would
stand still: SQLite waits a minute for its lock, and the pool of connections is as large as the load.

Each server is one worker of Uvicorn with uvloop and httptools on a core of its own, wrk is on another, and there
are {ITEMS:,} items. Each logs as it ships, into a file: the service its lines of JSON, the peers Uvicorn's access
log; the constant logs nothing. An answer of 400 or above ends the run.

## Requests a second

{rates(measured.rows)}

A search of the service looks through a bounded number of rows, and its cursor leads on. The peers' pages are offsets.

## How long they take

Milliseconds, the median and the 99th percentile; and microseconds of the processor that the server spends on one.

{times(measured.rows)}

## Reads beside writes

The 99th percentile of GET of an item in milliseconds, 16 clients: alone, and beside 64 clients that POST.

{beside(measured)}

## Memory and start

Memory is the most that the server has had when all of this was done (VmHWM). The start is the processor's time
until a function of Lambda has its handler in a new process, with an empty log on S3, or for FastAPI under Mangum an
empty file.

{processes(measured)}

## On S3

With the log on a local S3 of which a PUT takes 25 ms and a GET 10 ms, 256 clients POST **{distant.rate:,.0f} a
second**: {distant.p50:.0f} ms at the median, {distant.p99:.0f} ms at the 99th percentile, {distant.cpu:,.0f} µs of
the processor.

## What no machine changes

`make bench-quick` counts SQL statements, requests to the store, bytes of a commit, modules of a function and, by
valgrind, instructions. One that is more than `benchmarks/counts.json` says fails it; a change that is worth it writes
that anew.
"""


def machine() -> str:
    names = re.findall(r"^model name\s*: (.+)$", _MACHINE.read_text(), re.MULTILINE)
    cores = len(os.sched_getaffinity(0))
    return f"Python {platform.python_version()}, {cores} cores of {names[0] if names else platform.machine()}"


def summary(measured: Measured) -> str:
    """The lines of README.md."""
    lines = ["| requests a second, on one core | this service | FastAPI + SQLAlchemy |", "|---|---|---|"]
    for title, name in (
        ("read an item, 16 clients", READ),
        ("list 50 of them, 16 clients", LIST),
        ("create one, 64 clients", CREATE),
    ):
        loads = measured.rows[name]
        lines.append(f"| {title} | {loads['ours'].rate:,.0f} | {loads['threads'].rate:,.0f} |")
    return "\n".join(lines) + "\n"


def rates(rows: dict[str, Loads]) -> str:
    peers = [name for name in NAMES if name != "ours"]
    titles = [*(CALLED[name] for name in NAMES), *(f"÷ {CALLED[name]}" for name in peers)]
    return table(
        titles,
        {
            row: [f"{loads[name].rate:,.0f}" if name in loads else "" for name in NAMES]
            + [f"{loads['ours'].rate / loads[name].rate:.2f}" if name in loads else "" for name in peers]
            for row, loads in rows.items()
        },
    )


def times(rows: dict[str, Loads]) -> str:
    titles = [title for name in NAMES for title in (CALLED[name], "µs")]
    return table(
        [*titles, f"µs ÷ {CALLED['threads']}"],
        {
            row: [cell for name in NAMES for cell in time_cells(loads, name)]
            + [f"{loads['ours'].cpu / loads['threads'].cpu:.2f}"]
            for row, loads in rows.items()
        },
    )


def time_cells(loads: Loads, name: str) -> list[str]:
    if name not in loads:
        return ["", ""]
    return [f"{loads[name].p50:.1f} / {loads[name].p99:.1f}", f"{loads[name].cpu:,.0f}"]


def beside(measured: Measured) -> str:
    alone = measured.rows[READ]
    return table(
        ["alone", "beside 64 writers", "÷"],
        {
            CALLED[name]: [
                f"{alone[name].p99:.1f}",
                f"{load.p99:.1f}",
                f"{load.p99 / alone[name].p99:.1f}",
            ]
            for name, load in measured.beside.items()
        },
    )


def processes(measured: Measured) -> str:
    memory, starts = measured.memory, measured.starts
    return table(
        [*(CALLED[name] for name in NAMES), "÷ " + CALLED["threads"]],
        {
            "memory, MB": [f"{memory[name]:.0f}" for name in NAMES] + [f"{memory['ours'] / memory['threads']:.2f}"],
            "start, seconds": [f"{starts[name]:.2f}" if name in starts else "" for name in NAMES]
            + [f"{starts['ours'] / starts['threads']:.2f}"],
        },
    )


def table(titles: list[str], rows: dict[str, list[str]]) -> str:
    lines = [["", *titles], ["---"] * (len(titles) + 1), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
