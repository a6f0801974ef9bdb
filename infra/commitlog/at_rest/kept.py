"""The files that are kept beside a database because they have what its log has not."""

import logging
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from infra.commitlog.file_state import has_wal, wal_of
from infra.commitlog.raw_file import RawFile
from infra.disk.durable import fsync_directory
from infra.disk.ownership import give_to_owner_of

logger = logging.getLogger(__name__)

DIVERGED = "diverged"  # a whole file, with its WAL if it had one
CHANGES = "changes"  # the rows that were changed in it; see row_changes.py
_CHUNK = 1024 * 1024  # bytes
_MOST = 10  # of each kind
_LONGEST = timedelta(days=30)


class KeptFiles:
    """Keeps `<database>.diverged-<time>` and `<database>.changes-<time>`, so that they survive a power cut."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def keep_whole(self) -> Path:
        """Copy the database, which nobody changes meanwhile, and its WAL if it has one. Returns the copy's path."""
        kept = self._new(DIVERGED)
        copies = {self._database: kept}
        if has_wal(self._database):
            copies[wal_of(self._database)] = wal_of(kept)
        with _whole_or_nothing(*copies.values()):
            for source, copy in copies.items():
                _write(copy, _chunks_of(source))
            fsync_directory(kept.parent)
        return kept

    def keep_rows(self, changeset: bytes) -> Path:
        """Write a changeset to a file of its own; see row_changes.py. Returns its path."""
        kept = self._new(CHANGES)
        with _whole_or_nothing(kept):
            _write(kept, [changeset])
        fsync_directory(kept.parent)
        return kept

    def all(self, kind: str) -> list[Path]:
        """List the files of a kind, oldest first."""
        return sorted(_kept(self._database, kind), key=_age)

    def prune(self, spared: Collection[Path]) -> None:
        """Remove what is too old, or too much; never the newest of a kind, and nothing of `spared`."""
        for kind in (DIVERGED, CHANGES):
            found = [path for path in self.all(kind) if path not in spared]
            for place, path in enumerate(found[:-1]):
                kept_since = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                if len(found) - place > _MOST or kept_since < datetime.now(UTC) - _LONGEST:
                    logger.warning(
                        "%s, kept since %s, is removed: at most %d such files are kept, for %d days",
                        path,
                        f"{kept_since:%Y-%m-%d}",
                        _MOST,
                        _LONGEST.days,
                    )
                    for suffix in ("", "-wal", "-shm"):
                        path.with_name(path.name + suffix).unlink(missing_ok=True)

    def _new(self, kind: str) -> Path:
        return self._database.with_name(f"{self._database.name}.{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")


def kept_files(database: Path) -> list[Path]:
    """List all that are there, of each kind."""
    return [*_kept(database, DIVERGED), *_kept(database, CHANGES)]


def _kept(database: Path, kind: str) -> Iterator[Path]:
    found = database.parent.glob(f"{database.name}.{kind}-*")
    return (path for path in found if not path.name.endswith(("-wal", "-shm")))


@contextmanager
def _whole_or_nothing(*paths: Path) -> Iterator[None]:
    """Remove what was written so far when the body fails, as on a full disk, where every try would leave some more."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _chunks_of(path: Path) -> Iterator[bytes]:
    with RawFile(path) as file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
        give_to_owner_of(path.parent, file.fileno())
        file.flush()
        os.fsync(file.fileno())


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name
