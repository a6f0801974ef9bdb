"""The alerts that the service can raise itself: what somebody should act on now.

Names, severities and places in RUNBOOK.md are those of the Prometheus rules in infra/monitoring/, which know some more:
what only an outsider sees, and what needs a longer memory than a process has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from infra.maintenance.report import Report
from infra.objectives.history import A_FEW, DAY, HOUR, History
from infra.objectives.quantile import beyond, quantile
from infra.objectives.status import Severity, Span
from infra.telemetry.metrics import Totals

_MB = 1024 * 1024
_OLD_DRILL_SECONDS = 45 * DAY
_OLD_PROOF_SECONDS = 2 * DAY
_FALLEN_SECONDS = 300.0  # as long as a rule over five minutes would see it
_MANY_CONFLICTS = 10


@dataclass(frozen=True, slots=True)
class Facts:
    """What the conditions are asked of. Times are seconds since 1970."""

    now: float
    history: History
    gauges: Mapping[str, float] = field(default_factory=dict)
    report: Report = field(default_factory=Report)  # the newest that is known of maintenance
    maintained_within: float = 0.0  # seconds: how old the last success may be; 0 when nobody here knows
    started: float = 0.0  # before that, nobody can be blamed for what was not done

    def counts(self, span: Span = "5m") -> Totals:
        """Return what was counted within a span up to now."""
        return self.history.window(span).counts

    @property
    def error_rate(self) -> float:
        """Of the last five minutes; 0 while there are so few errors that one more or less would say something else."""
        counts = self.counts()
        return counts.errors / counts.requests if counts.errors >= A_FEW else 0.0

    def p95(self, of: str, slow: float) -> float:
        """Return the 95th percentile of the last five minutes; 0 while only a few took longer than `slow` seconds."""
        durations = getattr(self.counts(), of)
        return quantile(0.95, durations) or 0.0 if beyond(slow, durations) >= A_FEW else 0.0

    def age(self, gauge: str) -> float | None:
        """Return how long ago a moment was, None when it is not known."""
        return self.now - self.gauges[gauge] if gauge in self.gauges else None

    def share(self, part: str, whole: str) -> float:
        """Return which part of a gauge another one is; 0 when one is not known."""
        return self.gauges.get(part, 0.0) / self.gauges[whole] if self.gauges.get(whole) else 0.0


Condition = Callable[[Facts], str]  # what is the matter, or nothing


@dataclass(frozen=True, slots=True)
class Alert:
    """A row of the table in RUNBOOK's "Alerts"."""

    name: str
    severity: Severity
    says: Condition

    @property
    def runbook(self) -> str:
        return f"RUNBOOK.md#alert-{self.name.lower()}"


def _not_ready(facts: Facts) -> str:
    return facts.history.noted.unready and f"Nothing can be served: {facts.history.noted.unready}"


def _store_away(facts: Facts) -> str:
    return facts.history.noted.degraded and f"Requests can be served in part only: {facts.history.noted.degraded}"


def _log_unsound(facts: Facts) -> str:
    if not facts.report.unsound:
        return ""
    return ": ".join(["The last proof of log and backups has failed", *facts.report.problems[:1]])


def _high_error_rate(facts: Facts) -> str:
    return _errors(facts.error_rate) if facts.error_rate > 0.05 else ""


def _elevated_error_rate(facts: Facts) -> str:
    return _errors(facts.error_rate) if 0.01 < facts.error_rate <= 0.05 else ""


def _errors(rate: float) -> str:
    return f"{100 * rate:.1f} % of the requests of the last five minutes were answered with an error."


def _writes_refused(facts: Facts) -> str:
    if reason := facts.history.noted.unwritable:
        return f"Nothing can be written: {reason}"
    refused = facts.counts().refused
    return f"{refused} writes of the last five minutes were answered 503 or 507." if refused >= A_FEW else ""


def _slow_responses(facts: Facts) -> str:
    return _slow(p95) if (p95 := facts.p95("durations", 0.5)) > 1 else ""


def _slower_responses(facts: Facts) -> str:
    return _slow(p95) if 0.5 < (p95 := facts.p95("durations", 0.5)) <= 1 else ""


def _slow(p95: float) -> str:
    return f"One request in twenty of the last five minutes took {p95:.2f} s or longer."


def _slow_queries(facts: Facts) -> str:
    p95 = facts.p95("queries", 0.05)
    return f"One query in twenty of the last five minutes took {1000 * p95:.0f} ms or longer." if p95 > 0.05 else ""


def _database_locked(facts: Facts) -> str:
    locked = facts.counts().locked
    return f"Requests of the last five minutes that another program's lock has refused: {locked}." if locked else ""


def _disk_filling(facts: Facts) -> str:
    free = facts.share("data_volume_free_bytes", "data_volume_size_bytes")
    is_known = "data_volume_free_bytes" in facts.gauges and "data_volume_size_bytes" in facts.gauges
    return f"The disk of the database is {100 * (1 - free):.0f} % full." if is_known and free < 0.2 else ""


def _memory_high(facts: Facts) -> str:
    share = facts.share("memory_bytes", "memory_limit_bytes")
    return f"The process uses {100 * share:.0f} % of the memory that it may." if share > 0.9 else ""


def _wal_large(facts: Facts) -> str:
    size = facts.gauges.get("database_wal_size_bytes", 0.0)
    return f"The write-ahead log has {size / _MB:,.0f} MiB: some reader never finishes." if size > 100 * _MB else ""


def _maintenance_failing(facts: Facts) -> str:
    if facts.report.problems:
        return f"Maintenance has found a problem, and deletes nothing: {facts.report.problems[0]}"
    since = facts.now - max(facts.report.last_success, facts.started)
    if facts.maintained_within and since > facts.maintained_within:
        return f"Maintenance has not succeeded for {since / HOUR:.1f} hours."
    return ""


def _backup_old(facts: Facts) -> str:
    age = facts.gauges.get("unbacked_seconds", 0.0)
    return f"No backup holds what was written in the last {age / HOUR:.1f} hours." if age > 2 * HOUR else ""


def _proof_old(facts: Facts) -> str:
    if not facts.maintained_within:
        return ""
    age = facts.now - (facts.report.verified.at if facts.report.verified else facts.history.began)
    return f"Log and backups were not proven for {age / DAY:.1f} days." if age > _OLD_PROOF_SECONDS else ""


def _drill_old(facts: Facts) -> str:
    if facts.gauges.get("restore_drill_failed"):
        return "The last restore drill has failed; `python -m infra status` says why."
    age = facts.age("restore_drill_last_success_timestamp_seconds")
    if age is None and facts.now - facts.history.began > _OLD_DRILL_SECONDS:
        return "There was never a restore drill."
    return f"The last restore drill was {age / DAY:.0f} days ago." if age and age > _OLD_DRILL_SECONDS else ""


def _restarting(facts: Facts) -> str:
    starts = facts.history.window("24h").starts
    return f"The service was started again {starts} times within a day." if starts >= 3 else ""


def _unknown_outcomes(facts: Facts) -> str:
    unknown = facts.counts("1h").unknown
    return f"{unknown} writes of the last hour may be stored or not." if unknown else ""


def _conflicts(facts: Facts) -> str:
    counts = facts.counts()
    if counts.conflicts < max(_MANY_CONFLICTS, counts.commits):
        return ""
    return f"{counts.conflicts} commits of the last five minutes lost to another instance, {counts.commits} did not."


def _other_log(facts: Facts) -> str:
    if not facts.history.noted.fell or facts.now - facts.history.noted.fell > _FALLEN_SECONDS:
        return ""
    return "The number of the newest commit has fallen: this is another log than before."


# The worst first
ALERTS = (
    Alert("NotReady", "P0", _not_ready),
    Alert("LogUnsound", "P0", _log_unsound),
    Alert("StoreAway", "P1", _store_away),
    Alert("HighErrorRate", "P1", _high_error_rate),
    Alert("WritesRefused", "P1", _writes_refused),
    Alert("SlowResponses", "P1", _slow_responses),
    Alert("MaintenanceFailing", "P1", _maintenance_failing),
    Alert("BackupOld", "P1", _backup_old),
    Alert("OtherLog", "P1", _other_log),
    Alert("Restarting", "P1", _restarting),
    Alert("ElevatedErrorRate", "P2", _elevated_error_rate),
    Alert("SlowerResponses", "P2", _slower_responses),
    Alert("SlowQueries", "P2", _slow_queries),
    Alert("DatabaseLocked", "P2", _database_locked),
    Alert("DiskFilling", "P2", _disk_filling),
    Alert("ProofOld", "P2", _proof_old),
    Alert("UnknownOutcomes", "P2", _unknown_outcomes),
    Alert("MemoryHigh", "P3", _memory_high),
    Alert("WalLarge", "P3", _wal_large),
    Alert("DrillOld", "P3", _drill_old),
    Alert("Conflicts", "P3", _conflicts),
)
