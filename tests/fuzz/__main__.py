"""Put cases to everything that reads what comes from outside: `make fuzz`."""

import argparse
import math
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from tests.fuzz.target import put
from tests.fuzz.targets import TARGETS

_BATCH = 2000  # what Hypothesis remembers of the cases before costs time and memory


class Batch(NamedTuple):
    name: str
    cases: int
    seed: int


class Done(NamedTuple):
    batch: Batch
    seen: int
    failure: str


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000, help="how many, of all targets")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--target", action="append", choices=TARGETS, help="only this one; may be repeated")
    arguments = parser.parse_args()
    batches = _batches(arguments.target or list(TARGETS), arguments.cases, arguments.start)
    started, seen = time.monotonic(), Counter[str]()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for done in pool.map(_run, batches):
            seen[done.batch.name] += done.seen
            if done.failure:
                print(done.failure)
                print(f"FAILED {done.batch.name}: `python -m tests.fuzz {_again(done.batch)}` does it again")
                pool.shutdown(cancel_futures=True)
                return 1
    counts = ", ".join(f"{count:,} {name}" for name, count in seen.items())
    print(f"{seen.total():,} cases in {time.monotonic() - started:.0f} s: {counts}")
    return 0


def _batches(names: list[str], cases: int, start: int) -> list[Batch]:
    """Those of all targets by turns, so that the slow ones are spread."""
    shares = sum(TARGETS[name].share for name in names)
    found = []
    for name in names:
        due = math.ceil(cases * TARGETS[name].share / shares)
        found += [Batch(name, min(_BATCH, due - n), start + n // _BATCH) for n in range(0, due, _BATCH)]
    return sorted(found, key=lambda batch: batch.seed)


def _again(batch: Batch) -> str:
    return f'--target "{batch.name}" --cases {batch.cases} --start {batch.seed}'


def _run(batch: Batch) -> Done:
    target = TARGETS[batch.name]
    try:
        with target.opened() as look:
            return Done(batch, put(target, look, batch.cases, batch.seed), "")
    except BaseException:
        import traceback

        return Done(batch, 0, traceback.format_exc())


if __name__ == "__main__":
    sys.exit(main())
