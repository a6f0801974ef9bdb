"""Making backups as a routine: by a server's timer or by a schedule."""

import asyncio
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


class BackupJob:
    def __init__(self, backups: Backups, database: Path, metrics: Metrics) -> None:
        self._backups = backups
        self._database = database
        self._metrics = metrics
        self._stopping = threading.Event()
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

    async def run_every(self, interval: float) -> None:
        """Back up when the newest backup is `interval` seconds old, over and over. A failure is tried again."""
        while True:
            wait = await asyncio.to_thread(self._seconds_until_due, interval)
            await asyncio.sleep(wait)
            try:
                await asyncio.to_thread(self.run)
            except BackupCancelled:
                return
            except ServiceError as error:
                logger.error("backup failed: %s", error)
                await asyncio.sleep(min(interval, _RETRY_SECONDS))
            except Exception:
                logger.exception("backup failed")
                await asyncio.sleep(min(interval, _RETRY_SECONDS))

    def stop(self) -> None:
        """Make a backup under way give up at its next step."""
        self._stopping.set()

    def _seconds_until_due(self, interval: float) -> float:
        try:
            newest = self._backups.newest()
        except ServiceError as error:
            logger.error("backups cannot be listed: %s", error)
            return 0.0
        if newest is None:
            return 0.0
        age = (datetime.now(UTC) - newest.modified).total_seconds()
        self.last_success = newest.modified.timestamp()
        return max(0.0, interval - max(0.0, age))

    def _stop_if_asked(self, phase: str, done: int, total: int) -> None:
        if self._stopping.is_set():
            raise BackupCancelled("The process is stopping.")
