"""Maintenance as a routine: by a server's timer or by a schedule."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict

from core.errors import MaintenanceCancelled, ServiceError
from infra.backups.retention import Backup
from infra.maintenance.apart import MaintenanceApart
from infra.maintenance.drill import Drill
from infra.maintenance.gauges import gauges_of, gauges_of_drill
from infra.maintenance.job import Maintenance
from infra.maintenance.report import Report
from infra.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0  # how often a server sees whether there is a run of commits to merge
_RETRY_SECONDS = 300.0  # after the first failure; after each further one twice as long, up to the interval
_STOP_SECONDS = 2.0


class MaintenanceRoutine:
    """Runs the job when it is time, and says what became of it: in the log and in metrics."""

    def __init__(
        self,
        maintenance: Maintenance,
        metrics: Metrics,
        head: Callable[[], int] = lambda: 0,
        apart: MaintenanceApart | None = None,
    ) -> None:
        """`head`: the newest commit that this process knows of, a TXID. `apart`: who does what `maintenance` would do
        here, in a process of its own.
        """
        self._maintenance = maintenance
        self._worker = apart or maintenance
        self._metrics = metrics
        self._head = head
        self._stopping = threading.Event()
        self._timer: threading.Thread | None = None
        self._report = Report()
        self._backup: Backup | None = None  # the newest one
        self._drill: Drill | None = None  # the last one
        self._pause = 0.0  # seconds from the timer's last run, if that failed, to the next one
        self._hurried = False

    def run(self, seconds: float = float("inf")) -> Report:
        """All of it, logged and counted. Raises ServiceError when the store cannot be used, MaintenanceCancelled when
        the process is stopping; everything else that goes wrong is in the report.
        """
        started = time.monotonic()
        try:
            report = self._worker.run(seconds, check=self._check_stopping)
        except MaintenanceCancelled:
            raise
        except Exception:
            self._metrics.maintenance_finished(False, time.monotonic() - started)
            raise
        took = time.monotonic() - started
        self._learn(report)
        self._metrics.maintenance_finished(report.succeeded, took)
        for problem in report.problems:
            logger.error("maintenance found a problem, and deletes nothing: %s", problem)
        logger.info("maintenance done", extra={"report": asdict(report), "seconds": round(took, 3)})
        return report

    def merge(self) -> int:
        """Only merge what is complete; returns how many runs were made."""
        made = self._worker.merge(self._check_stopping)
        if made:
            logger.info("merged", extra={"runs": made})
        return made

    @property
    def report(self) -> Report:
        """The newest that this process has seen."""
        return self._report

    def gauges(self) -> dict[str, float]:
        """What the newest report says that this process has seen, and what it has seen itself."""
        report, merged_to = self._report, self._maintenance.steps.merged_to
        head = max(self._head(), int(report.txid or "0", 16))  # what has no database knows it from its last run
        gauges = gauges_of(report, self._backup, head, time.time()) | gauges_of_drill(self._drill)
        if merged_to is not None and head >= merged_to:
            gauges["commit_log_commits_since_compaction"] = head - merged_to
        return gauges

    def start(self, interval: float) -> None:
        """Run when the last success is `interval` seconds old, and every `interval` from then on."""
        # a daemon: the process must be able to end while a store does not answer
        self._timer = threading.Thread(target=self._run_every, args=(interval,), name="maintenance", daemon=True)
        self._timer.start()

    def stop(self) -> None:
        """Make a run under way give up at its next step, and give it a moment to clean up behind itself."""
        self._stopping.set()
        if self._timer:
            self._timer.join(_STOP_SECONDS)

    def _run_every(self, interval: float) -> None:
        # Only the first step asks the store how long ago the last run was: a clock that is wrong there must not make
        # one run follow another without a pause
        step, wait = self._seconds_until_due, 0.0
        while not self._wait(wait):
            try:
                wait = step(interval)
                step = self._run_once
            except MaintenanceCancelled:
                return
            except Exception as error:
                expected = isinstance(error, ServiceError)
                logger.error("maintenance failed: %s", error, exc_info=not expected)
                wait = self._pause_after_failure(interval)

    def _wait(self, seconds: float) -> bool:
        """Merge now and then meanwhile. Returns whether to stop."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > _LOOK_SECONDS:
            if self._stopping.wait(_LOOK_SECONDS):
                return True
            if self._has_first_rows():
                return False
            try:
                if self._maintenance.steps.has_run(self._head()):
                    self.merge()
            except MaintenanceCancelled:
                return True
            except Exception as error:
                logger.warning("merging failed: %s", error, exc_info=not isinstance(error, ServiceError))
        return self._stopping.wait(max(left, 0.0))

    def _has_first_rows(self) -> bool:
        """Whether what was backed up is empty, and something was written since. Tells so once: what is empty most of
        the time needs no backup every minute.
        """
        verified = self._report.verified
        if self._hurried or verified is None or any(verified.rows.values()) or self._head() <= int(verified.txid, 16):
            return False
        self._hurried = True
        return True

    def _run_once(self, interval: float) -> float:
        if not self.run().succeeded:
            return self._pause_after_failure(interval)
        self._pause = 0.0
        return interval

    def _pause_after_failure(self, interval: float) -> float:
        self._pause = min(interval, 2 * self._pause or _RETRY_SECONDS)
        return self._pause

    def _seconds_until_due(self, interval: float) -> float:
        report = self._maintenance.last_report()
        self._learn(report)
        return max(0.0, interval - max(0.0, time.time() - report.last_success))

    def _learn(self, report: Report) -> None:
        self._report = report
        with suppress(ServiceError):  # whoever needs them says so
            newest = self._maintenance.backups.newest()
            self._backup = self._maintenance.backups.timed(newest) if newest else None
            self._drill = self._maintenance.last_drill()

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise MaintenanceCancelled("The process is stopping.")
