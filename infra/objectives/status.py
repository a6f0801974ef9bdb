"""What /ops/status and /ops/history say, and `python -m infra status`."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import Field

from core.schemas import Model

Span = Literal["5m", "1h", "24h", "30d"]
Severity = Literal["P0", "P1", "P2", "P3"]
State = Literal["well", "attention", "degraded", "down"]
Cause = Literal["store", "other_log", "unsound"]
Moment = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Txid = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether requests can be served. `unready`: why not at all; `degraded`: why not all of them, by the log, None
    when nobody has asked for it: then it is as before; `unwritable`: why no writes, by the file; each empty if they
    can. `cause`: what is the matter with the log: its place, or that it is another one, or damaged.
    """

    unready: str = ""
    degraded: str | None = ""
    cause: Cause = "store"
    unwritable: str = ""


class ServiceView(Model):
    """Which process has answered. `per_instance`: there may be others, of which it knows nothing."""

    name: str
    version: str
    revision: str | None
    started_at: Moment
    instance: str
    per_instance: bool


class ObjectiveView(Model):
    """`budget_left`: of what the target lets go wrong within 30 days, below 0 when more did. `per_instance`: the
    numbers are of the instance that answers alone.
    """

    name: str
    title: str
    target: str
    unit: Literal["ratio", "seconds", "per_day"]
    values: dict[Span, float | None]
    budget_left: float | None
    state: Literal["met", "at_risk", "broken", "unknown"]
    reason: str
    per_instance: bool


class LastView(Model):
    """`what` came last in the minute that begins `at`; `until`: by when the alert is over if no other comes."""

    what: str
    at: Moment
    until: Moment


class AlertView(Model):
    """What somebody should act on now. `runbook`: where it says how. `last`: of an alert that counts what happened in
    the last minutes, and so may outlive its cause; null of any other.
    """

    name: str
    severity: Severity
    summary: str
    since: Moment
    last: LastView | None
    runbook: str


class CommitView(Model):
    """`writes`: requests that share the commit, null where this process does not know it, as of another one's."""

    txid: Txid
    at: Moment
    bytes: int
    writes: int | None


class LogView(Model):
    """`txid`: what readers see; `lag`: how many commits the log is known to be ahead of that."""

    url: str
    txid: Txid
    commits: list[CommitView]
    lag: int
    since_compaction: int | None
    since_snapshot: int | None


class BackupView(Model):
    """`proven_at`: when it was last restored and compared with the log, null for never or long ago."""

    name: str
    at: Moment
    age_seconds: float
    bytes: int
    proven_at: Moment | None


class ErrorView(Model):
    """A line of the log of ERROR or above, shortened; `request_id` when it is of a request. Of `count` equal lines the
    newest.
    """

    at: Moment
    level: str
    message: str
    logger: str
    request_id: str | None
    count: int


class StatusView(Model):
    """How the service is, and what it says so by. `state` follows the alerts: `down` is P0, `degraded` P1, `attention`
    all others and objectives that are not met; `reason` says it in words. `log`: null where the database is PostgreSQL,
    which has its own, and its own backups. `not_asked`: what did not answer in time, so
    that what is shown of it is old, or missing.
    """

    state: State
    reason: str
    since: Moment
    service: ServiceView
    objectives: list[ObjectiveView]
    alerts: list[AlertView]
    log: LogView | None
    backups: list[BackupView]
    errors: list[ErrorView]
    gauges: dict[str, float]
    not_asked: list[str]


class PointView(Model):
    """Of one step; null where nothing is known, as of a time in which nobody looked. `commits` and `conflicts` are
    numbers within the step, bytes those at its end.
    """

    at: Moment
    requests_per_second: float | None
    errors_per_second: float | None
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None
    commits: int | None
    conflicts: int | None
    memory_bytes: float | None
    database_bytes: float | None
    wal_bytes: float | None


class HistoryView(Model):
    """Oldest first; the last point is of a step that is not over yet."""

    span: Literal["hour", "day"]
    step_seconds: int
    points: list[PointView]


def moment_text(seconds: float) -> str:
    """Write a time, seconds since 1970, as RFC 3339."""
    return datetime.fromtimestamp(max(seconds, 0.0), UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
