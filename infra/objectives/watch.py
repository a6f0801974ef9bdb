"""What watches over the objectives in this process: it looks every few seconds, and says how it is."""

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from core import __version__
from infra.maintenance.report import Report
from infra.objectives import process
from infra.objectives.alerts import ALERTS, Facts
from infra.objectives.history import History, difference
from infra.objectives.points import points_of
from infra.objectives.status import (
    AlertView,
    BackupView,
    CommitView,
    ErrorView,
    HistoryView,
    LogView,
    ObjectiveView,
    ServiceView,
    State,
    StatusView,
    moment_text,
)
from infra.objectives.stores import Found, Stores
from infra.objectives.table import measured
from infra.settings import SERVICE, Settings
from infra.storage.url import redacted
from infra.telemetry.metrics import Totals
from infra.telemetry.newest_errors import ERRORS

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0

_LEAP_SECONDS = 30.0
_STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether requests can be served: why not at all, and why not all of them; empty if they can."""

    unready: str = ""
    degraded: str = ""


@dataclass(slots=True)
class Memory:
    """What is to be known after a restart as well. Times are seconds since 1970."""

    state: State = "well"
    since: float = 0.0
    firing: dict[str, float] = field(default_factory=dict)  # since when, by the alert's name
    txid: int = 0
    fell: float = 0.0  # when the TXID was seen to fall

    def move(self, seconds: float) -> None:
        """Follow a clock that has leapt, by so many seconds."""
        self.since += seconds
        self.firing = {name: since + seconds for name, since in self.firing.items()}
        self.fell = self.fell and self.fell + seconds


class Watch:
    """Any thread may ask."""

    def __init__(
        self,
        settings: Settings,
        stores: Stores,
        *,
        totals: Callable[[], Totals],
        gauges: Callable[[], dict[str, float]],
        report: Callable[[], Report],
        lasting: bool,
        now: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = process.elapsed,
    ) -> None:
        """`report`: the newest that this process has of maintenance. `lasting`: a server; else one of Lambda's
        instances. `elapsed`: seconds of a clock that cannot be set, and goes on while the machine sleeps.
        """
        self.stores = stores
        self.lasting = lasting
        self._settings = settings
        self._totals = totals
        self._gauges = gauges
        self._report = report
        self._now = now
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._started = self._looked_at = now()
        self._looked = elapsed()
        self._counted = Totals()
        self._condition = Condition()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.history = History(now())
        self.memory = Memory(since=now())

    # Looking

    def start(self, probe: Callable[[], Condition]) -> None:
        """Look every few seconds from now on. `probe`: asked on a thread, and may take a moment."""
        # a daemon: the process must be able to end whatever it waits for
        self._thread = threading.Thread(target=self._run, args=(probe,), name="objectives", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look once more and keep what was seen; gives up after a moment."""
        self._stopping.set()
        if self._thread:
            self._thread.join(_STOP_SECONDS)

    def _run(self, probe: Callable[[], Condition]) -> None:
        while not self._stopping.is_set():
            try:
                self.look(probe())
            except Exception:
                logger.exception("looking at the objectives has failed")
            self._stopping.wait(LOOK_SECONDS)

    def look(self, condition: Condition) -> None:
        """Take down what has happened since the last look, and judge it."""
        totals, gauges = self._totals(), self._known_gauges()
        with self._lock:
            now, elapsed = self._now(), self._elapsed()
            passed, self._looked = elapsed - self._looked, elapsed
            self._follow_clock(now, passed)
            counts, self._counted = difference(totals, self._counted), totals
            self.history.see(now, 0.0 if condition.unready else passed, counts, gauges)
            self._condition = condition
            self._judge(now, gauges)

    def _follow_clock(self, now: float, passed: float) -> None:
        leap, self._looked_at = now - (self._looked_at + passed), now
        if abs(leap) > _LEAP_SECONDS:
            logger.warning("the clock has leapt by %s s: the history of the objectives goes along", f"{leap:,.0f}")
            self.history.move(leap)
            self.memory.move(leap)

    def _judge(self, now: float, gauges: Mapping[str, float]) -> None:
        memory = self.memory
        txid = int(gauges.get("commit_log_txid", 0))
        if txid < memory.txid:
            memory.fell = now
        memory.txid = txid
        facts = self._facts(now, gauges)
        firing = [alert for alert in ALERTS if alert.says(facts)]
        memory.firing = {alert.name: memory.firing.get(alert.name, now) for alert in firing}
        state = _state([alert.severity for alert in firing], measured(self.history))
        if state != memory.state:
            memory.state, memory.since = state, now

    def _facts(self, now: float, gauges: Mapping[str, float]) -> Facts:
        interval = self._settings.maintenance_interval_seconds
        return Facts(
            now,
            self.history,
            gauges,
            self._newest_report(),
            self._condition.unready,
            self._condition.degraded,
            2.0 * interval if self.lasting else 0.0,
            self._started,
            self.memory.fell,
        )

    def _known_gauges(self) -> dict[str, float]:
        gauges = {**process.gauges(), **self._gauges()}
        report = self._newest_report()
        if report.verified:
            is_behind = int(gauges.get("commit_log_txid", 0)) > int(report.verified.txid, 16)
            gauges["unbacked_seconds"] = max(0.0, self._now() - report.verified.at) if is_behind else 0.0
        if "commit_log_unsaved_seconds" in gauges:
            gauges["unsaved_seconds"] = gauges["commit_log_unsaved_seconds"]
        return {name: value for name, value in gauges.items() if math.isfinite(value)}

    def _newest_report(self) -> Report:
        found = self.stores.found.report if self.stores.found else Report()
        return max(self._report(), found, key=lambda report: report.started_at)

    # Saying

    def status(self, not_asked: list[str]) -> StatusView:
        """Say how it is, by what was seen last."""
        gauges = self._known_gauges()
        found = self.stores.found or Found()
        with self._lock:
            objectives = measured(self.history, per_instance=not self.lasting)
            facts = self._facts(self._now(), gauges)
            alerts = [
                AlertView(
                    name=alert.name,
                    severity=alert.severity,
                    summary=summary,
                    since=moment_text(self.memory.firing.get(alert.name, facts.now)),
                    runbook=alert.runbook,
                )
                for alert in ALERTS
                if (summary := alert.says(facts))
            ]
            since = self.memory.since
        return StatusView(
            state=_state([alert.severity for alert in alerts], objectives),
            reason=_reason(alerts, objectives),
            since=moment_text(since),
            service=self._service(),
            objectives=objectives,
            alerts=alerts,
            log=self._log(found, gauges),
            backups=_backups(found, self._now()),
            errors=[
                ErrorView(
                    at=moment_text(error.at),
                    level=error.level,
                    message=error.message,
                    logger=error.logger,
                    request_id=error.request_id,
                )
                for error in ERRORS.newest_first()
            ],
            gauges=self._gauges(),
            not_asked=[*not_asked, *found.troubles],
        )

    def points(self, span: str) -> HistoryView:
        """Return the last hour, or day, for plots."""
        with self._lock:
            return points_of(self.history, "day" if span == "day" else "hour")

    def _service(self) -> ServiceView:
        return ServiceView(
            name=SERVICE,
            version=__version__,
            revision=os.environ.get("REVISION") or None,
            started_at=moment_text(self._started),
            instance=os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME") or f"{socket.gethostname()}:{os.getpid()}",
            per_instance=not self.lasting,
        )

    def _log(self, found: Found, gauges: Mapping[str, float]) -> LogView:
        txid = int(gauges.get("commit_log_txid", 0))
        head = max((commit.max_txid for commit in found.commits), default=0)
        return LogView(
            url=redacted(self._settings.replica_url),
            txid=f"{txid:016x}",
            commits=[
                CommitView(
                    txid=f"{commit.max_txid:016x}",
                    at=moment_text(commit.modified.timestamp()),
                    bytes=commit.size,
                    writes=None,
                )
                for commit in found.commits
            ],
            lag=int(gauges.get("commit_log_lag_commits", max(0, head - txid))),
            since_compaction=_whole(gauges.get("commit_log_commits_since_compaction")),
            since_snapshot=_whole(gauges.get("commit_log_commits_since_snapshot")),
        )


def _backups(found: Found, now: float) -> list[BackupView]:
    verified = found.report.verified
    return [
        BackupView(
            name=backup.name,
            at=moment_text(backup.time.timestamp()),
            age_seconds=max(0.0, now - backup.time.timestamp()),
            bytes=backup.size,
            proven_at=moment_text(verified.at) if verified and verified.backup == backup.name else None,
        )
        for backup in found.backups
    ]


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _state(severities: list[str], objectives: list[ObjectiveView]) -> State:
    if "P0" in severities:
        return "down"
    if "P1" in severities:
        return "degraded"
    if severities or any(objective.state in ("at_risk", "broken") for objective in objectives):
        return "attention"
    return "well"


def _reason(alerts: list[AlertView], objectives: list[ObjectiveView]) -> str:
    said = [alert.summary for alert in alerts]
    said += [
        f"{objective.title}: {objective.reason}, the target is {objective.target}."
        for objective in objectives
        if objective.state in ("broken", "at_risk")
    ]
    if not said:
        return "Everything is well."
    return said[0] + (f" And {len(said) - 1} more." if len(said) > 1 else "")
