"""Run many simulations, or one with its trace: `make sim`."""

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.sharedctypes import Synchronized

from tests.simulation.world import Result, simulate

_SHOWN = (
    "commits",
    "run again",
    "unknown",
    "repeated",
    "refused",
    "reads",
    "looks",
    "crashes",
    "freezes",
    "leaps",
    "emptied",
    "mixed listings",
    "merges",
    "snapshots",
    "deletions",
    "leftovers",
    "diverged",
    "row changes",
    "shared commits",
    "by others",
    "visits",
    "spoilt",
    "misleading errors",
    "page reads",
    "pages gone",
    "read ahead",
    "spoilt sidecars",
    "damaged ranges",
    "vacuums",
    "upgrades",
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--start", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="only this one, with its trace")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first that fails")
    arguments = parser.parse_args()
    logging.disable()
    if arguments.seed is not None:
        return _one(arguments.seed)
    return _many(range(arguments.start, arguments.start + arguments.seeds), arguments.keep_going)


def _one(seed: int) -> int:
    result = simulate(seed, print)
    print(f"seed {seed}: {_summary(result.counts)}, trace {result.digest[:16]}")
    if result.failure:
        print(f"FAILED {result.failure}")
    return bool(result.failure)


def _many(seeds: range, keep_going: bool) -> int:
    started, failed = time.monotonic(), 0
    counts: Counter[str] = Counter()
    started_before = multiprocessing.Value("i", 0)
    with ProcessPoolExecutor(os.cpu_count(), initializer=_stay_on_one_core, initargs=(started_before,)) as pool:
        for done, result in enumerate(pool.map(simulate, seeds, chunksize=4), 1):
            counts += result.counts
            if result.failure:
                _report(result, done)
                failed += 1
                if not keep_going:
                    pool.shutdown(cancel_futures=True)
                    return 1
            if done % 200 == 0:
                print(f"seeds {seeds[0]}-{seeds[done - 1]}: {_summary(counts)}", flush=True)
    print(f"{len(seeds)} seeds in {time.monotonic() - started:.0f} s, {failed} failed: {_summary(counts)}")
    return bool(failed)


def _stay_on_one_core(started_before: "Synchronized[int]") -> None:
    """Hand the baton from thread to thread without waking another core: a third faster."""
    if not hasattr(os, "sched_setaffinity"):
        return
    with started_before.get_lock():
        place = started_before.value
        started_before.value += 1
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[place % len(cores)]})


def _report(result: Result, done: int) -> None:
    print("\n".join(result.trace))
    print(f"FAILED {result.failure}")
    print(f"seed {result.seed}, after {done} seeds; `make sim SEED={result.seed}` shows all of it")


def _summary(counts: Counter[str]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in _SHOWN)


if __name__ == "__main__":
    sys.exit(main())
