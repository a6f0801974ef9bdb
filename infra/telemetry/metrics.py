"""What is counted, whoever shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

# Read when somebody asks for metrics; a value that cannot be read now is left out
Gauges = Callable[[], dict[str, float]]


# Seconds: a request or a statement is counted in the first that it does not exceed, or behind the last
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)


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


class Metrics(Protocol):
    """What the service counts. Implemented for Prometheus and for CloudWatch."""

    def request_finished(self, method: str, route: str, status: int, seconds: float) -> None: ...

    def caller_refused(self, reason: str) -> None: ...

    def database_locked(self) -> None: ...

    def maintenance_finished(self, succeeded: bool, seconds: float) -> None: ...

    def totals(self) -> Totals: ...

    def exposition(self, gauges: Gauges) -> tuple[bytes, str]:
        """Prometheus text and its media type."""
