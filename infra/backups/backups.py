"""Plain backups: `app-YYYYMMDD-HHMM[-label].db.gz`, a gzipped SQLite file that any tool can open.

Beside each lies `<name>.json`, its manifest: SHA-256 and size of the .gz, rows of each table, and the TXID of the
commit log that it is the state of. It is written last, after the upload was read back and checked, so a backup with a
manifest was good when it was made. `app-latest.db.gz` is a second copy of the newest one. Times in names are UTC; two
backups within a minute are told apart by seconds (`app-YYYYMMDD-HHMMSS`).
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

from isal import igzip, isal_zlib
from pydantic import Field, TypeAdapter, ValidationError

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
from infra.backups.retention import Backup, ExpiredBackup, Retention, expired_backups, is_label, list_backups
from infra.commitlog import Position
from infra.disk.workspace import disk_errors, workspace
from infra.inspection import Contents, inspect, make_single_file
from infra.progress import Progress, no_progress
from infra.served import check_image
from infra.settings import Settings
from infra.storage.object_store import TRANSFER_SECONDS, Asked, ObjectStore, nobody_asks

logger = logging.getLogger(__name__)

LATEST = "app-latest.db.gz"

_CHUNK = 1024 * 1024
_LEVEL = 2  # of compression: as small as with zlib's 6 but for 3 %, in an eighth of its time
_HEADER_SIZE = 100  # bytes
_MOST_OF_MANIFEST = 16 * 1024 * 1024  # bytes

Count = Annotated[int, Field(ge=0)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a backup since it was checked; `created_at` is ISO 8601 in UTC, `size` bytes of the .gz."""

    name: str
    created_at: str
    size: Count
    sha256: str
    rows: dict[str, Count]
    schema_version: Count
    txid: str = ""  # 16 hex digits; backups of older releases do not say
    checksum: str = ""  # that of this commit's file: another log may have the same number

    def is_of(self, position: Position) -> bool:
        """Tell whether the backup is the log's state at this very position."""
        return (self.txid, self.checksum) == _numbers(position)


_MANIFEST = TypeAdapter(Manifest)


def open_backups(settings: Settings, asked: Asked = nobody_asks) -> "Backups":
    """Raises StoreError when the place cannot be used. `asked`: whom to tell of each request to it."""
    hourly, daily = settings.backup_keep_hourly_days, settings.backup_keep_daily_days
    retention = Retention(hourly=timedelta(days=hourly), daily=timedelta(days=daily))
    bulk = ObjectStore(settings.backup_url, timeout=TRANSFER_SECONDS, asked=asked)
    return Backups(ObjectStore(settings.backup_url, asked=asked), retention, bulk)


class Backups:
    """The backups at one URL. Methods raise BackupError, StoreError or DatabaseError."""

    def __init__(
        self,
        store: ObjectStore,
        retention: Retention,
        bulk: ObjectStore | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`bulk`: the same place with more patience, for what is as large as the database."""
        self.store = store
        self._bulk = bulk or store
        self._retention = retention
        self._now = now

    def list(self) -> list[Backup]:
        """Oldest first."""
        return list_backups(self.store)

    def newest(self) -> Backup | None:
        """Find the newest backup that has a manifest."""
        return next((backup for backup in reversed(self.list()) if backup.complete), None)

    def timed(self, backup: Backup) -> Backup:
        """Return it with the moment that its manifest says, within the minute of its name."""
        with suppress(BackupDamaged, BackupMissing, ValueError, TypeError):
            made = datetime.fromisoformat(self.manifest_of(backup.name).created_at)
            if timedelta() <= made - backup.time < timedelta(minutes=1):
                return replace(backup, time=made)
        return backup

    def newest_manifest(self) -> Manifest | None:
        """Read the manifest of that one. Raises BackupDamaged for one that cannot be read."""
        newest = self.newest()
        return self.manifest_of(newest.name) if newest else None

    def create(
        self,
        image: Path,
        position: Position,
        label: str | None = None,
        progress: Progress = no_progress,
        contents: Contents | None = None,
    ) -> Manifest:
        """Upload a database file, read it back, check it. Nobody else may use the file, which is gone afterwards.

        `position`: of the log, whose state it is. `contents`: of the file, if somebody has just looked for them: then
        it is looked through only as it was read back. Raises BackupDamaged, and removes the upload, when what was read
        back is not what was sent.
        """
        if label is not None and not is_label(label):
            raise InvalidInput([FieldError("label", "lower-case letters, digits and dashes, a letter first")])
        with workspace() as directory:
            packed = directory / "app.db.gz"
            make_single_file(image)
            contents = contents or _inspected(image, "what the log restores to")
            digest = _pack(image, packed, progress)
            image.unlink()
            now, name = self._free_name(f"-{label}.db.gz" if label else ".db.gz")
            size, version = packed.stat().st_size, contents.schema_version
            manifest = Manifest(name, now.isoformat(), size, digest, contents.rows, version, *_numbers(position))
            try:
                self._bulk.put(name, packed)
                self._download_checked(name, size, manifest, directory / "read-back.db", progress)
                self.store.put(name + ".json", json.dumps(asdict(manifest)).encode())
            except BaseException:
                with suppress(StoreError):
                    self.store.delete(name)
                raise
            self._bulk.put(LATEST, packed)
        return manifest

    def expired(self, counted: Callable[[datetime], datetime] = lambda time: time) -> Sequence[ExpiredBackup]:
        """What `prune` would delete. `counted`: what a time counts as, after leaps of the clock."""
        return expired_backups(self.list(), self._retention, counted)

    def prune(self, counted: Callable[[datetime], datetime] = lambda time: time) -> int:
        """Delete what the retention does not keep; returns how many backups that were."""
        found = self.expired(counted)
        for one in found:
            # manifest first: if this stops half-way, what remains is an incomplete backup, pruned next time
            self.store.delete(one.backup.name + ".json")
            self.store.delete(one.backup.name)
        return len(found)

    def verify(self, name: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Download a backup (default: the newest) and check digest, integrity and row counts."""
        with workspace() as directory:
            return self._fetch(self._find(name), directory / "app.db", progress)

    def restore(self, target: Path, name: str | None = None, progress: Progress = no_progress) -> Manifest:
        """Write the database of a backup (default: the newest), checked, to `target`.

        Raises NotServed for one that this release could not serve.
        """
        with disk_errors(target.parent):
            manifest = self._fetch(self._find(name), target, progress)
        check_image(target)
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

    def _free_name(self, ending: str) -> tuple[datetime, str]:
        """Take a name that is free, by creating an empty object: to create the backup itself only if it is absent would
        be one request, with all of it in memory. Returns the time of the name, too. Raises BackupError.
        """
        for stamp in ("%Y%m%d-%H%M", "%Y%m%d-%H%M%S", "%Y%m%d-%H%M%S"):
            now = self._now()
            name = f"app-{now.strftime(stamp)}{ending}"
            with suppress(ObjectExists):
                self.store.create(name, b"")
                return now, name
            if stamp.endswith("%S"):
                time.sleep(1 - now.microsecond / 1_000_000)  # another one is under way, or was killed
        raise BackupError(f"{name} is there already: other backups are under way; try again in a second.")

    def _fetch(self, backup: Backup, target: Path, progress: Progress) -> Manifest:
        """Download into `target`, checked against the manifest if there is one."""
        expected = self.manifest_of(backup.name) if backup.complete else None
        digest, contents = self._download_checked(backup.name, backup.size, expected, target, progress)
        if expected:
            return expected
        made = backup.time.isoformat()
        return Manifest(backup.name, made, backup.size, digest, contents.rows, contents.schema_version)

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
        if expected and not contents.has(expected.rows):
            raise BackupDamaged(f"{name} is damaged: rows {contents.rows}, its manifest says {expected.rows}")
        return digest, contents

    def manifest_of(self, name: str) -> Manifest:
        """Read what is said of a backup beside it. Raises BackupDamaged if it is no manifest, BackupMissing if none."""
        try:
            return _MANIFEST.validate_json(self.store.read_range(name + ".json", 0, _MOST_OF_MANIFEST))
        except ValidationError as error:
            raise BackupDamaged(f"{name}.json is not a manifest: {error.errors()[0]['msg']}") from error
        except ObjectMissing as error:
            raise BackupMissing(f"{name}.json vanished from {self.store.url}.") from error

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


def _numbers(position: Position) -> tuple[str, str]:
    return f"{position.txid:016x}", f"{position.checksum:016x}"


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
        igzip.IGzipFile(fileobj=raw, mode="wb", filename="", mtime=0, compresslevel=_LEVEL) as packed,
    ):
        while chunk := plain.read(_CHUNK):
            packed.write(chunk)
            done += len(chunk)
            progress("compress", done, total)
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size_of(start: bytes) -> int:
    """How many bytes a database says that it has, in its first ones: https://www.sqlite.org/fileformat2.html."""
    if len(start) < _HEADER_SIZE or start[24:28] != start[92:96]:  # a writer from before 2010 did not know
        return len(start)
    page_size = int.from_bytes(start[16:18], "big")
    return (65536 if page_size == 1 else page_size) * int.from_bytes(start[28:32], "big")


def _unpack(source: Path, target: Path, name: str) -> None:
    try:
        with igzip.open(source) as packed, target.open("wb") as plain:
            chunk = packed.read(_CHUNK)
            left = _size_of(chunk)
            if left > (free := shutil.disk_usage(target.parent).free):
                raise BackupError(f"{name} has {left:,} bytes, and {target.parent} has room for {free:,}")
            while chunk:
                left -= len(chunk)
                if left < 0:
                    raise BackupDamaged(f"{name} is damaged: it unpacks to more than its first page says")
                plain.write(chunk)
                chunk = packed.read(_CHUNK)
            plain.flush()
            os.fsync(plain.fileno())
    except (EOFError, OverflowError, igzip.BadGzipFile, isal_zlib.error) as error:  # type: ignore[misc]
        raise BackupDamaged(f"{name} is damaged: {error}") from error
