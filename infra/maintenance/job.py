"""The job that looks after log and backups: merge, write a snapshot and a backup, prove both, delete what is old.

By a server's timer, by a schedule on Lambda, or by hand. Several may run at once, and each may be killed anywhere. What
was found not to be sound keeps everything that would have been deleted.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.errors import (
    BackupDamaged,
    BackupMissing,
    DatabaseDamaged,
    LogDamaged,
    MaintenanceCancelled,
    MaintenanceOutOfTime,
    ServiceError,
    SnapshotGone,
    StoreError,
)
from infra.backups.backups import Backups, Manifest
from infra.backups.retention import ExpiredBackup
from infra.clock import Clock
from infra.commitlog import LogObject, Observer, Position, Unobserved, open_log
from infra.commitlog.upkeep import (
    COMMITS,
    Compactor,
    ExpiredObject,
    Keep,
    MaintenanceStore,
    Snapshots,
    digest_of,
    expired,
)
from infra.disk.workspace import workspace
from infra.inspection import Contents, inspect
from infra.maintenance.drill import Drill, read_drill
from infra.maintenance.host_time import Boot, HostTime, looked_again, read_boot
from infra.maintenance.report import Report, Verified, read_report, write_report
from infra.progress import Progress, no_progress
from infra.settings import Settings
from infra.storage.object_store import TRANSFER_SECONDS, ObjectStore

logger = logging.getLogger(__name__)

_PROVEN_AGAIN = timedelta(days=1)  # also when nothing has changed


@dataclass(frozen=True, slots=True)
class Preview:
    """What a run would do now."""

    runs: int  # to merge
    snapshot: bool
    sidecar: bool  # made anew for the newest snapshot
    backup: bool
    verified: str  # the TXID of the snapshot that must be proven first, or has been
    objects: list[ExpiredObject]
    backups: Sequence[ExpiredBackup]


class Maintenance:
    """One thread's. Raises ServiceError only before it has begun: what goes wrong later is in the report."""

    def __init__(
        self,
        steps: Compactor,
        store: MaintenanceStore,
        backups: Backups,
        keep: Keep,
        clock: Clock,
        scratch: Callable[[], AbstractContextManager[Path]] = workspace,
        boot: Callable[[], Boot] | None = None,
    ) -> None:
        """`steps`: what is done to the log, whose `store` this is. `boot`: of the machine that is the store's clock."""
        self.steps = steps
        self.backups = backups
        self._store = store
        self._keep = keep
        self._clock = clock
        self._scratch = scratch
        self._boot = boot

    def last_report(self) -> Report:
        """Read what the last run did and found; empty if there was none. Raises StoreError."""
        return read_report(self._store)

    def last_drill(self) -> Drill | None:
        """Read what the last restore drill found; None if there was none. Raises StoreError."""
        return read_drill(self._store)

    def merge(self, check: Callable[[], None] = lambda: None) -> int:
        """Only that, which is what makes starts fast; returns how many runs were made. See Compactor."""
        try:
            with self._scratch() as scratch:
                return self.steps.merge(scratch, check)
        finally:
            if self.steps.misdated:
                report = read_report(self._store)
                self._take_misdated(report)
                write_report(self._store, report)

    def run(
        self,
        seconds: float = float("inf"),
        progress: Progress = no_progress,
        check: Callable[[], None] = lambda: None,
    ) -> Report:
        """All of it, in at most about so many seconds. `check` is called before each step; what it raises ends it."""
        begun = self._clock.now()
        previous = read_report(self._store)
        now = write_report(self._store, previous)  # which stays for whoever asks meanwhile
        report = Report(
            started_at=now,
            last_success=previous.last_success,
            verified=previous.verified,
            unsound=previous.unsound,
            misdated=previous.misdated,
            unchecked=previous.unchecked,
            host=self._host_time(previous, now),
        )

        def check_all() -> None:
            check()
            if self._clock.now() > begun + seconds:
                raise MaintenanceOutOfTime("The time for this run of maintenance is over; the next one goes on.")

        def checked_progress(phase: str, done: int, total: int) -> None:
            check_all()
            progress(phase, done, total)

        try:
            self._work(report, check_all, checked_progress)
        except MaintenanceCancelled:
            raise
        except MaintenanceOutOfTime as error:
            report.unfinished = True
            report.problems = previous.problems if previous.unsound else []  # nobody has looked again
            logger.warning("%s", error)
        except ServiceError as error:
            report.problems.append(str(error))
            report.unsound |= isinstance(error, LogDamaged | BackupDamaged | DatabaseDamaged)
        report.finished_at = report.started_at + self._clock.now() - begun
        if report.succeeded:
            report.last_success = report.finished_at
            report.unsound = False
        try:
            write_report(self._store, report)
        except StoreError as error:
            report.problems.append(str(error))
        return report

    def _host_time(self, previous: Report, now: float) -> HostTime | None:
        if self._boot is None:
            return None
        found = looked_again(previous.host, self._boot(), now)
        if leap := found.leapt:
            logger.warning(
                "this machine's clock has leapt ahead by %s s since %s, or the machine stood still: what was there "
                "before counts as so much younger, and stays so much longer",
                f"{leap.by:,.0f}",
                datetime.fromtimestamp(previous.started_at, UTC).isoformat(timespec="seconds"),
            )
        return found

    def preview(self) -> Preview:
        """Find what a run would do now, and change nothing. Raises ServiceError."""
        state, now = self.steps.snapshots(), datetime.now(UTC)
        previous = read_report(self._store)
        verified, host = previous.verified, self._host_time(previous, now.timestamp())
        proven = int(verified.snapshot, 16) if verified else 0
        if state.newest and state.newest.max_txid > proven:
            proven = state.newest.max_txid  # it will be, before anything is deleted
        newest, is_due = self.backups.newest_manifest(), state.is_due(now)
        return Preview(
            self.steps.runs_to_merge(),
            is_due,
            not is_due and state.newest is not None and self.steps.misses_sidecar(state.newest),
            state.head > 0 and (newest is None or newest.txid != f"{state.head:016x}"),
            f"{proven:016x}",
            expired(self._counted(host), proven, now, self._keep),
            self.backups.expired(host.without_leaps) if host else self.backups.expired(),
        )

    def _work(self, report: Report, check: Callable[[], None], progress: Progress) -> None:
        with self._scratch() as scratch:
            self.steps.look_again()
            try:
                report.runs_merged = self.steps.merge(scratch, check)
            finally:
                self._take_misdated(report)
            try:
                newest = self._proven(report, scratch, progress)
            except (SnapshotGone, BackupMissing) as error:  # this run has stood still, and another one has gone on
                logger.info("%s; what is newest is proven", error)
                report.snapshot = report.backup = ""
                newest = self._proven(report, scratch, progress)
            if newest is None:
                return self.steps.check_nothing_misnamed()  # nobody has written anything yet
            now = datetime.fromtimestamp(report.started_at, UTC)
            if mended := self.steps.mend_sidecars(newest, scratch, now, check):
                report.sidecar = f"{mended.max_txid:016x}"
        self._prune(report, check)

    def _proven(self, report: Report, scratch: Path, progress: Progress) -> LogObject | None:
        """See to it that the log's head is proven. Returns what is the newest snapshot then, None of an empty log."""
        state = self.steps.snapshots()
        proven = int(report.verified.txid, 16) if report.verified else 0
        if state.head < proven:
            raise LogDamaged(
                f"{self._store.url} ends at TXID {state.head:016x}, but was proven at {proven:016x}: "
                "it was emptied or cut short, or is another one"
            )
        if not state.head:
            return None
        report.txid = f"{state.head:016x}"
        if state.newest is None or self._proof_is_due(report, state):
            return self._prove(report, state, scratch, progress)
        return state.newest

    def _proof_is_due(self, report: Report, state: Snapshots) -> bool:
        now, verified = datetime.fromtimestamp(report.started_at, UTC), report.verified
        newest = self.backups.newest_manifest()
        return (
            state.is_due(now)
            or verified is None
            or newest is None
            or newest.name != verified.backup
            or newest.txid != report.txid
            or state.newest is None
            or f"{state.newest.max_txid:016x}" != verified.snapshot
            or report.started_at - verified.at > _PROVEN_AGAIN.total_seconds()
        )

    def _prove(self, report: Report, state: Snapshots, scratch: Path, progress: Progress) -> LogObject:
        """Build the newest state from the newest snapshot, make from it what is due, and read that back. Returns what
        is the newest snapshot then.
        """
        image = scratch / "app.db"
        image.unlink(missing_ok=True)
        position = self.steps.restore_newest(image, state.newest, progress)
        is_due = state.newest is None or state.is_due(datetime.fromtimestamp(report.started_at, UTC))
        # Before it is looked through: what is stored of it later is to be what was sound
        digest = digest_of(image) if is_due else ""
        contents = inspect(image)
        report.unchecked = list(contents.unchecked)
        for unchecked in contents.unchecked:
            logger.warning("%s: %s", self._store.url, unchecked)
        snapshot = state.newest
        if snapshot is None or is_due:
            snapshot = self.steps.store_snapshot(image, position, scratch)
            report.snapshot = f"{position.txid:016x}"
            try:
                self._check_snapshot(snapshot, digest, progress)
            except LogDamaged:
                self.steps.discard(snapshot)  # or it would be what every start begins with
                raise
        manifest = self._backed_up(report, position, image, contents, progress)
        if not contents.has(manifest.rows):
            raise BackupDamaged(
                f"{manifest.name} has the rows {manifest.rows}, the log at its TXID has {contents.rows}"
            )
        report.txid = f"{position.txid:016x}"
        report.verified = Verified(
            f"{snapshot.max_txid:016x}", manifest.name, report.txid, contents.rows, report.started_at
        )
        return snapshot

    def _check_snapshot(self, snapshot: LogObject, digest: str, progress: Progress) -> None:
        """Read it back: it holds what was found sound, byte for byte. `digest`: of that."""
        if not self.steps.holds(snapshot, digest, progress):
            raise LogDamaged(
                f"{self._store.url}: the snapshot at TXID {snapshot.max_txid:016x} is not what was written"
            )

    def _backed_up(
        self, report: Report, position: Position, image: Path, contents: Contents, progress: Progress
    ) -> Manifest:
        """The newest backup, which is of this position, read back and checked. `contents`: of the image."""
        newest = self.backups.newest_manifest()
        if newest and newest.is_of(position):
            return self.backups.verify(newest.name, progress)
        made = self.backups.create(image, position, progress=progress, contents=contents)
        report.backup = made.name
        return made

    def _prune(self, report: Report, check: Callable[[], None]) -> None:
        if report.verified is None:
            return
        now, host = datetime.fromtimestamp(report.started_at, UTC), report.host
        found = self._counted(host)
        objects = expired(found, int(report.verified.snapshot, 16), now, self._keep)
        first = min((item.max_txid for item in found if item.level == COMMITS), default=0)
        if report.misdated and report.misdated.last < first:
            report.misdated = None  # those are gone, and what holds them is dated as it should be
        before = self.steps.counts["deletions"]
        try:
            self.steps.delete(objects, check)
        finally:
            report.deleted_objects = self.steps.counts["deletions"] - before
        self.steps.delete_raced(now)
        report.deleted_backups = self.backups.prune(host.without_leaps) if host else self.backups.prune()
        if host and host.has_leapt_within_a_day():
            return  # what somebody is writing now looks old
        for store in (self._store, self.backups.store):
            store.remove_unfinished()

    def _counted(self, host: HostTime | None) -> list[LogObject]:
        """All objects, of the time that they count as."""
        found = self.steps.everything()
        return [replace(item, modified=host.counted(item.modified)) for item in found] if host else found

    def _take_misdated(self, report: Report) -> None:
        """What merging has found since it was last taken, on top of what is known and not gone since."""
        if found := self.steps.misdated:
            logger.warning("%s", found)
            report.misdated = found.with_(report.misdated)
            self.steps.misdated = None


def open_maintenance(settings: Settings, backups: Backups, observer: Observer | None = None) -> Maintenance:
    """Raises StoreError when the log's place cannot be used."""
    clock, observer = Clock(), observer or Unobserved()
    store = ObjectStore(settings.replica_url, timeout=TRANSFER_SECONDS, asked=observer.log_asked)
    keep = Keep(
        commits=timedelta(hours=settings.keep_commits_hours),
        runs=timedelta(days=settings.keep_runs_days),
        daily=timedelta(days=settings.keep_daily_days),
    )
    steps = Compactor(open_log(settings.replica_url, clock, TRANSFER_SECONDS, observer), store, clock)
    boot = read_boot if store.url.startswith("file:") else None
    return Maintenance(steps, store, backups, keep, clock, boot=boot)
