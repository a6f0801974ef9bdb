"""What it costs to count, in Markdown.

`make bench-metrics`. In process: what lies between a loop that counts and one that does nothing, at best.
"""

import time
from collections.abc import Callable
from functools import partial

from infra.telemetry.metrics import Metrics

CALLS, ROUNDS = 1_000, 400


def main() -> None:
    metrics = Metrics()
    facts: dict[str, Callable[[], object]] = {
        "a request": partial(metrics.request_finished, "GET", "/api/items", 200, 0.003),
        "a use case in SQLite": partial(metrics.query_finished, "read", 0.0004),
        "a write's wait in the queue": partial(metrics.write_queued, 0.001),
        "a commit": partial(metrics.commit_stored, 1500, 0.02),
        "how many writes share it": partial(metrics.commit_shared, 7, 12),
        "a request to a store": partial(metrics.log_asked, "put", True, 0.02),
        "a conflict, a retry, a lock or an unknown outcome": metrics.commit_conflicted,
        "a line of the log, from WARNING on": partial(metrics.line_logged, 30),
    }
    nothing = microseconds(_nothing)
    print("| counted | microseconds |\n|---|---|")
    for fact, call in facts.items():
        print(f"| {fact} | {microseconds(call) - nothing:.1f} |")
    print(f"| all of it, shown on `/metrics` | {microseconds(lambda: metrics.exposition(dict), 10):,.0f} |")


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    """The best of many short rounds: whatever else the machine does only adds to it."""
    return min(_round(call, calls) for _ in range(ROUNDS)) / calls * 1e6


def _round(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
