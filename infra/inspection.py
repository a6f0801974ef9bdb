"""What is in a database file, and whether it is sound."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw

from core.errors import BackupDamaged, BackupError, DatabaseUnavailable
from infra.commitlog import OUT_OF_PROPORTION, in_proportion, open_database, opened_image, soundness_of
from infra.sqlite_errors import translated_errors

_BUSY_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True)
class Contents:
    rows: dict[str, int]  # by table
    schema_version: int
    uncounted: frozenset[str] = frozenset()  # tables for which this SQLite lacks something
    unchecked: tuple[str, ...] = ()  # what could not be looked at here, and why

    def has(self, rows: dict[str, int]) -> bool:
        """Whether it has these rows and no others, as far as they can be counted here."""
        return self.rows == {table: count for table, count in rows.items() if table not in self.uncounted}


def make_single_file(database: Path) -> None:
    """One that opens anywhere, also read-only, instead of one that wants a -wal beside it. Raises BackupError."""
    try:
        with closing(open_database(str(database), apsw.SQLITE_OPEN_READWRITE)) as connection:
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
            found = soundness_of(connection)
            if found.damage:
                raise BackupDamaged("integrity_check: " + "; ".join(found.damage))
            rows, uncounted = _rows(connection)
            unchecked = [
                *found.unchecked,
                *(f"table {name} cannot be counted: {why}" for name, why in uncounted.items()),
            ]
            return Contents(rows, int(connection.pragma("user_version")), frozenset(uncounted), tuple(unchecked))
    except apsw.Error as error:
        raise BackupDamaged(f"not a sound SQLite database: {error}") from error


def count_rows(database: Path) -> dict[str, int]:
    """Rows of each table of a live database that can be counted. Raises DatabaseUnavailable or DatabaseLocked."""
    with open_live(database) as connection:
        return _rows(connection)[0]


@contextmanager
def open_live(database: Path) -> Iterator[apsw.Connection]:
    """For reading. Raises DatabaseUnavailable or DatabaseLocked."""
    if not database.is_file():
        raise DatabaseUnavailable(f"There is no database at {database}.")
    with (
        translated_errors(database),
        closing(open_database(str(database), apsw.SQLITE_OPEN_READWRITE)) as connection,
    ):
        # not opened read-only: such a connection could not remove the -wal and -shm it had to make
        connection.pragma("query_only", True)
        connection.set_busy_timeout(_BUSY_TIMEOUT_MS)
        yield connection


def _rows(connection: apsw.Connection) -> tuple[dict[str, int], dict[str, str]]:
    """By table, and those that cannot be counted, and why."""
    tables = connection.execute(
        "SELECT CAST(name AS BLOB) FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' "
        "ORDER BY rowid"  # as they were made
    ).fetchall()
    rows, uncounted = {}, {}
    encoding = str(connection.pragma("encoding"))
    names = [encoded.decode(encoding, "replace") for (encoded,) in tables if isinstance(encoded, bytes)]
    with in_proportion(connection):
        for name in names:  # which a shell may have given in another encoding
            try:
                rows[name] = _count(connection, name)
            except apsw.SQLError as error:  # needs a module or a collation
                uncounted[name] = str(error)
            except OUT_OF_PROPORTION:  # a virtual table over a view that has no end
                uncounted[name] = "it takes far too long for a file of that size"
    return rows, uncounted


def _count(connection: apsw.Connection, table: str) -> int:
    quoted = table.replace('"', '""')
    count = f'SELECT count(*) FROM "{quoted}"'  # noqa: S608 (quoted above)
    try:
        rows: list[Any] = connection.execute(count).fetchall()
    except apsw.SQLError:  # perhaps only of an index that it would go through
        rows = connection.execute(f"{count} NOT INDEXED").fetchall()
    return int(rows[0][0])
