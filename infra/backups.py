"""Plain backups: `app-YYYYMMDD-HHMM[-label].db.gz`, a gzipped SQLite file that any tool can open.

Beside each lies `<name>.json`, its manifest: SHA-256 and size of the .gz, rows of each table. It is written
last, after the upload was read back and checked, so a backup with a manifest was good when it was made.
`app-latest.db.gz` is a second copy of the newest one. Times in names are UTC; two backups within a minute
are told apart by seconds (`app-YYYYMMDD-HHMMSS`).
"""

import gzip
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw

from core.errors import (
    BackupDamaged,
    BackupError,
    BackupMissing,
    DatabaseLocked,
    FieldError,
    InvalidInput,
    ObjectExists,
    ObjectMissing,
)
from infra.object_store import ObjectInfo, ObjectStore
from infra.owner_lock import OwnerLock, give_to_owner_of
from infra.settings import Settings
from infra.snapshot import Contents, Progress, inspect, take_snapshot

logger = logging.getLogger(__name__)

LATEST = "app-latest.db.gz"

_NAME = re.compile(r"app-(\d{8}-\d{4}(?:\d{2})?)(?:-([a-z][a-z0-9-]{0,39}))?\.db\.gz", re.ASCII)
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Backup:
    """What a listing tells."""

    name: str
    time: datetime  # UTC
    label: str | None
    size: int  # bytes of the .gz
    modified: datetime  # by the store's clock, UTC
    complete: bool  # has a manifest


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    created_at: str
    size: int
    sha256: str
    rows: dict[str, int]
    schema_version: int


@dataclass(frozen=True, slots=True)
class Retention:
    hourly: timedelta
    daily: timedelta


def no_progress(phase: str, done: int, total: int) -> None:
    pass


def open_backups(settings: Settings) -> "Backups":
    """Raises StoreError when the place cannot be used."""
    hourly, daily = settings.backup_keep_hourly_days, settings.backup_keep_daily_days
    retention = Retention(hourly=timedelta(days=hourly), daily=timedelta(days=daily))
    return Backups(ObjectStore(settings.backup_url), retention)


class Backups:
    """The backups at one URL. Methods raise BackupError, StoreError or DatabaseError."""

    def __init__(self, store: ObjectStore, retention: Retention) -> None:
        self.store = store
        self._retention = retention

    def list(self) -> list[Backup]:
        """Oldest first."""
        objects = {info.name: info for info in self.store.objects()}
        found = [_parse(info, info.name + ".json" in objects) for info in objects.values()]
        return sorted((backup for backup in found if backup), key=_age_order)

    def newest(self) -> Backup | None:
        return next((backup for backup in reversed(self.list()) if backup.complete), None)

    def create(self, database: Path, label: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Copy the live database, upload it, read it back, check it; then prune. Requests go on meanwhile.

        Raises BackupDamaged, and removes the upload, when what was read back is not what was sent.
        """
        if label is not None and not _NAME.fullmatch(f"app-20000101-0000-{label}.db.gz"):
            raise InvalidInput([FieldError("label", "lower-case letters, digits and dashes, a letter first")])
        with _workspace() as directory:
            snapshot, packed = directory / "app.db", directory / "app.db.gz"
            take_snapshot(database, snapshot, progress)
            contents = _inspected(snapshot, str(database))
            digest = _pack(snapshot, packed, progress)
            snapshot.unlink()
            manifest = self._upload(packed, label, digest, contents)
            self._read_back(manifest, directory, progress)
            self.store.put(manifest.name + ".json", json.dumps(asdict(manifest)).encode())
            self.store.put(LATEST, packed)
        self._prune(manifest.name)
        return manifest

    def verify(self, name: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Download a backup (default: the newest) and check digest, integrity and row counts."""
        with _workspace() as directory:
            return self._fetch(self._find(name), directory / "app.db", progress)

    def restore(self, database: Path, name: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Put a backup (default: the newest) in the place of `database`, atomically, after checking it.

        What was there is kept as `<database>.before-restore`. Raises DatabaseInUse while a server owns the file.
        """
        lock = OwnerLock(database)
        restored = database.with_name(database.name + ".restoring")
        with _disk_errors(database.parent):
            database.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            try:
                manifest = self._fetch(self._find(name), restored, progress)
                _replace(database, restored)
            finally:
                restored.unlink(missing_ok=True)
                lock.release()
        return manifest

    def _find(self, name: str | None) -> Backup:
        found = self.list()
        if name is None or name == "latest":
            complete = [backup for backup in found if backup.complete]
            if complete:
                return complete[-1]
            raise BackupMissing(f"There is no complete backup at {self.store.url}.")
        for backup in found:
            if backup.name in (name, f"{name}.db.gz"):
                return backup
        raise BackupMissing(f"There is no backup {name} at {self.store.url} (see `python -m infra backups`).")

    def _upload(self, packed: Path, label: str | None, digest: str, contents: Contents) -> Manifest:
        size = packed.stat().st_size
        now = datetime.now(UTC)
        suffix = f"-{label}.db.gz" if label else ".db.gz"
        for stamp in ("%Y%m%d-%H%M", "%Y%m%d-%H%M%S"):
            name = f"app-{now.strftime(stamp)}{suffix}"
            try:
                self.store.create(name, packed)
            except ObjectExists:
                continue
            return Manifest(name, now.isoformat(), size, digest, contents.rows, contents.schema_version)
        raise BackupError(f"{name} is there already: another backup is under way; try again in a second.")

    def _read_back(self, sent: Manifest, directory: Path, progress: Progress) -> None:
        try:
            self._download_checked(sent.name, sent.size, sent, directory / "read-back.db", progress)
        except BackupDamaged:
            self.store.delete(sent.name)
            raise

    def _fetch(self, backup: Backup, target: Path, progress: Progress) -> Manifest:
        """Download into `target`, checked against the manifest if there is one."""
        expected = self._manifest(backup.name) if backup.complete else None
        digest, contents = self._download_checked(backup.name, backup.size, expected, target, progress)
        created_at = expected.created_at if expected else backup.time.isoformat()
        return Manifest(backup.name, created_at, backup.size, digest, contents.rows, contents.schema_version)

    def _download_checked(
        self, name: str, size: int, expected: Manifest | None, target: Path, progress: Progress
    ) -> tuple[str, Contents]:
        packed = target.with_name(target.name + ".gz")
        try:
            digest = self._download(name, size, packed, progress)
            if expected and digest != expected.sha256:
                raise BackupDamaged(f"{name} is damaged: SHA-256 {digest}, its manifest says {expected.sha256}")
            _unpack(packed, target, name)
        finally:
            packed.unlink(missing_ok=True)
        contents = _inspected(target, name)
        if expected and contents.rows != expected.rows:
            raise BackupDamaged(f"{name} is damaged: rows {contents.rows}, its manifest says {expected.rows}")
        return digest, contents

    def _manifest(self, name: str) -> Manifest:
        data = b"".join(self.store.read(name + ".json"))
        try:
            return Manifest(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise BackupDamaged(f"{name}.json is not a manifest: {error}") from error

    def _download(self, name: str, size: int, target: Path, progress: Progress) -> str:
        digest, done = hashlib.sha256(), 0
        try:
            with target.open("wb") as file:
                for chunk in self.store.read(name):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress("download", done, size)
        except ObjectMissing as error:
            raise BackupMissing(f"{name} vanished from {self.store.url}.") from error
        return digest.hexdigest()

    def _prune(self, just_made: str) -> None:
        found = self.list()
        # age by the store's clock as well: a wrong one on this machine must not make everything look old
        clocks = [datetime.now(UTC), *(backup.modified for backup in found if backup.name == just_made)]
        for backup in expired(found, min(clocks), self._retention):
            # manifest first: if this stops half-way, what remains is an incomplete backup, pruned next time
            self.store.delete(backup.name + ".json")
            self.store.delete(backup.name)


def expired(backups: list[Backup], now: datetime, keep: Retention) -> list[Backup]:
    """Those to delete: older than `keep.hourly` unless the last of their day, and all older than `keep.daily`.

    Never a labelled one, never the newest complete one.
    """
    complete = [backup for backup in backups if backup.complete]
    last_of_day = {backup.time.date(): backup.name for backup in complete if backup.label is None}
    protected = {backup.name for backup in complete[-1:]}

    def is_expired(backup: Backup) -> bool:
        if backup.label is not None or backup.name in protected:
            return False
        age = now - backup.time
        is_daily = last_of_day.get(backup.time.date()) == backup.name
        return age > keep.daily if is_daily else age > keep.hourly

    return [backup for backup in backups if is_expired(backup)]


def _age_order(backup: Backup) -> tuple[datetime, datetime, datetime]:
    # Within a minute the name tells little: the store knows which came later
    return backup.time.replace(second=0), backup.modified, backup.time


def _parse(info: ObjectInfo, complete: bool) -> Backup | None:
    match = _NAME.fullmatch(info.name)
    if match is None:
        return None
    stamp, label = match.groups()
    try:
        time = datetime.strptime(stamp, "%Y%m%d-%H%M%S" if len(stamp) == 15 else "%Y%m%d-%H%M")
    except ValueError:
        return None
    return Backup(info.name, time.replace(tzinfo=UTC), label, info.size, info.modified, complete)


def _inspected(database: Path, name: str) -> Contents:
    try:
        return inspect(database)
    except BackupDamaged as error:
        raise BackupDamaged(f"{name} is damaged: {error}") from error


def _pack(source: Path, target: Path, progress: Progress) -> str:
    """Gzip `source`; the SHA-256 of the result."""
    total, done = source.stat().st_size, 0
    with (
        source.open("rb") as plain,
        target.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=6) as packed,
    ):
        while chunk := plain.read(_CHUNK):
            packed.write(chunk)
            done += len(chunk)
            progress("compress", done, total)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(source: Path, target: Path, name: str) -> None:
    try:
        with gzip.open(source) as packed, target.open("wb") as plain:
            shutil.copyfileobj(packed, plain, _CHUNK)
            plain.flush()
            os.fsync(plain.fileno())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BackupDamaged(f"{name} is damaged: {error}") from error


def _replace(database: Path, restored: Path) -> None:
    """Swap the checked file in. `database` exists at every moment, and no old -wal ever meets the new file."""
    give_to_owner_of(database if database.exists() else database.parent, restored)
    if database.exists():
        _keep_old(database)
        shutil.copymode(database, restored)
    os.replace(restored, database)
    descriptor = os.open(database.parent, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _keep_old(database: Path) -> None:
    before = database.with_name(database.name + ".before-restore")
    for suffix in ("", "-wal", "-shm"):
        before.with_name(before.name + suffix).unlink(missing_ok=True)
    _checkpoint(database)
    try:
        os.link(database, before)
    except OSError:  # a file system without hard links
        shutil.copy2(database, before)
    # A -wal is left only when the old file is too damaged to checkpoint: it belongs with that file
    wal = database.with_name(database.name + "-wal")
    if wal.exists():
        wal.rename(before.with_name(before.name + "-wal"))
    database.with_name(database.name + "-shm").unlink(missing_ok=True)


def _checkpoint(database: Path) -> None:
    try:
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError as error:
        raise DatabaseLocked(
            f"{database} is in use: close the program that has it open (`fuser {database}`)."
        ) from error
    except apsw.Error as error:
        logger.warning("%s is damaged (%s): it is kept as it is, its -wal with it", database, error)


@contextmanager
def _workspace() -> Iterator[Path]:
    with _disk_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="backup-") as directory:
        yield Path(directory)


@contextmanager
def _disk_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackupError(f"Cannot work in {directory}: {error} (TMPDIR names another temporary directory)") from error
