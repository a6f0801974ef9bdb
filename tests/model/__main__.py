"""Explore every case and print what came out: `make model`."""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.model.cases import Case, every_case
from tests.model.explorer import Verdict

_PROCESSES = 2


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--traces", action="store_true", help="with the steps that lead to each broken property")
    parser.add_argument("--case", default="", help="only those with this in their names")
    arguments = parser.parse_args()
    cases = [case for case in every_case() if arguments.case in case.name]
    started, failed = time.monotonic(), 0
    with ProcessPoolExecutor(_PROCESSES) as pool:
        for case, verdict in zip(cases, pool.map(Case.explore, cases), strict=True):
            as_expected = (verdict.broken, len(verdict.trace)) == (case.broken, case.steps)
            failed += not as_expected
            print(_line(case, verdict) + ("" if as_expected else "  NOT AS EXPECTED"), flush=True)
            if verdict.trace and (arguments.traces or not as_expected):
                print("\n".join(f"    {number:2} {step}" for number, step in enumerate(verdict.trace, 1)))
    print(f"{len(cases)} cases, {failed} not as expected, {time.monotonic() - started:.0f} s")
    return bool(failed)


def _line(case: Case, verdict: Verdict) -> str:
    outcome = f"{verdict.broken}, in {len(verdict.trace)} steps" if verdict.broken else "holds"
    size = f"{verdict.states:9,} states {verdict.depth:3} deep {verdict.seconds:6.1f} s"
    return f"{case.name:45} {size}  {outcome}"


if __name__ == "__main__":
    sys.exit(main())
