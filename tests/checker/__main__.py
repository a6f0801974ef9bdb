"""A checker that knows nothing of the code: real servers, real trouble, and what they promised: `make check`."""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

from tests.checker.checks import Violation
from tests.checker.history import Operation
from tests.checker.rounds import PLANS, Outcome, Plan, run_round
from tests.e2e.processes import ROOT, starting_processes
from tests.e2e.stores import start_ministack

_AROUND_THE_LOAD = 14.0  # seconds for a round's start, its end and its judgement, as a rule
_LEAST_LOAD = 6.0
_SHOWN = 3  # violations of a rule


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.checker", description=__doc__)
    parser.add_argument("--seconds", type=float, default=120, help="for all of it")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32), help="of the trouble")
    parser.add_argument("--code", type=Path, default=ROOT, help="a directory with the service, if not this one")
    parser.add_argument("--only", action="append", help="a round's name, the others are left out; may be repeated")
    parser.add_argument("--without", action="append", default=[], help="what the nemesis does not do; may be repeated")
    parser.add_argument("--keep", action="store_true", help="keep histories and files also when all was well")
    parser.add_argument("--first", action="store_true", help="end after the first round with a violation")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are ended first
    plans = [
        replace(plan, deeds=[deed for deed in plan.deeds if deed not in arguments.without])
        for plan in PLANS
        if not arguments.only or plan.name in arguments.only
    ]
    random.Random(arguments.seed).shuffle(plans)
    print(f"seed {arguments.seed}, {arguments.seconds:.0f} s, code in {arguments.code}", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="checker-"))
    outcomes = _rounds(plans, directory, arguments)
    failed = _report(outcomes)
    if failed or arguments.keep:
        print(f"histories and files are in {directory}")
    else:
        shutil.rmtree(directory)
    return int(failed)


def _rounds(plans: list[Plan], directory: Path, arguments: argparse.Namespace) -> list[Outcome]:
    """One after the other, each kind in its turn, for as long as there is time."""
    outcomes: list[Outcome] = []
    deadline = time.monotonic() + arguments.seconds
    with starting_processes() as start_process:
        endpoint = start_ministack(start_process)
        while deadline - time.monotonic() > _LEAST_LOAD + _AROUND_THE_LOAD or not outcomes:
            number = len(outcomes)
            plan = plans[number % len(plans)]
            seconds = max(_LEAST_LOAD, min(plan.seconds, deadline - time.monotonic() - _AROUND_THE_LOAD))
            place = directory / f"round-{number:03}"
            place.mkdir()
            rng = random.Random(f"{arguments.seed} {number}")
            outcome = run_round(plan, number, arguments.code.resolve(), place, endpoint, rng, seconds)
            outcomes.append(outcome)
            print(f"{number:3} {outcome.line()}", flush=True)
            if outcome.violations:
                _show(number, outcome)
            if outcome.violations or arguments.keep:
                outcome.history.write(directory / f"round-{number:03}.jsonl")
            else:
                shutil.rmtree(place)
            if outcome.violations and arguments.first:
                break
    return outcomes


def _report(outcomes: list[Outcome]) -> bool:
    """Whether anything was wrong."""
    operations = sum(len(outcome.history.operations) for outcome in outcomes)
    deeds = sum((outcome.counts for outcome in outcomes), Counter[str]())
    faults = sum((outcome.faults for outcome in outcomes), Counter[str]())
    print(f"\n{len(outcomes)} rounds, {operations} operations")
    print(f"trouble: {_counted(deeds)}")
    print(f"faults: {_counted(faults)}")
    failed = any(outcome.violations for outcome in outcomes)
    print("VIOLATED" if failed else "every promise was kept")
    return failed


def _show(number: int, outcome: Outcome) -> None:
    rules = Counter(violation.rule for violation in outcome.violations)
    print(f"round {number}, {outcome.plan.name}: {_counted(rules)}")
    for rule in rules:
        some = [violation for violation in outcome.violations if violation.rule == rule]
        print(f"  {rule}{_first_time(outcome, some)}")
        for violation in some[:_SHOWN]:
            print(f"    {violation.text}")
            for operation in violation.operations:
                print(f"      {_as_text(operation)}", flush=True)


def _first_time(outcome: Outcome, some: list[Violation]) -> str:
    """How long it took until an answer was given that breaks the rule."""
    times = [max(op.returned for op in violation.operations) for violation in some if violation.operations]
    if not times:
        return ""
    began = min(operation.invoked for operation in outcome.history.operations)
    before = sum(operation.returned <= min(times) for operation in outcome.history.operations)
    return f", first after {min(times) - began:.1f} s and {before} operations"


def _as_text(operation: Operation) -> str:
    found = {name: value for name, value in asdict(operation).items() if value not in ("", 0, [])}
    return json.dumps(found)


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "none"


if __name__ == "__main__":
    sys.exit(main())
