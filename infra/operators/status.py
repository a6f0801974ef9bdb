"""What an operator asks first: is the database sound, who has it, how old is the newest backup, was it proven."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from core.errors import ServiceError
from infra.backups.retention import list_backups
from infra.commitlog import kept_files
from infra.commitlog.upkeep import cold_start_of
from infra.disk import volume
from infra.disk.owner_lock import OwnerLock
from infra.inspection import count_rows
from infra.maintenance.drill import Drill, read_drill
from infra.maintenance.gauges import drill_is_due, gauges_of_drill
from infra.maintenance.report import Report, read_report
from infra.objectives.alerts import Facts
from infra.objectives.history import MINUTE, History
from infra.objectives.history_file import HistoryFile
from infra.objectives.judgement import Judgement, judge
from infra.objectives.status import State, moment_text
from infra.objectives.telling import alerts_of
from infra.objectives.watch import KEEP_SECONDS
from infra.operators.shell_version import shell_warnings
from infra.settings import Settings
from infra.storage.object_store import ObjectStore

_STORE_SECONDS = 3.0
_LONG_NOT_KEPT_SECONDS = 2.0 * KEEP_SECONDS


@dataclass(frozen=True, slots=True)
class Status:
    """The answers, as `status` prints them; None for what is not there or could not be read. Objectives and alerts are
    those of the server that serves the database here, by the history that it keeps beside it.
    """

    state: State
    reason: str
    since: str | None
    database: str
    size_bytes: int | None
    rows: dict[str, int] | None
    owner: str
    replica_url: str
    backup_url: str
    newest_backup: str | None
    backup_age: str | None
    maintenance: str
    verified: str
    clock: str
    cold_start: str  # what an instance without a file would read now
    objectives: list[dict[str, Any]]
    alerts: list[dict[str, Any]]
    warnings: list[str]
    problems: list[str]


def read_status(settings: Settings) -> Status:
    """Ask database, stores and reports. What cannot be asked is among the problems."""
    path = settings.database_path
    problems: list[str] = []
    rows: dict[str, int] | None = None
    try:
        rows = count_rows(path)
    except ServiceError as error:
        problems.append(str(error))
    owner = "unknown"
    is_owned: bool | None = None
    try:
        lock = OwnerLock(path)
        is_owned = lock.held()
        owner = lock.owner() if is_owned else "nobody: the service is stopped"
    except ServiceError as error:
        problems.append(str(error))
    newest, age = None, None
    try:
        backups = list_backups(_asked_briefly(settings.backup_url))
        newest = next((backup for backup in reversed(backups) if backup.complete), None)
        if newest is None:
            problems.append("there is no backup yet (`make backup`)")
    except ServiceError as error:
        problems.append(f"the backups were not asked: {error}")
    if newest:
        age = datetime.now(UTC) - newest.modified
    start = "unknown"
    report, drill, is_asked, interval = Report(), None, False, settings.maintenance_interval_seconds
    try:
        if settings.replica_url:
            check_log_is_there(settings)
            store = _asked_briefly(settings.replica_url)
            report, drill, is_asked = read_report(store), read_drill(store), True
            start = str(cold_start_of(store))
    except ServiceError as error:
        problems.append(f"the log was not asked: {error}")
        interval = 0  # nobody knows when maintenance has succeeded
    problems += report.problems
    problems += [f"the last restore drill has failed: {problem}" for problem in (drill.problems if drill else [])]
    if interval and report.last_success < datetime.now(UTC).timestamp() - 2 * interval:
        problems.append(f"no maintenance has succeeded within two intervals of {interval} s")
    judgement, since = _judged(path, report, drill, 2.0 * interval, is_asked=is_asked, is_owned=is_owned)
    is_well = judgement.state == "well"
    return Status(
        state="attention" if problems and is_well else judgement.state,
        reason=problems[0] if problems and is_well else judgement.reason,
        since=since,
        database=str(path),
        size_bytes=path.stat().st_size if path.is_file() else None,
        rows=rows,
        owner=owner,
        replica_url=settings.replica_url,
        backup_url=settings.backup_url,
        newest_backup=newest.name if newest else None,
        backup_age=str(age).split(".")[0] if age is not None else None,
        maintenance=_maintenance(report),
        verified=_verified(report),
        clock=_clock(report),
        cold_start=start,
        objectives=[objective.model_dump() for objective in judgement.objectives],
        alerts=[alert.model_dump() for alert in alerts_of(judgement)],
        warnings=report.warnings() + shell_warnings(),
        problems=problems,
    )


def _asked_briefly(url: str) -> ObjectStore:
    """A store that does not answer is a fact, and nobody waits for it."""
    return ObjectStore(url, timeout=_STORE_SECONDS, retries=0)


def check_log_is_there(settings: Settings) -> None:
    """Raises StoreRefused when the database here was served from a log whose directory is gone: it is not empty."""
    path = settings.database_path
    if path.with_name(path.name + ".position").exists():
        ObjectStore(settings.replica_url).check_there()


def _judged(
    database: Path,
    report: Report,
    drill: Drill | None,
    maintained_within: float,
    *,
    is_asked: bool,
    is_owned: bool | None,
) -> tuple[Judgement, str | None]:
    """By the history that a server keeps here, and since when it is so, which nobody knows without one; by report and
    drill, and what is here. `is_asked`: the log, for these; `is_owned`: whether somebody has the database open, None
    when nobody knows.
    """
    now = datetime.now(UTC).timestamp()
    file = HistoryFile(database)
    kept = file.read()
    history = kept or History(now)
    started = kept.began if kept else report.last_success or now
    noted, gauges, last = history.noted, history.noted.gauges, history.until
    down = _why_down(database, max(last, file.seen_at()), now, is_owned)
    if is_owned is False:
        noted.unready = noted.degraded = noted.unwritable = ""
        history.until = max(history.until, now)
        gauges = {}
    elif is_owned and not down and now - last > _LONG_NOT_KEPT_SECONDS:
        noted.unwritable = f"the service is there, and could not write {file.path} for {_minutes(now - last)}."
    for name in ("ServiceDown", "WritesRefused"):
        noted.firing.setdefault(name, last)
    if is_asked:
        gauges = {name: value for name, value in gauges.items() if not name.startswith("restore_drill_")}
        gauges |= gauges_of_drill(drill) | {"restore_drill_due_timestamp_seconds": drill_is_due(drill, history.began)}
        gauges |= {"restore_drill_failed": 1.0} if drill and drill.problems else {}
    # what is here as it is now, whoever has looked last
    gauges = gauges | volume.gauges(database.parent) | {"database_kept_files": len(kept_files(database))}
    found = judge(Facts(now, history, gauges, report, maintained_within, started, down))
    since = noted.since if found.state == noted.state else last
    return found, moment_text(since) if kept else None


def _why_down(database: Path, seen: float, now: float, is_owned: bool | None) -> str:
    """`seen`: when the service was last known to be there."""
    if is_owned is False:
        return f"the service is stopped: nobody has {database} open."
    if is_owned and now - seen > _LONG_NOT_KEPT_SECONDS:
        return f"the service has given no sign of life for {_minutes(now - seen)}: it hangs, or has not started yet."
    return ""


def _minutes(seconds: float) -> str:
    return f"{seconds / MINUTE:.0f} minutes"


def _maintenance(report: Report) -> str:
    if not report.last_success:
        return "has never succeeded"
    return f"last succeeded at {_text(report.last_success)}"


def _verified(report: Report) -> str:
    if not (verified := report.verified):
        return "nothing yet"
    return f"snapshot {verified.snapshot} and {verified.backup}, at {_text(verified.at)}"


def _clock(report: Report) -> str:
    """Of a log in a directory, whose times are this machine's."""
    if not report.host:
        return "that of the store"
    if not report.host.leaps:
        return f"has not leapt since {_text(report.host.since)}"
    leap = report.host.leaps[-1]
    return f"has leapt ahead by {leap.by:,.0f} s, noticed at {_text(leap.at)}: what is older counts as so much younger"


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds")
