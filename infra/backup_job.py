"""Making backups as a routine: by a server's timer or by a schedule."""

import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from core.errors import BackupCancelled, ServiceError
from infra.backups import Backups, Manifest
from infra.telemetry import Metrics

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 300.0
_STOP_SECONDS = 2.0


class BackupJob:
    def __init__(self, backups: Backups, database: Path, metrics: Metrics) -> None:
        self._backups = backups
        self._database = database
        self._metrics = metrics
        self._stopping = threading.Event()
        self._timer: threading.Thread | None = None
        self.last_success: float | None = None  # Unix time

    def run(self) -> Manifest:
        """One backup, logged and counted."""
        started = time.monotonic()
        try:
            manifest = self._backups.create(self._database, progress=self._stop_if_asked)
        except BackupCancelled:
            raise
        except Exception:
            self._metrics.backup_finished(False, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        self._metrics.backup_finished(True, seconds)
        self.last_success = time.time()
        logger.info(
            "backup made",
            extra={
                "backup": manifest.name,
                "bytes": manifest.size,
                "rows": manifest.rows,
                "seconds": round(seconds, 3),
            },
        )
        return manifest

    def start(self, interval: float) -> None:
        """Back up when the newest backup is `interval` seconds old, and every `interval` from then on."""
        # a daemon: the process must be able to end while a store does not answer
        self._timer = threading.Thread(target=self._run_every, args=(interval,), name="backup", daemon=True)
        self._timer.start()

    def stop(self) -> None:
        """Make a backup under way give up at its next step, and give it a moment to clean up behind itself."""
        self._stopping.set()
        if self._timer:
            self._timer.join(_STOP_SECONDS)

    def _run_every(self, interval: float) -> None:
        # Only the first step asks the store how old its newest backup is: a name or a clock that is wrong
        # there must not make one backup follow another without a pause
        step, wait = self._seconds_until_due, 0.0
        while not self._stopping.wait(wait):
            try:
                wait = step(interval)
                step = self._run_once
            except BackupCancelled:
                return
            except Exception as error:
                expected = isinstance(error, ServiceError)
                logger.error("backup failed: %s", error, exc_info=not expected)
                wait = min(interval, _RETRY_SECONDS)

    def _run_once(self, interval: float) -> float:
        self.run()
        return interval

    def _seconds_until_due(self, interval: float) -> float:
        modified = [backup.modified for backup in self._backups.list() if backup.complete]
        if not modified:
            return 0.0
        age = (datetime.now(UTC) - max(modified)).total_seconds()
        self.last_success = max(modified).timestamp()
        return max(0.0, interval - max(0.0, age))

    def _stop_if_asked(self, phase: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise BackupCancelled("The process is stopping.")
