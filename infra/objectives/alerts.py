"""The alerts that the service can raise itself: what somebody should act on now.

Names, severities, limits and places in RUNBOOK.md are those of the Prometheus rules in infra/monitoring/, and a test
compares them. The rules wait until something has lasted a while; the service waits until it was seen a few times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra.maintenance.report import Report
from infra.objectives.history import A_FEW, DAY, HOUR, SPANS, History
from infra.objectives.quantile import beyond, quantile
from infra.objectives.status import Cause, Severity, Span
from infra.telemetry.metrics import Totals

_MB = 1024 * 1024
_ROOM = 64 * 1024  # bytes: on a disk with less, nothing can be written


@dataclass(frozen=True, slots=True)
class Facts:
    """What the conditions are asked of. Times are seconds since 1970."""

    now: float
    history: History
    gauges: Mapping[str, float] = field(default_factory=dict)
    report: Report = field(default_factory=Report)  # the newest that is known of maintenance
    maintained_within: float = 0.0  # seconds: how old the last success may be; 0 when nobody here knows
    started: float = 0.0  # before that, nobody can be blamed for what was not done
    down: str = ""  # why nobody answers, which only somebody else can know

    def counts(self, over: Span) -> Totals:
        """Return what was counted within a span up to now."""
        return self.history.window(over).counts

    def error_rate(self, over: Span) -> float:
        """0 while there are so few errors that one more or less would say something else."""
        counts = self.counts(over)
        return counts.errors / counts.requests if counts.errors >= A_FEW else 0.0

    def p95(self, of: str, slow: float, over: Span) -> float:
        """Return the 95th percentile; 0 while only a few took longer than `slow` seconds."""
        durations = getattr(self.counts(over), of)
        return quantile(0.95, durations) or 0.0 if beyond(slow, durations) >= A_FEW else 0.0

    def share(self, part: str, whole: str) -> float | None:
        """Return which part of a gauge another one is, None when one is not known."""
        if part in self.gauges and self.gauges.get(whole):
            return self.gauges[part] / self.gauges[whole]
        return None


Condition = Callable[..., str]  # of Facts and the limits, and the span if there is one: what is the matter, or nothing


@dataclass(frozen=True, slots=True)
class Alert:
    """A row of the table in RUNBOOK's "Alerts". `limits`: what is beyond them is wrong, in the units of the metrics.
    `over`: of what was counted, the span.
    """

    name: str
    severity: Severity
    condition: Condition
    limits: tuple[float, ...] = ()
    over: Span | None = None

    def says(self, facts: Facts) -> str:
        """Return what is the matter, in a sentence; nothing while all is well."""
        return self.condition(facts, *self.limits, *([self.over] if self.over else []))

    @property
    def runbook(self) -> str:
        return f"RUNBOOK.md#alert-{self.name.lower()}"


def _service_down(facts: Facts) -> str:
    return facts.down and f"Nobody answers: {facts.down}"


def _not_ready(facts: Facts) -> str:
    return facts.history.noted.unready and f"Nothing can be served: {facts.history.noted.unready}"


def _store_away(facts: Facts) -> str:
    return _in_part(facts, "store")


def _in_part(facts: Facts, cause: Cause) -> str:
    noted = facts.history.noted
    if not noted.degraded or noted.cause != cause:
        return ""
    return f"Requests can be served in part only: {noted.degraded}"


def _log_unsound(facts: Facts) -> str:
    if facts.report.unsound:
        return ": ".join(["The last proof of log and backups has failed", *facts.report.problems[:1]])
    return _in_part(facts, "unsound")


def _other_log(facts: Facts, over: Span) -> str:
    if (fell := facts.history.noted.fell) and facts.now - fell <= SPANS[over]:
        return "The number of the newest commit has fallen: this is another log than before."
    return _in_part(facts, "other_log")


def _high_error_rate(facts: Facts, above: float, over: Span) -> str:
    return _errors(rate) if (rate := facts.error_rate(over)) > above else ""


def _elevated_error_rate(facts: Facts, above: float, high: float, over: Span) -> str:
    return _errors(rate) if above < (rate := facts.error_rate(over)) <= high else ""


def _errors(rate: float) -> str:
    return f"{100 * rate:.1f} % of the requests of the last five minutes were answered with an error."


def why_nothing_is_written(facts: Facts, room: float = _ROOM) -> str:
    """Return what keeps every write from being stored; nothing where there is no such thing."""
    if reason := facts.history.noted.unwritable:
        return reason
    return "the disk of the database is full." if facts.gauges.get("data_volume_free_bytes", room) < room else ""


def _writes_refused(facts: Facts, share: float, room: float, over: Span) -> str:
    if reason := why_nothing_is_written(facts, room):
        return f"Nothing can be written: {reason}"
    counts = facts.counts(over)
    if counts.refused < A_FEW or counts.refused <= share * counts.writes:
        return ""
    return f"{counts.refused} of {counts.writes} writes of the last five minutes were answered 503 or 507."


def _slow_responses(facts: Facts, above: float, over: Span) -> str:
    return _slow(p95) if (p95 := facts.p95("durations", above, over)) > above else ""


def _slower_responses(facts: Facts, above: float, slow: float, over: Span) -> str:
    return _slow(p95) if above < (p95 := facts.p95("durations", above, over)) <= slow else ""


def _slow(p95: float) -> str:
    return f"One request in twenty of the last five minutes took {p95:.2f} s or longer."


def _slow_queries(facts: Facts, above: float, over: Span) -> str:
    p95 = facts.p95("queries", above, over)
    return f"One query in twenty of the last five minutes took {1000 * p95:.0f} ms or longer." if p95 > above else ""


def _database_locked(facts: Facts, over: Span) -> str:
    locked = facts.counts(over).locked
    return f"Requests of the last five minutes that another program's lock has refused: {locked}." if locked else ""


def _disk_filling(facts: Facts, above: float) -> str:
    free = facts.share("data_volume_free_bytes", "data_volume_size_bytes")
    if free is None or 1 - free <= above:
        return ""
    return f"The disk of the database is {100 * (1 - free):.0f} % full."


def _memory_high(facts: Facts, above: float) -> str:
    share = facts.share("memory_bytes", "memory_limit_bytes")
    return f"The process uses {100 * share:.0f} % of the memory that it may." if share and share > above else ""


def _wal_large(facts: Facts, above: float) -> str:
    size = facts.gauges.get("database_wal_size_bytes", 0.0)
    return f"The write-ahead log has {size / _MB:,.0f} MiB: some reader never finishes." if size > above else ""


def _maintenance_failing(facts: Facts, within: float) -> str:
    if facts.report.problems:
        return f"Maintenance has found a problem, and deletes nothing: {facts.report.problems[0]}"
    since = facts.now - max(facts.report.last_success, facts.started)
    # whoever else does it, does it every hour
    within = facts.maintained_within or (within if facts.report.last_success else 0.0)
    return f"Maintenance has not succeeded for {since / HOUR:.1f} hours." if within and since > within else ""


def _backup_old(facts: Facts, above: float) -> str:
    age = facts.gauges.get("backup_lag_seconds", 0.0)
    return f"No backup holds what was written in the last {age / HOUR:.1f} hours." if age > above else ""


def _proof_old(facts: Facts, above: float) -> str:
    if not facts.report.verified and not facts.maintained_within:
        return ""
    age = facts.now - (facts.report.verified.at if facts.report.verified else facts.history.began)
    return f"Log and backups were not proven for {age / DAY:.1f} days." if age > above else ""


def _drill_old(facts: Facts) -> str:
    gauges = facts.gauges
    if facts.now <= gauges.get("restore_drill_due_timestamp_seconds", facts.now):
        return ""
    if gauges.get("restore_drill_failed"):
        return "The last restore drill has failed; `python -m infra status` says why."
    if last := gauges.get("restore_drill_last_success_timestamp_seconds"):
        return f"The last restore drill was {(facts.now - last) / DAY:.0f} days ago."
    return "There was never a restore drill."


def _restarting(facts: Facts, at_least: float, over: Span) -> str:
    starts = facts.history.window(over).starts
    return f"The service was started again {starts} times within a day." if starts >= at_least else ""


def _unknown_outcomes(facts: Facts, over: Span) -> str:
    unknown = facts.counts(over).unknown
    return f"{unknown} writes of the last hour may be stored or not." if unknown else ""


def _conflicts(facts: Facts, at_least: float, over: Span) -> str:
    counts = facts.counts(over)
    if counts.conflicts < max(at_least, counts.commits):
        return ""
    return f"{counts.conflicts} commits of the last five minutes lost to another instance, {counts.commits} did not."


def _files_kept(facts: Facts) -> str:
    kept = int(facts.gauges.get("database_kept_files", 0))
    return f"Files beside the database that have what the log has not: {kept}; look into them." if kept else ""


# The worst first; of the same severity, what is the cause of others
ALERTS = (
    Alert("ServiceDown", "P0", _service_down),
    Alert("NotReady", "P0", _not_ready),
    Alert("LogUnsound", "P0", _log_unsound),
    Alert("StoreAway", "P1", _store_away),
    Alert("OtherLog", "P1", _other_log, over="1h"),
    Alert("WritesRefused", "P1", _writes_refused, (0.05, _ROOM), "5m"),
    Alert("MaintenanceFailing", "P1", _maintenance_failing, (2 * HOUR,)),
    Alert("BackupOld", "P1", _backup_old, (2 * HOUR,)),
    Alert("Restarting", "P1", _restarting, (3,), "24h"),
    Alert("HighErrorRate", "P1", _high_error_rate, (0.05,), "5m"),
    Alert("SlowResponses", "P1", _slow_responses, (1.0,), "5m"),
    Alert("DatabaseLocked", "P2", _database_locked, over="5m"),
    Alert("DiskFilling", "P2", _disk_filling, (0.8,)),
    Alert("ProofOld", "P2", _proof_old, (2 * DAY,)),
    Alert("UnknownOutcomes", "P2", _unknown_outcomes, over="1h"),
    Alert("ElevatedErrorRate", "P2", _elevated_error_rate, (0.01, 0.05), "5m"),
    Alert("SlowerResponses", "P2", _slower_responses, (0.5, 1.0), "5m"),
    Alert("SlowQueries", "P2", _slow_queries, (0.05,), "5m"),
    Alert("MemoryHigh", "P3", _memory_high, (0.9,)),
    Alert("WalLarge", "P3", _wal_large, (100 * _MB,)),
    Alert("DrillOld", "P3", _drill_old),
    Alert("FilesKept", "P3", _files_kept),
    Alert("Conflicts", "P3", _conflicts, (10,), "5m"),
)
