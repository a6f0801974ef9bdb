"""Every metric there is: what is counted, shown on /metrics and printed for CloudWatch is made from this table."""

from dataclasses import dataclass, field
from typing import Literal

Labels = dict[str, tuple[str, ...]]  # with the values that each may have; of () by whoever counts, and few as well

# Seconds: a request or a statement is counted in the first that it does not exceed, or behind the last
DURATION_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.5, 5.0, 10.0)
_RUN_BUCKETS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0)
_SHARED_BUCKETS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """`name`: with its base unit. `is_shared`: of the log or the backups, and so the same wherever it is asked, instead
    of one process. `on_lambda`: whether a function prints it. `dimension`: the label that CloudWatch tells apart, each
    value of which is paid for.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Labels = field(default_factory=dict)
    buckets: tuple[float, ...] = ()
    is_shared: bool = False
    on_lambda: bool = True
    dimension: str = ""

    @property
    def unit(self) -> Literal["Seconds", "Bytes", "Count"]:
        if "_seconds" in self.name:
            return "Seconds"
        return "Bytes" if "_bytes" in self.name else "Count"


_ROUTED: Labels = {"method": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "other"), "route": ()}

HTTP_REQUESTS = Metric(
    "http_requests_total", "counter", "Requests answered", {**_ROUTED, "status": ()}, dimension="status"
)
HTTP_DURATION = Metric(
    "http_request_duration_seconds", "histogram", "Time from request to answer", _ROUTED, DURATION_BUCKETS
)
HTTP_IN_FLIGHT = Metric("http_requests_in_flight", "gauge", "Requests that are being answered now", on_lambda=False)
CALLERS_REFUSED = Metric("callers_refused_total", "counter", "Requests of callers not let in", {"reason": ()})
EVENT_LOOP_DELAY = Metric(
    "event_loop_delay_seconds",
    "gauge",
    "How much later than asked for the event loop came back, at most, in the last minute",
    on_lambda=False,
)

QUEUE_DURATION = Metric(
    "database_queue_duration_seconds", "histogram", "Time a write waited for its turn", buckets=DURATION_BUCKETS
)
QUERY_DURATION = Metric(
    "database_query_duration_seconds",
    "histogram",
    "Time of a use case in the database, without queue and store",
    {"kind": ("read", "write")},
    DURATION_BUCKETS,
)
DATABASE_LOCKED = Metric("database_locked_total", "counter", "Requests refused because the database was locked")
DATABASE_BUSY = Metric("database_busy_total", "counter", "Times that another connection's lock kept SQLite out")
LOCK_WAIT_DURATION = Metric(
    "database_lock_wait_duration_seconds",
    "histogram",
    "Time such a lock was waited for, in vain or not",
    buckets=DURATION_BUCKETS,
)
DATABASE_SIZE = Metric("database_size_bytes", "gauge", "Size of the database")
WAL_SIZE = Metric("database_wal_size_bytes", "gauge", "Size of its write-ahead log", on_lambda=False)
KEPT_FILES = Metric(
    "database_kept_files",
    "gauge",
    "Files beside the database that have what the log has not, for somebody to look into",
    on_lambda=False,
)
WRITES_WAITING = Metric("database_writes_waiting", "gauge", "Writes that wait for their turn now", on_lambda=False)
VOLUME_FREE = Metric(
    "data_volume_free_bytes", "gauge", "Room left for the database on its volume, for our user", on_lambda=False
)
VOLUME_SIZE = Metric("data_volume_size_bytes", "gauge", "Room of that volume, in use and left", on_lambda=False)

COMMITS = Metric("commit_log_commits_total", "counter", "Commits stored")
COMMIT_DURATION = Metric(
    "commit_log_commit_duration_seconds", "histogram", "Time to store a commit", buckets=DURATION_BUCKETS
)
COMMIT_BYTES = Metric("commit_log_written_bytes_total", "counter", "Bytes of the commits stored")
WRITES_PER_COMMIT = Metric(
    "commit_log_writes_per_commit", "histogram", "Requests whose writes share a commit", buckets=_SHARED_BUCKETS
)
CONFLICTS = Metric("commit_log_conflicts_total", "counter", "Commits lost to another instance's, and tried again")
RETRIES = Metric(
    "commit_log_retries_total", "counter", "Use cases run again: after a conflict, or alone after sharing a commit"
)
UNKNOWN_OUTCOMES = Metric(
    "commit_log_unknown_outcomes_total", "counter", "Commits of which nobody could say whether they are stored"
)
TXID = Metric("commit_log_txid", "gauge", "Newest commit that reads see")
LAG = Metric("commit_log_lag_commits", "gauge", "Commits known to be in the log that reads do not see", on_lambda=False)
UNSAVED = Metric(
    "commit_log_unsaved_seconds",
    "gauge",
    "How long other programs' commits have been in the file and not in the log",
    on_lambda=False,
)
SINCE_COMPACTION = Metric(
    "commit_log_commits_since_compaction", "gauge", "Commits that no merged run holds yet", is_shared=True
)
SINCE_SNAPSHOT = Metric(
    "commit_log_commits_since_snapshot", "gauge", "Commits since the newest proven snapshot", is_shared=True
)
STORE_DURATION = Metric(
    "store_request_duration_seconds",
    "histogram",
    "Time to an answer of the store, or to none",
    {"store": ("log", "backups"), "verb": ("put", "get", "list", "delete"), "result": ("ok", "failed")},
    DURATION_BUCKETS,
)

MAINTENANCE_RUNS = Metric(
    "maintenance_runs_total", "counter", "Runs of maintenance", {"result": ("succeeded", "failed")}, dimension="result"
)
MAINTENANCE_DURATION = Metric(
    "maintenance_duration_seconds", "histogram", "Time of a run of maintenance", buckets=_RUN_BUCKETS
)
MAINTENANCE_LAST = Metric(
    "maintenance_last_success_timestamp_seconds", "gauge", "When maintenance last did all", is_shared=True
)
VERIFICATION_LAST = Metric(
    "verification_last_success_timestamp_seconds",
    "gauge",
    "When log and backup were last restored and found sound",
    is_shared=True,
)
UNSOUND = Metric(
    "commit_log_unsound", "gauge", "1 if log or backup were not sound when last proven, 0 if they were", is_shared=True
)
BACKUP_TIME = Metric("backup_newest_timestamp_seconds", "gauge", "When the newest backup was made", is_shared=True)
BACKUP_SIZE = Metric("backup_newest_size_bytes", "gauge", "Size of the newest backup, compressed", is_shared=True)
BACKUP_LAG = Metric(
    "backup_lag_seconds", "gauge", "Age, at most, of the oldest write that no backup has; 0 for none", is_shared=True
)
DRILL_DURATION = Metric(
    "restore_drill_duration_seconds", "gauge", "Time that the last restore drill took: the RTO", is_shared=True
)
DRILL_LAST = Metric(
    "restore_drill_last_success_timestamp_seconds", "gauge", "When a restore drill last succeeded", is_shared=True
)
DRILL_DUE = Metric(
    "restore_drill_due_timestamp_seconds",
    "gauge",
    "When the next restore drill is due: at once when the last has failed",
    is_shared=True,
    on_lambda=False,
)

LOG_LINES = Metric(
    "log_lines_total", "counter", "Lines of the log, from WARNING on", {"level": ("WARNING", "ERROR", "CRITICAL")}
)
BUILD_INFO = Metric(
    "build_info",
    "gauge",
    "1, of the release that runs",
    {"version": (), "revision": (), "python": (), "sqlite": ()},
    on_lambda=False,
)
COLD_STARTS = Metric("cold_starts_total", "counter", "Execution environments of Lambda that have begun")

# What is not counted where PostgreSQL is the database, which has no log of ours and is not looked after by us
OF_THE_LOG = (
    DATABASE_BUSY,
    LOCK_WAIT_DURATION,
    COMMIT_BYTES,
    WRITES_PER_COMMIT,
    STORE_DURATION,
    MAINTENANCE_RUNS,
    MAINTENANCE_DURATION,
)

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
BY_NAME = {metric.name: metric for metric in METRICS}
