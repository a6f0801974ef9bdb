"""What no machine changes: statements, store requests, bytes, modules, instructions, held to counts.json.

`python -m benchmarks.counts`. Exit code 1: something is more than the file says. A change that is to cost what it costs
writes the file anew, by --write.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import apsw

from benchmarks.in_process import COUNTED, INSTRUCTIONS_OF, REQUESTS, InProcess
from infra.telemetry.metrics import Metrics

ROOT = Path(__file__).parent.parent
EXPECTED = Path(__file__).with_name("counts.json")
WRITE = "python -m benchmarks.counts --write"
REPEATED = 20
# By which part a count may be more than the file says. One run is not just like the next: times are not, nor are keys
BANDS = {"bytes a commit": 0.03, "instructions": 0.05}
OF_PYTHON = ("modules of a function", "instructions")  # which another Python has others of
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

Counts = dict[str, dict[str, int]]  # by what is counted, then by where


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counts")
    parser.add_argument("--write", action="store_true", help="write counts.json anew")
    given = parser.parse_args()
    found = count()
    print(table(found))
    if given.write:
        EXPECTED.write_text(json.dumps({"python": PYTHON, **found}, indent=2) + "\n")
        return 0
    return hold(found, json.loads(EXPECTED.read_text()))


def hold(found: Counts, expected: Any) -> int:
    """Say what is not as the file says; the exit code."""
    held = {}
    for what, counts in found.items():
        if reason := why_not_held(what, counts, expected):
            print(f"SKIPPED: {what} are not held to counts.json: {reason}")
        else:
            held[what] = counts
    less, more = differences(held, expected)
    if less:
        print(f"Less than counts.json says; `{WRITE}` holds what comes to that:", *less, sep="\n- ")
    if more:
        words = f"More than counts.json says. If the change is worth it, `{WRITE}`, and say in the commit why:"
        print(words, *more, sep="\n- ", file=sys.stderr)
    return bool(more)


def count() -> Counts:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        found = asyncio.run(count_requests(directory))
        found["modules of a function"] = count_modules(directory)
        found["instructions"] = count_instructions(directory / "filled")
    return found


# Requests


class Counting(Metrics):
    """Adds up what the service tells of itself, and the statements of every connection that is opened meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.statements = self.asked = self.bytes = 0

    @property
    def so_far(self) -> tuple[int, int, int]:
        return self.statements, self.asked, self.bytes

    def log_asked(self, verb: str, answered: bool, seconds: float) -> None:
        super().log_asked(verb, answered, seconds)
        self.asked += 1

    def commit_stored(self, size: int, seconds: float) -> None:
        super().commit_stored(size, seconds)
        self.bytes += size

    @contextmanager
    def counting_statements(self) -> Iterator[None]:
        apsw.connection_hooks.append(self._watch)
        try:
            yield
        finally:
            apsw.connection_hooks.remove(self._watch)

    def _watch(self, connection: apsw.Connection) -> None:
        connection.trace_v2(apsw.SQLITE_TRACE_STMT, self._statement_begins, id=self)

    def _statement_begins(self, event: dict[str, object]) -> None:
        self.statements += not event["trigger"]


async def count_requests(directory: Path) -> Counts:
    """Leaves in `filled` what is there before the first of them."""
    counting, data = Counting(), directory / "data"
    with counting.counting_statements():
        with InProcess(data, counting) as app:
            await app.fill()
        shutil.copytree(data, directory / "filled")
        with InProcess(data, counting) as app:
            statements, asked, size = await count_each(app, counting, 0)
        with InProcess(data, counting, function=True) as app:
            _, asked_by_function, _ = await count_each(app, counting, REPEATED)
    return {
        "statements": statements,
        "store requests": asked,
        "store requests of a function": asked_by_function,
        "bytes a commit": {name: count for name, count in size.items() if count},
    }


async def count_each(app: InProcess, counting: Counting, first: int) -> list[dict[str, int]]:
    """Statements, store requests and bytes of each kind of request: medians, because a slow machine looks at the store
    once more now and then.
    """
    found: list[dict[str, int]] = [{}, {}, {}]
    for name, request in REQUESTS.items():
        taken = []
        for number in range(first, first + REPEATED):
            before = counting.so_far
            await request(app, number)
            taken.append([now - then for now, then in zip(counting.so_far, before, strict=True)])
        for counts, values in zip(found, zip(*taken, strict=True), strict=True):
            counts[name] = round(median(values))
    return found


# Processes


def count_modules(directory: Path) -> dict[str, int]:
    """Those that are there when the handler is."""
    environment = {
        **{"PATH": os.environ["PATH"], "TMPDIR": str(directory), "AUTH_MODE": "none"},
        **{"AWS_LAMBDA_FUNCTION_NAME": "items", "REPLICA_URL": (directory / "log").as_uri()},
    }
    command = [sys.executable, "-c", "import handler.aws_lambda, sys; print(*sys.modules)"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    roots = [name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()]
    own = sum(root in ("core", "handler", "infra") for root in roots)
    standard = sum(root in sys.stdlib_module_names for root in roots)
    return {"our own": own, "of Python": standard, "of packages": len(roots) - own - standard}


def count_instructions(filled: Path) -> dict[str, int]:
    """Of one request each. None where there is no valgrind."""
    if not shutil.which("valgrind"):
        return {}
    dumped = filled.with_name("callgrind")
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={dumped}"]
    command += [sys.executable, "-m", "benchmarks.in_process", str(filled)]
    environment = {"PATH": os.environ["PATH"], "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"valgrind has counted nothing:\n{done.stderr[-2000:]}")
    texts = [dumped.with_name(f"callgrind.{number}").read_text() for number, _ in enumerate(INSTRUCTIONS_OF, 1)]
    totals = [int(text.rpartition("\ntotals: ")[2].split()[0]) for text in texts]
    return {name: total // COUNTED for name, total in zip(INSTRUCTIONS_OF, totals, strict=True)}


# What is made of them


def why_not_held(what: str, counts: dict[str, int], expected: Any) -> str:
    """Empty if it is."""
    if what in OF_PYTHON and expected["python"] != PYTHON:
        return f"the file has those of Python {expected['python']}, and this is {PYTHON}"
    return "" if counts else "needs valgrind: apt-get install valgrind"


def differences(found: Counts, expected: Any) -> tuple[list[str], list[str]]:
    """What is less and what is more than it should be, in words."""
    less, more = [], []
    for what, counts in found.items():
        band = BANDS.get(what, 0)
        for where, count in counts.items():
            said = expected[what].get(where, 0)
            words = f"{what}, {where}: {count:,} instead of {said:,}"
            if count > said * (1 + band):
                more.append(words)
            elif count < said * (1 - band):
                less.append(words)
    return less, more


def table(found: Counts) -> str:
    columns = [what for what in found if what != "modules of a function"]
    lines = [f"| in process | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name in REQUESTS:
        cells = [f"{found[what][name]:,}" if name in found[what] else "" for what in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    modules = ", ".join(f"{count} {which}" for which, count in found["modules of a function"].items())
    return "\n".join([*lines, "", f"A function has {modules} modules when its handler is there."])


if __name__ == "__main__":
    sys.exit(main())
