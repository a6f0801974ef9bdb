"""What is counted, whoever shows it: server and function count alike, and differ in how it leaves the process."""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from infra.telemetry import catalogue
from infra.telemetry.catalogue import DURATION_BUCKETS, Metric
from infra.telemetry.instruments import Counter, Histogram
from infra.telemetry.trace_context import NoSpans, Spans

# Read when somebody asks for metrics; a value that cannot be read now is left out
Gauges = Callable[[], dict[str, float]]

_COMMITS = 20  # the newest, for whoever looks at them
_DELAYS = 120  # of the event loop, which is asked twice a second: those of a minute
_WRITES, _REFUSED = ("POST", "PUT", "PATCH", "DELETE"), ("503", "507")
_NOT_OF_THE_API = ("/health", "/ready", "/metrics", "/dashboard", "/ops", "/docs", "/openapi.json")


@dataclass(frozen=True, slots=True)
class Totals:
    """What this process has counted since it began, for whoever measures objectives: differences of two are a rate.

    Requests are those of the API: health checks, metrics, the dashboard and its questions would flatter the numbers.
    """

    requests: int = 0
    errors: int = 0  # of these, answered 5xx
    durations: tuple[int, ...] = (0,) * (len(DURATION_BUCKETS) + 1)  # of requests, not cumulative
    queries: tuple[int, ...] = (0,) * (len(DURATION_BUCKETS) + 1)  # use cases run in SQLite, not cumulative
    commits: int = 0
    conflicts: int = 0
    unknown: int = 0  # outcomes of commits
    writes: int = 0  # of the requests
    refused: int = 0  # of these, answered 503 or 507
    locked: int = 0  # of the requests, those that another program's lock has refused


class Metrics:
    """What the service counts. Any thread may; each series is made once, and whoever counts often keeps it."""

    def __init__(self, new_histogram: Callable[[tuple[float, ...]], Histogram] = Histogram) -> None:
        self.counters: dict[str, dict[tuple[str, ...], Counter]] = {}  # by the metric's name and the labels' values
        self.histograms: dict[str, dict[tuple[str, ...], Histogram]] = {}
        self.spans: Spans = NoSpans()  # told how long things take, as well
        self._new_histogram = new_histogram
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self.in_flight = 0  # requests, for the event loop to count
        self._loop_delays: deque[float] = deque(maxlen=_DELAYS)
        self.newest_writes: deque[tuple[int, int]] = deque(maxlen=_COMMITS)  # TXIDs, and how many writes share each
        self._locked = self.counter(catalogue.DATABASE_LOCKED)
        self._queue = self.histogram(catalogue.QUEUE_DURATION)
        self._queries = {kind: self.histogram(catalogue.QUERY_DURATION, kind) for kind in ("read", "write")}
        self._busy = self.counter(catalogue.DATABASE_BUSY)
        self._lock_waits = self.histogram(catalogue.LOCK_WAIT_DURATION)
        self._commits = self.counter(catalogue.COMMITS)
        self._commit_durations = self.histogram(catalogue.COMMIT_DURATION)
        self._commit_bytes = self.counter(catalogue.COMMIT_BYTES)
        self._shared = self.histogram(catalogue.WRITES_PER_COMMIT)
        self._conflicts = self.counter(catalogue.CONFLICTS)
        self._retries = self.counter(catalogue.RETRIES)
        self._unknown_outcomes = self.counter(catalogue.UNKNOWN_OUTCOMES)
        self._asked: dict[tuple[str, str, bool], Histogram] = {}
        for result in catalogue.MAINTENANCE_RUNS.labels["result"]:
            self.counter(catalogue.MAINTENANCE_RUNS, result)
        self.histogram(catalogue.MAINTENANCE_DURATION)
        self._lines = {level: self.counter(catalogue.LOG_LINES, level) for level in catalogue.LOG_LINES.labels["level"]}

    def counter(self, metric: Metric, *labels: str) -> Counter:
        return self.counters.setdefault(metric.name, {}).setdefault(labels, Counter())

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        return self.histograms.setdefault(metric.name, {}).setdefault(labels, self._new_histogram(metric.buckets))

    def leave_out(self, metrics: Iterable[Metric]) -> None:
        """Do not show what does not apply."""
        for metric in metrics:
            self.counters.pop(metric.name, None)
            self.histograms.pop(metric.name, None)

    # Requests

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        requests, durations = self._requests.get((method, route, status)) or self._bind(method, route, status)
        requests.add()
        durations.observe(seconds)

    def request_refused(self, status: int) -> None:
        """Count what was answered before it was a request, as it is none, or did not arrive."""
        self.counter(catalogue.HTTP_REQUESTS, "other", "none", str(status)).add()

    def caller_refused(self, reason: str) -> None:
        self.counter(catalogue.CALLERS_REFUSED, reason).add()

    def database_locked(self) -> None:
        self._locked.add()

    def _bind(self, method: str, route: str, status: int) -> tuple[Counter, Histogram]:
        found = (
            self.counter(catalogue.HTTP_REQUESTS, method, route, str(status)),
            self.histogram(catalogue.HTTP_DURATION, method, route),
        )
        return self._requests.setdefault((method, route, status), found)

    # The database and its log

    def query_finished(self, kind: str, seconds: float) -> None:
        self._queries[kind].observe(seconds)
        self.spans.worked("transaction" if kind == "write" else "query", seconds)

    def write_queued(self, seconds: float) -> None:
        self._queue.observe(seconds)
        self.spans.worked("queue", seconds)

    def use_case_repeated(self) -> None:
        self._retries.add()

    def lock_met(self) -> None:
        self._busy.add()

    def lock_waited(self, seconds: float) -> None:
        self._lock_waits.observe(seconds)

    def commit_stored(self, size: int, seconds: float) -> None:
        self._commits.add()
        self._commit_bytes.add(size)
        self._commit_durations.observe(seconds)

    def commit_shared(self, txid: int, writes: int) -> None:
        self._shared.observe(writes)
        self.newest_writes.append((txid, writes))

    def commit_conflicted(self) -> None:
        self._conflicts.add()

    def outcome_unknown(self) -> None:
        self._unknown_outcomes.add()

    # The stores

    def log_asked(self, verb: str, answered: bool, seconds: float) -> None:
        self._store_asked("log", verb, answered, seconds)
        if verb == "put":
            self.spans.stored(seconds, answered)

    def backups_asked(self, verb: str, answered: bool, seconds: float) -> None:
        self._store_asked("backups", verb, answered, seconds)

    def _store_asked(self, store: str, verb: str, answered: bool, seconds: float) -> None:
        key = store, verb, answered
        found = self._asked.get(key)
        if not found:
            found = self.histogram(catalogue.STORE_DURATION, store, verb, "ok" if answered else "failed")
            self._asked[key] = found
        found.observe(seconds)

    # Maintenance

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None:
        self.counter(catalogue.MAINTENANCE_RUNS, "succeeded" if succeeded else "failed").add()
        self.histogram(catalogue.MAINTENANCE_DURATION).observe(seconds)

    # The process

    def loop_delayed(self, seconds: float) -> None:
        self._loop_delays.append(seconds)

    def line_logged(self, level: int) -> None:
        self._lines["CRITICAL" if level >= logging.CRITICAL else "ERROR" if level >= logging.ERROR else "WARNING"].add()

    # What has come together

    def gauges(self) -> dict[str, float]:
        found: dict[str, float] = {catalogue.HTTP_IN_FLIGHT.name: self.in_flight}
        if delays := list(self._loop_delays):
            found[catalogue.EVENT_LOOP_DELAY.name] = max(delays)
        return found

    def totals(self) -> Totals:
        counted = list(self.counters.get(catalogue.HTTP_REQUESTS.name, {}).items())
        requests = [(key, counter.value) for key, counter in counted if _is_of_the_api(key[1])]
        durations = self.histograms.get(catalogue.HTTP_DURATION.name, {})
        writes = [(status, value) for (method, _, status), value in requests if method in _WRITES]
        return Totals(
            requests=int(sum(value for _, value in requests)),
            errors=int(sum(value for (_, _, status), value in requests if status >= "500")),
            durations=_added_up([found for (_, route), found in list(durations.items()) if _is_of_the_api(route)]),
            queries=_added_up(list(self._queries.values())),
            commits=int(self._commits.value),
            conflicts=int(self._conflicts.value),
            unknown=int(self._unknown_outcomes.value),
            writes=int(sum(value for _, value in writes)),
            refused=int(sum(value for status, value in writes if status in _REFUSED)),
            locked=int(self._locked.value),
        )

    def exposition(self, gauges: Gauges) -> tuple[bytes, str]:
        """Write all of it as Prometheus text; returns its media type, too."""
        from infra.telemetry.prometheus import MEDIA_TYPE, as_text  # a function has no use for it, as a rule

        return as_text(self, gauges), MEDIA_TYPE


def _is_of_the_api(route: str) -> bool:
    return not route.startswith(_NOT_OF_THE_API)


def _added_up(histograms: list[Histogram]) -> tuple[int, ...]:
    counts = [histogram.counts for histogram in histograms]
    return tuple(map(sum, zip(*counts, strict=True))) if counts else Totals().durations
