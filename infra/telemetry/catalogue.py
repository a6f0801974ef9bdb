"""Every metric there is: what is counted, shown on /metrics and printed for CloudWatch is made from this table."""

from dataclasses import dataclass, field
from typing import Literal

Labels = dict[str, tuple[str, ...]]  # with the values that each may have; of () by whoever counts, and few as well

# Seconds: a request or a statement is counted in the first that it does not exceed, or behind the last
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
_RUN_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
_FEW_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """`name`: with its base unit. `on_lambda`: whether a function prints it. `dimension`: the label that CloudWatch
    tells apart; each value of one is a metric that is paid for.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    on_lambda: bool = True
    dimension: str = ""

    @property
    def unit(self) -> Literal["Seconds", "Bytes", "Count"]:
        if "_seconds" in self.name:
            return "Seconds"
        return "Bytes" if "_bytes" in self.name else "Count"


_RESULT = ("succeeded", "failed")
_ROUTED: Labels = {"method": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"), "route": ()}

HTTP_REQUESTS = Metric(
    "http_requests_total", "counter", "Requests answered", {**_ROUTED, "status": ()}, dimension="status"
)
HTTP_DURATION = Metric(
    "http_request_duration_seconds", "histogram", "Time from request to answer", _ROUTED, DURATION_BUCKETS
)
CALLERS_REFUSED = Metric("callers_refused_total", "counter", "Requests of callers not let in", {"reason": ()})
DATABASE_LOCKED = Metric("database_locked_total", "counter", "Requests refused because the database was locked")
QUERY_DURATION = Metric(
    "database_query_duration_seconds",
    "histogram",
    "A use case's time in SQLite, without the queue and the store",
    {"kind": ("read", "write")},
    DURATION_BUCKETS,
)
COMMITS = Metric("commit_log_commits_total", "counter", "Commits that this process has stored")
CONFLICTS = Metric("commit_log_conflicts_total", "counter", "Commits lost to another instance's")
UNKNOWN_OUTCOMES = Metric(
    "commit_log_unknown_outcomes_total", "counter", "Commits of which it is not known if they are stored"
)
MAINTENANCE_RUNS = Metric(
    "maintenance_runs_total", "counter", "Runs of maintenance", {"result": _RESULT}, dimension="result"
)
MAINTENANCE_DURATION = Metric(
    "maintenance_duration_seconds", "histogram", "Time a run of maintenance took", buckets=_RUN_BUCKETS
)
COLD_STARTS = Metric("cold_starts_total", "counter", "Execution environments of Lambda that have begun")
DATABASE_SIZE = Metric("database_size_bytes", "gauge", "Size of the database")
WAL_SIZE = Metric("database_wal_size_bytes", "gauge", "Size of its write-ahead log")
WRITES_WAITING = Metric("database_writes_waiting", "gauge", "Writes that wait for their turn", on_lambda=False)
TXID = Metric("commit_log_txid", "gauge", "Newest commit that reads see")
MAINTENANCE_LAST = Metric(
    "maintenance_last_success_timestamp_seconds", "gauge", "When maintenance last did all, seconds since 1970"
)
VERIFICATION_LAST = Metric(
    "verification_last_success_timestamp_seconds",
    "gauge",
    "When log and backup were last restored and found sound, seconds since 1970",
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME = {metric.name: metric for metric in METRICS}
