"""Numbered SQL files, run in order, each one for SQLite and one for PostgreSQL. Here they are run on SQLite, where
`PRAGMA user_version` is the number of the last one that ran; in core.migrations.postgresql on the other.

A file is never edited after a release: add the next number. Each version of the code must work on the
next version's schema (add first, remove later), so that a rollback of the code is safe. All that are due run in one
transaction, so none has one of its own.
"""

import re
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

import apsw
from peewee import Database, PeeweeException

from core.errors import NotServed, SchemaTooNew, StatementRefused
from core.statements import OTHER_FILES, TRANSACTION, first_word, shortened, statements

# Of one statement or what it meets; the others say what has become of the file
_FAULTS = (apsw.SQLError, apsw.ConstraintError, apsw.MismatchError, apsw.AuthError, apsw.TooBigError)
_MISSING = re.compile(r"(?:no such|unknown) (function|module|collation sequence): (.*)", re.DOTALL)


class Connection(Protocol):
    def execute(self, statements: str, /, *, can_cache: bool = True) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database must have, at the least."""

    application_id: int
    columns: dict[str, set["Column"]]  # by table


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    not_null: bool
    place_in_key: int  # 0: none
    key_type: str  # INTEGER makes it the row's id; what other columns hold is not decided by their type

    @classmethod
    def of(cls, name: str, declared: str, not_null: int, place_in_key: int) -> "Column":
        return cls(name, bool(not_null), place_in_key, declared.upper() if place_in_key else "")


def scripts(dialect: str = "sqlite") -> list[str]:
    """The SQL of every migration, in order."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(f".{dialect}.sql")]
    return [file.read_text("utf-8") for file in sorted(files, key=lambda file: file.name)]


def schema_version(db: Database) -> int:
    return int(db.execute_sql("PRAGMA user_version").fetchone()[0])


def check_known(version: int) -> None:
    """Raises SchemaTooNew for a schema that only a newer version of the code can serve.

    The next version's is served as well, so that a release can be rolled back after it has migrated.
    """
    known = len(scripts())
    if version > known + 1:
        raise SchemaTooNew(
            f"The database has schema version {version}, this release serves up to {known + 1}: "
            "deploy the release that wrote it, or restore an older backup."
        )


def check_served(connection: Connection) -> bool:
    """Raises NotServed unless this is a database of this application, with all that this release needs of it; returns
    whether it can be served as it is, or is of an older release and must be migrated first.
    """
    [(version,)] = connection.execute("PRAGMA user_version")
    [(application_id,)] = connection.execute("PRAGMA application_id")
    known = len(scripts())
    needed = schema_after(min(max(version, 0), known))
    if version < 1 or application_id != needed.application_id:
        raise NotServed(
            f"It is not a database of this service: it has application_id {application_id} and schema version {version}"
        )
    check_known(version)
    for table, columns in needed.columns.items():
        if missing := columns - _columns(connection, table, {column.name for column in columns}):
            names = ", ".join(sorted(column.name for column in missing))
            raise NotServed(f"It lacks what schema version {version} has in table {table}: {names}")
        _check_usable(connection, table, sorted(column.name for column in columns))
    return bool(version >= known)


@lru_cache
def schema_after(version: int) -> Schema:
    with closing(apsw.Connection(":memory:")) as connection:
        for script in scripts()[:version]:
            connection.execute(script)
        [(application_id,)] = connection.execute("PRAGMA application_id")
        tables = [str(name) for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = {table: _columns(connection, table) for table in tables if not table.startswith("sqlite_")}
        return Schema(int(str(application_id)), columns)


def _columns(connection: Connection, table: str, names: Iterable[str] = ()) -> set[Column]:
    """All, or only those with these names: a shell may have added one with a name that is no text."""
    wanted = " OR ".join(f"name = '{name}'" for name in names) or "TRUE"
    columns = f"SELECT name, type, \"notnull\", pk FROM pragma_table_info('{table}') WHERE {wanted}"  # noqa: S608
    return {Column.of(*column) for column in connection.execute(columns)}


def _check_usable(connection: Connection, table: str, names: list[str]) -> None:
    """Raises NotServed when the table's own columns, indexes, constraints or triggers ask for what is not there."""
    columns, values = ", ".join(names), ", ".join("NULL" for _ in names)
    changes = ", ".join(f"{name} = NULL" for name in names)
    for statement in (
        f"SELECT {columns} FROM {table} ORDER BY {columns}",  # noqa: S608 (of the migrations)
        f"INSERT INTO {table} ({columns}) VALUES ({values})",  # noqa: S608
        f"UPDATE {table} SET {changes}",  # noqa: S608
        f"DELETE FROM {table} WHERE {names[0]} = 1",  # noqa: S608
    ):
        try:
            list(connection.execute(f"EXPLAIN {statement}", can_cache=False))  # it would be of the schema before
        except apsw.SQLError as error:
            missing = what_is_missing(error)
            reason = f"it needs the {missing}, which is not here" if missing else str(error)
            raise NotServed(f"Table {table} cannot be read and written: {reason}") from error


def what_is_missing(error: apsw.SQLError) -> str:
    """What of a schema this SQLite does not have, as "collation german"; empty if that is not the error."""
    found = _MISSING.fullmatch(str(error))
    return f"{found[1].removesuffix(' sequence')} {found[2].removesuffix('()')}" if found else ""


def is_migrated(db: Database) -> bool:
    """Ask whether `migrate` would find nothing to do, without the lock that it needs."""
    return schema_version(db) in (len(scripts()), len(scripts()) + 1)


def migrate(db: Database) -> int:
    """Bring the database to the newest schema, all or nothing, and return the version it has.

    Raises SchemaTooNew when the file was written by a version of the code that is newer than the next one,
    StatementRefused for a migration that cannot run.
    """
    wanted = scripts()
    with db.atomic("IMMEDIATE"):
        found = schema_version(db)
        check_known(found)
        for number, script in enumerate(wanted[found:], found + 1):
            _run(db, number, script)
        if found < len(wanted):
            db.execute_sql(f"PRAGMA user_version = {len(wanted)}")
    return max(found, len(wanted))


def _run(db: Database, number: int, script: str) -> None:
    for statement in statements(script):
        where = f"Migration {number}, {shortened(statement)}"
        if first_word(statement) in (*TRANSACTION, *OTHER_FILES):
            raise StatementRefused(f"{where}: migrations run in one transaction, in one file; leave it out")
        try:
            db.execute_sql(statement)
        except (PeeweeException, apsw.Error) as error:
            if isinstance(getattr(error, "orig", error), _FAULTS):
                raise StatementRefused(f"{where}: {error}") from error
            raise
