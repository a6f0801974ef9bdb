"""What is counted, whoever shows it: server and function count alike, and differ in how it leaves the process."""

from collections.abc import Callable
from dataclasses import dataclass

from infra.telemetry import catalogue
from infra.telemetry.catalogue import DURATION_BUCKETS, Metric
from infra.telemetry.instruments import Counter, Histogram

# Read when somebody asks for metrics; a value that cannot be read now is left out
Gauges = Callable[[], dict[str, float]]

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


class Metrics:
    """What the service counts. Any thread may; each series is made once, and whoever counts often keeps it."""

    def __init__(self, new_histogram: Callable[[tuple[float, ...]], Histogram] = Histogram) -> None:
        self.counters: dict[str, dict[tuple[str, ...], Counter]] = {}  # by the metric's name and the labels' values
        self.histograms: dict[str, dict[tuple[str, ...], Histogram]] = {}
        self._new_histogram = new_histogram
        self._requests: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}
        self._locked = self.counter(catalogue.DATABASE_LOCKED)
        self._queries = {kind: self.histogram(catalogue.QUERY_DURATION, kind) for kind in ("read", "write")}
        self._commits = self.counter(catalogue.COMMITS)
        self._conflicts = self.counter(catalogue.CONFLICTS)
        self._unknown_outcomes = self.counter(catalogue.UNKNOWN_OUTCOMES)

    def counter(self, metric: Metric, *labels: str) -> Counter:
        return self.counters.setdefault(metric.name, {}).setdefault(labels, Counter())

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        return self.histograms.setdefault(metric.name, {}).setdefault(labels, self._new_histogram(metric.buckets))

    # Requests

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None:
        requests, durations = self._requests.get((method, route, status)) or self._bind(method, route, status)
        requests.add()
        durations.observe(seconds)

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

    def commit_stored(self) -> None:
        self._commits.add()

    def commit_conflicted(self) -> None:
        self._conflicts.add()

    def outcome_unknown(self) -> None:
        self._unknown_outcomes.add()

    # Maintenance

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None:
        self.counter(catalogue.MAINTENANCE_RUNS, "succeeded" if succeeded else "failed").add()
        self.histogram(catalogue.MAINTENANCE_DURATION).observe(seconds)

    # What has come together

    def totals(self) -> Totals:
        requests = [(key, counter) for key, (counter, _) in list(self._requests.items()) if _is_of_the_api(key[1])]
        durations = self.histograms.get(catalogue.HTTP_DURATION.name, {})
        return Totals(
            requests=int(sum(counter.value for _, counter in requests)),
            errors=int(sum(counter.value for (_, _, status), counter in requests if status >= 500)),
            durations=_added_up([found for (_, route), found in list(durations.items()) if _is_of_the_api(route)]),
            queries=_added_up(list(self._queries.values())),
            commits=int(self._commits.value),
            conflicts=int(self._conflicts.value),
            unknown=int(self._unknown_outcomes.value),
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
