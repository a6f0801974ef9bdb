"""What is in a database file, and whether it is sound."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from core.errors import BackupDamaged, BackupError, DatabaseUnavailable
from infra.commitlog.schema import opened_image
from infra.sqlite_errors import translated_errors

# Called with the name of the phase, what is done and the total, in bytes
Progress = Callable[[str, int, int], None]
_BUSY_TIMEOUT_MS = 5000


def no_progress(phase: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Contents:
    rows: dict[str, int]  # by table
    schema_version: int


def make_single_file(database: Path) -> None:
    """One that opens anywhere, also read-only, instead of one that wants a -wal beside it. Raises BackupError."""
    try:
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.pragma("journal_mode", "delete")
    except (apsw.IOError, apsw.FullError) as error:
        raise BackupError(f"Cannot work in {database.parent}: {error} (TMPDIR names another directory)") from error
    except apsw.Error as error:
        raise BackupDamaged(f"not a sound SQLite database: {error}") from error


def inspect(database: Path) -> Contents:
    """Check every page of a file that nobody writes and count its rows. Raises BackupDamaged."""
    if database.stat().st_size == 0:
        raise BackupDamaged("the file is empty")  # which SQLite takes for a database without tables
    try:
        with opened_image(database) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(10)")]
            if found != ["ok"]:
                raise BackupDamaged("integrity_check: " + "; ".join(found))
            return Contents(_rows(connection), int(connection.pragma("user_version")))
    except apsw.Error as error:
        raise BackupDamaged(f"not a sound SQLite database: {error}") from error


def count_rows(database: Path) -> dict[str, int]:
    """Rows of each table of a live database. Raises DatabaseUnavailable or DatabaseLocked."""
    with open_live(database) as connection:
        return _rows(connection)


@contextmanager
def open_live(database: Path) -> Iterator[apsw.Connection]:
    """For reading. Raises DatabaseUnavailable or DatabaseLocked."""
    if not database.is_file():
        raise DatabaseUnavailable(f"There is no database at {database}.")
    with (
        translated_errors(database),
        closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as connection,
    ):
        # not opened read-only: such a connection could not remove the -wal and -shm it had to make
        connection.pragma("query_only", True)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        yield connection


def _rows(connection: apsw.Connection) -> dict[str, int]:
    tables = connection.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
    ).fetchall()
    return {str(name): _count(connection, str(name)) for (name,) in tables}


def _count(connection: apsw.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    rows: list[Any] = connection.execute(f'SELECT count(*) FROM "{quoted}"').fetchall()  # noqa: S608 (quoted above)
    return int(rows[0][0])
