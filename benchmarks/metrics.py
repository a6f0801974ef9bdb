"""What it costs to count, in Markdown.

`make bench-metrics`. In process: what lies between a loop that counts and one that does nothing, at best.
"""

import time
from collections.abc import Callable
from functools import partial

from infra.telemetry.metrics import Metrics

CALLS, ROUNDS = 50_000, 7


def main() -> None:
    metrics = Metrics()
    facts: dict[str, list[Callable[[], object]]] = {
        "a request": [partial(metrics.request_finished, "GET", "/api/items", 200, 0.003)],
        "a query": [partial(metrics.query_finished, "read", 0.0004)],
        "a request to a store": [partial(metrics.log_asked, "put", True, 0.02)],
        "a write's wait in the queue": [partial(metrics.write_queued, 0.001)],
        "a commit, and how many share it": [
            partial(metrics.commit_stored, 1500, 0.02),
            partial(metrics.commit_shared, 12),
        ],
        "a conflict, a retry, a lock, an unknown outcome, each": [metrics.commit_conflicted],
    }
    print("| counted | microseconds |\n|---|---|")
    for fact, calls in facts.items():
        print(f"| {fact} | {sum(map(microseconds, calls)):.2f} |")
    exposed = microseconds(lambda: metrics.exposition(dict), 100)
    print(f"| all of it, shown once on /metrics | {exposed:,.0f} |")


def microseconds(call: Callable[[], object], calls: int = CALLS) -> float:
    return min(_round(call, calls) - _round(_nothing, calls) for _ in range(ROUNDS)) / calls * 1e6


def _round(call: Callable[[], object], calls: int) -> float:
    started = time.perf_counter()
    for _ in range(calls):
        call()
    return time.perf_counter() - started


def _nothing() -> None:
    pass


if __name__ == "__main__":
    main()
