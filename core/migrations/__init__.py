"""Numbered SQL files, run in order; `PRAGMA user_version` is the number of the last one that ran.

A file is never edited after a release: add the next number. Each version of the code must work on the
next version's schema (add first, remove later), so that a rollback of the code is safe.
"""

from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

import apsw
from peewee import Database

from core.errors import NotServed, SchemaTooNew


class Connection(Protocol):
    def execute(self, statements: str, /) -> Iterable[Any]: ...


@dataclass(frozen=True, slots=True)
class Schema:
    """What a database must have, at the least."""

    application_id: int
    columns: dict[str, set[tuple[str, int]]]  # by table: name, place in the primary key


def scripts() -> list[str]:
    """The SQL of every migration, in order."""
    files = [file for file in resources.files(__name__).iterdir() if file.name.endswith(".sql")]
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
    needed = _schema_after(min(max(version, 0), known))
    if version < 1 or application_id != needed.application_id:
        raise NotServed(
            f"It is not a database of this service: it has application_id {application_id} and schema version {version}"
        )
    check_known(version)
    for table, columns in needed.columns.items():
        if missing := columns - _columns(connection, table):
            names = ", ".join(sorted(name for name, _ in missing))
            raise NotServed(f"It lacks what schema version {version} has in table {table}: {names}")
    return bool(version >= known)


@lru_cache
def _schema_after(version: int) -> Schema:
    with closing(apsw.Connection(":memory:")) as connection:
        for script in scripts()[:version]:
            connection.execute(script)
        [(application_id,)] = connection.execute("PRAGMA application_id")
        tables = [str(name) for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        columns = {table: _columns(connection, table) for table in tables if not table.startswith("sqlite_")}
        return Schema(int(str(application_id)), columns)


def _columns(connection: Connection, table: str) -> set[tuple[str, int]]:
    return {(str(column[1]), int(column[5])) for column in connection.execute(f"PRAGMA table_info({table})")}


def migrate(db: Database) -> int:
    """Bring the database to the newest schema, all or nothing, and return the version it has.

    Raises SchemaTooNew when the file was written by a version of the code that is newer than the next one.
    """
    wanted = scripts()
    with db.atomic("IMMEDIATE"):
        found = schema_version(db)
        check_known(found)
        for script in wanted[found:]:
            for statement in script.split(";"):
                if statement.strip():
                    db.execute_sql(statement)
        if found < len(wanted):
            db.execute_sql(f"PRAGMA user_version = {len(wanted)}")
    return max(found, len(wanted))
