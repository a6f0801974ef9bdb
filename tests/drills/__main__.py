"""Rehearse the runbook's incidents in containers, one after the other, and measure how they end: make drill

Exit code 0: each ended as it is promised; 1: one did not; 2: no containers here.
"""

import argparse
import signal
import sys
import time
from itertools import groupby
from pathlib import Path
from tempfile import mkdtemp

from core import __version__
from infra.maintenance.drill import RTO_SECONDS
from tests.drills.drills import DRILLS, RPO_SECONDS, Drill, Outcome, rehearse
from tests.drills.place import NAME, Place, made_place
from tests.e2e.checkout import why_no_container


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    names = [drill.name for drill in DRILLS]
    parser.add_argument("--only", action="append", choices=names, help="the others are left out; may be repeated")
    arguments = parser.parse_args()
    if reason := why_no_container(NAME):
        print(reason, file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the containers are removed first
    begun = time.monotonic()
    chosen = [drill for drill in DRILLS if not arguments.only or drill.name in arguments.only]
    with made_place(Path(mkdtemp(prefix="drill-"))) as place:
        outcomes = carry_out(chosen, place)
    print(f"\n{report(outcomes)}\n\n{len(outcomes)} drills in {time.monotonic() - begun:.0f} s")
    return int(any(outcome.failure for outcome in outcomes))


def carry_out(drills: list[Drill], place: Place) -> list[Outcome]:
    """Each in the place that it needs, which is made anew after one that failed."""
    outcomes: list[Outcome] = []
    for setup, members in groupby(drills, lambda drill: drill.setup):
        is_well = False
        for drill in members:
            if not is_well:
                print(f"\nbegun anew: {setup}", flush=True)
                place.begin(setup)
            outcomes.append(outcome := rehearse(drill, place))
            is_well = not outcome.failure
    return outcomes


def report(outcomes: list[Outcome]) -> str:
    """As Markdown."""
    lines = [
        f"# Drills of release {__version__}",
        "",
        "Seconds since the cause; RTO: until a write is acknowledged again; RPO: how old the oldest lost write was.",
        "",
        "| drill | noticed | RTO | promised | RPO | promised | lost of acknowledged | longest pause | ended |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        promised = f"{RPO_SECONDS:.0f}" if one.promised_seconds else "0"
        lines.append(
            f"| {one.name} | {one.noticed:.1f} | {one.recovered:.1f} | {RTO_SECONDS:.0f} | {one.lost_seconds:.1f} | "
            f"{promised} | {one.lost} of {one.writes} | {one.pause:.1f} | {'FAILED' if one.failure else 'well'} |"
        )
    failures = [f"- {one.name}: {one.failure}" for one in outcomes if one.failure]
    return "\n".join([*lines, "", *failures] if failures else lines)


if __name__ == "__main__":
    sys.exit(main())
