"""The restore drill: restore what there is into a scratch file, check it, and measure what an emergency would take.

`python -m infra drill` is the monthly one of the runbook. Its result is kept beside the log for whoever asks: how long
it took is the recovery time (RTO), what the newest backup lacks is what its being all that is left would cost (RPO).
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from core.errors import LogDamaged, ServiceError
from infra.backups.backups import Backups, Count
from infra.commitlog import CommitLog
from infra.commitlog.upkeep import MaintenanceStore
from infra.disk.workspace import workspace
from infra.inspection import inspect
from infra.maintenance.report import Moment, read_note
from infra.progress import Progress, no_progress

NAME = "drill.json"
RTO_SECONDS = 600.0  # the objective
DUE_SECONDS = 45 * 86400.0  # after the last one that has succeeded

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Restored:
    """A state that was restored into a scratch file and found sound."""

    source: str  # the log's URL, or the backup's name
    txid: str  # 16 hex digits; backups of older releases do not say
    rows: dict[str, Count]
    seconds: Seconds  # from the first request to the last row counted
    lacks_seconds: Seconds  # about how old the oldest write is that it does not have; 0: it has all of them


@dataclass(frozen=True, slots=True)
class Drill:
    """Times are by the clock of the machine that made it, seconds since 1970."""

    at: Moment
    last_success: Moment = 0.0  # of this drill or an earlier one
    log: Restored | None = None  # the newest state; None: it cannot be restored
    backup: Restored | None = None  # the newest one
    problems: list[str] = field(default_factory=list)

    @property
    def duration_seconds(self) -> float | None:
        """The slower of both ways, which is the RTO; None when one of them leads nowhere."""
        return max(self.log.seconds, self.backup.seconds) if self.log and self.backup else None


_DRILL = TypeAdapter(Drill)


def read_drill(store: MaintenanceStore) -> Drill | None:
    """Read what the last drill found; None if there was none that could be believed. Raises StoreError."""
    return read_note(store, NAME, _DRILL, lambda drill: drill.at, "python -m infra drill")


def run_drill(log: CommitLog, store: MaintenanceStore, backups: Backups, progress: Progress = no_progress) -> Drill:
    """Restore the log's newest state and the newest backup, and keep what was found in `store`, the log's.

    What goes wrong is among the problems. Raises StoreError when the log's place cannot be used at all, and LogDamaged
    when nothing was ever written there.
    """
    previous = read_drill(store)
    if not log.objects.everything():
        raise LogDamaged(f"{log.url} is empty: there is nothing to restore")
    problems: list[str] = []
    newest = _attempt(problems, lambda scratch: _restored_log(log, scratch, progress))
    backup = _attempt(problems, lambda scratch: _restored_backup(backups, newest, scratch, progress))
    for restored in (newest, backup):
        if restored and restored.seconds > RTO_SECONDS:
            problems.append(f"{restored.source} took {restored.seconds:,.0f} s, the objective is {RTO_SECONDS:,.0f} s")
    if newest and backup and newest.txid == backup.txid and newest.rows != backup.rows:
        problems.append(f"{backup.source} has the rows {backup.rows}, the log at its TXID has {newest.rows}")
    now = time.time()
    last_success = now if not problems else previous.last_success if previous else 0.0
    drill = Drill(now, last_success, newest, backup, problems)
    store.put(NAME, json.dumps(asdict(drill)).encode())
    return drill


def _attempt(problems: list[str], restore: Callable[[Path], Restored]) -> Restored | None:
    try:
        with workspace() as scratch:
            return restore(scratch / "app.db")
    except ServiceError as error:
        problems.append(str(error))
        return None


def _restored_log(log: CommitLog, target: Path, progress: Progress) -> Restored:
    begun = time.monotonic()
    position = log.restore(target, progress=progress)
    rows = inspect(target).rows
    return Restored(log.url, f"{position.txid:016x}", rows, time.monotonic() - begun, 0.0)


def _restored_backup(backups: Backups, newest: Restored | None, target: Path, progress: Progress) -> Restored:
    begun, found = time.monotonic(), backups.newest()
    manifest = backups.restore(target, found.name if found else None, progress)  # checked against its own manifest
    took = time.monotonic() - begun
    age = max(0.0, time.time() - found.time.timestamp()) if found else 0.0
    has_all = newest is not None and newest.txid == manifest.txid
    return Restored(manifest.name, manifest.txid, manifest.rows, took, 0.0 if has_all else age)
