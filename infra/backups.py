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
import shutil
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from core.errors import (
    BackupDamaged,
    BackupError,
    BackupMissing,
    FieldError,
    InvalidInput,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from core.migrations import check_known
from infra.object_store import ObjectStore
from infra.owner_lock import OwnerLock
from infra.replace_database import replace_database
from infra.retention import Backup, Retention, is_label, list_backups, prune
from infra.settings import Settings
from infra.snapshot import Contents, Progress, inspect, no_progress, take_snapshot
from infra.workspace import disk_errors, workspace

logger = logging.getLogger(__name__)

LATEST = "app-latest.db.gz"

_CHUNK = 1024 * 1024
_TRANSFER_SECONDS = 600  # for a whole download, or for one part of an upload


@dataclass(frozen=True, slots=True)
class Manifest:
    name: str
    created_at: str
    size: int
    sha256: str
    rows: dict[str, int]
    schema_version: int


def open_backups(settings: Settings) -> "Backups":
    """Raises StoreError when the place cannot be used."""
    hourly, daily = settings.backup_keep_hourly_days, settings.backup_keep_daily_days
    retention = Retention(hourly=timedelta(days=hourly), daily=timedelta(days=daily))
    bulk = ObjectStore(settings.backup_url, timeout=_TRANSFER_SECONDS)
    return Backups(ObjectStore(settings.backup_url), retention, bulk)


class Backups:
    """The backups at one URL. Methods raise BackupError, StoreError or DatabaseError."""

    def __init__(self, store: ObjectStore, retention: Retention, bulk: ObjectStore | None = None) -> None:
        """`bulk`: the same place with more patience, for what is as large as the database."""
        self.store = store
        self._bulk = bulk or store
        self._retention = retention

    def list(self) -> list[Backup]:
        """Oldest first."""
        return list_backups(self.store)

    def newest(self) -> Backup | None:
        return next((backup for backup in reversed(self.list()) if backup.complete), None)

    def create(self, database: Path, label: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Copy the live database, upload it, read it back, check it; then prune. Requests go on meanwhile.

        Raises BackupDamaged, and removes the upload, when what was read back is not what was sent.
        """
        if label is not None and not is_label(label):
            raise InvalidInput([FieldError("label", "lower-case letters, digits and dashes, a letter first")])
        with workspace() as directory:
            snapshot, packed = directory / "app.db", directory / "app.db.gz"
            take_snapshot(database, snapshot, progress)
            contents = _inspected(snapshot, str(database))
            digest = _pack(snapshot, packed, progress)
            snapshot.unlink()
            manifest = self._upload(packed, label, digest, contents)
            self._read_back(manifest, directory, progress)
            self.store.put(manifest.name + ".json", json.dumps(asdict(manifest)).encode())
            self._bulk.put(LATEST, packed)
        try:
            prune(self.store, manifest.name, self._retention)
        except StoreError as error:
            logger.error("old backups could not be removed: %s", error)  # the new one is good all the same
        return manifest

    def verify(self, name: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Download a backup (default: the newest) and check digest, integrity and row counts."""
        with workspace() as directory:
            return self._fetch(self._find(name), directory / "app.db", progress)

    def restore(
        self,
        database: Path,
        name: str | None = None,
        progress: Progress = no_progress,
        then: Callable[[], object] = lambda: None,
    ) -> Manifest:
        """Put a backup (default: the newest) in the place of `database`, atomically, after checking it.

        `then` runs while the file is still this process's own. What was there is kept as
        `<database>.before-restore`. Raises DatabaseInUse while a server owns the file, SchemaTooNew for a backup
        that this release could not serve.
        """
        lock = OwnerLock(database)
        restored = database.with_name(database.name + ".restoring")
        with disk_errors(database.parent):
            database.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            try:
                manifest = self._fetch(self._find(name), restored, progress)
                check_known(manifest.schema_version)
                replace_database(database, restored)
                then()
            finally:
                restored.unlink(missing_ok=True)
                lock.release()
        return manifest

    def _find(self, name: str | None) -> Backup:
        found = self.list()
        if name in (None, "latest", LATEST, LATEST.removesuffix(".db.gz")):
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
                # an empty object takes the name: a create-if-absent of the file itself would be a single
                # request with the whole file in memory
                self.store.create(name, b"")
            except ObjectExists:
                continue
            self._bulk.put(name, packed)
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
                for chunk in self._bulk.read(name):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    progress("download", done, size)
        except ObjectMissing as error:
            raise BackupMissing(f"{name} vanished from {self.store.url}.") from error
        return digest.hexdigest()


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
