"""The files that are kept beside a database because they have what its log has not."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

logger = logging.getLogger(__name__)

DIVERGED = "diverged"  # a whole file, with its WAL if it had one
CHANGES = "changes"  # the rows that were changed in it; see row_changes.py
_MOST = 10  # of each kind
_LONGEST = timedelta(days=30)


class KeptFiles:
    """`<database>.diverged-<time>` and `<database>.changes-<time>`."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def new(self, kind: str) -> Path:
        """A name for the next one."""
        return self._database.with_name(f"{self._database.name}.{kind}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")

    def all(self, kind: str) -> list[Path]:
        """Oldest first."""
        found = self._database.parent.glob(f"{self._database.name}.{kind}-*")
        return sorted((path for path in found if not path.name.endswith(("-wal", "-shm"))), key=_age)

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


@contextmanager
def whole_or_nothing(*paths: Path) -> Iterator[None]:
    """Remove what was written so far when the body fails, as on a full disk, where every try would leave some more."""
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise


def _age(path: Path) -> tuple[float, str]:
    return path.stat().st_mtime, path.name
