"""What another program has changed, row by row: taken from its file, kept, and done again on a newer state.

A changeset of SQLite's session extension has the old and the new values of each changed row, so it can tell whether it
still fits: https://www.sqlite.org/sessionintro.html. It knows neither schema nor rows without a primary key.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw

from core.errors import ServiceError
from infra.commitlog.defences import open_database
from infra.commitlog.schema import image_uri, opened_image

_FLAGS = apsw.SQLITE_CHANGESETAPPLY_FKNOACTION | apsw.SQLITE_CHANGESETAPPLY_IGNORENOOP
_MOST_NAMED = 10  # rows in a message
_SCHEMA = "SELECT type, name, tbl_name, sql FROM {schema}.sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
_TABLES = (
    "SELECT name FROM main.sqlite_schema WHERE type = 'table' AND rootpage AND "
    "(name NOT LIKE 'sqlite\\_%' ESCAPE '\\' OR name = 'sqlite_sequence')"
)


class NotRowByRow(Exception):
    """What was changed is more than a changeset can tell."""


class DoesNotFit(ServiceError):
    """Some rows are no longer as they were, or may not become what they were changed to."""


def changes_between(base: Path, edited: Path) -> bytes:
    """Return the changeset that makes `edited` out of `base`, empty if no row differs. Both are files to which nobody
    writes meanwhile; a WAL beside them does not count. `base` is used up.

    Raises NotRowByRow, also when what comes out is not exactly the same.
    """
    try:
        with opened_image(edited) as connection:
            _attach(connection, base)
            changeset = _difference(connection)
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI
        with closing(open_database(str(base), flags)) as connection:
            _attach(connection, edited)
            if changeset:
                _apply(changeset, connection, [])
            for table in _tables(connection):
                if not _is_same_in_both(connection, table):
                    raise NotRowByRow(f"in table {table} more was changed than rows with a primary key")
        for change in apsw.Changeset.iter(changeset):
            _ = change.old, change.new  # text that is no UTF-8 can be done again by nobody
    except (apsw.Error, DoesNotFit, UnicodeDecodeError) as error:
        raise NotRowByRow(str(error)) from error
    return changeset


def apply_changes(changeset: bytes, connection: apsw.Connection) -> None:
    """Make the changes in the open transaction. A row that already is what it is to become stays so.

    Raises DoesNotFit, which names the rows by their primary keys; then the transaction must not be committed. A new row
    does not fit either if its AUTOINCREMENT key was another row's that is gone since.
    """
    _apply(changeset, connection, list(_used_keys(changeset, connection)))


def _apply(changeset: bytes, connection: apsw.Connection, misfits: list[str]) -> None:
    """`misfits`: rows that are known not to fit; those that turn out so are added."""

    def conflict(reason: int, change: apsw.TableChange) -> int:
        if reason == apsw.SQLITE_CHANGESET_FOREIGN_KEY:
            misfits.append(f"{change.fk_conflicts} foreign keys")
            return apsw.SQLITE_CHANGESET_ABORT
        misfits.append(_row(change))
        return apsw.SQLITE_CHANGESET_OMIT

    _check_tables(changeset, connection)
    try:
        apsw.Changeset.apply(changeset, connection, conflict=conflict, flags=_FLAGS)
    except (apsw.AbortError, apsw.ConstraintError):
        if not misfits:  # for which `conflict` has asked for it
            raise
    if misfits:
        named = ", ".join(misfits[:_MOST_NAMED])
        more = f" and {len(misfits) - _MOST_NAMED} more" if len(misfits) > _MOST_NAMED else ""
        raise DoesNotFit(f"{named}{more}")


def statements(changeset: bytes, connection: apsw.Connection) -> Iterator[str]:
    """Write the changes as SQL, which does nothing to a row that is not as it was."""
    for change in apsw.Changeset.iter(changeset):
        columns = [f'"{name}"' for name, _ in _columns(connection, change.name)]
        old, new, table = change.old or (), change.new or (), f'"{change.name}"'
        as_it_was = _each(columns, old, " IS ", " AND ")
        match change.op:
            case "INSERT":
                names, values = ", ".join(columns[: len(new)]), ", ".join(map(_quoted, new))
                yield f"INSERT INTO {table} ({names}) VALUES ({values});"  # noqa: S608
            case "DELETE":
                yield f"DELETE FROM {table} WHERE {as_it_was};"  # noqa: S608 (to be read, and run by hand)
            case _:
                yield f"UPDATE {table} SET {_each(columns, new, ' = ', ', ')} WHERE {as_it_was};"  # noqa: S608


def _attach(connection: apsw.Connection, other: Path) -> None:
    """Leave out what may be in a WAL beside it."""
    connection.execute("ATTACH ? AS other", (image_uri(other),))
    connection.execute("PRAGMA foreign_keys = 1")


def _difference(connection: apsw.Connection) -> bytes:
    for pragma in ("user_version", "application_id"):
        if connection.pragma(pragma) != connection.pragma(pragma, schema="other"):
            raise NotRowByRow(f"{pragma} was changed as well")
    one, two = (set(connection.execute(_SCHEMA.format(schema=schema))) for schema in ("main", "other"))
    if one != two:
        raise NotRowByRow("the schema was changed as well")
    with closing(apsw.Session(connection, "main")) as session:
        for table in _tables(connection):
            if table != "sqlite_sequence":
                session.attach(table)
                session.diff("other", table)
        return session.changeset()


def _is_same_in_both(connection: apsw.Connection, table: str) -> bool:
    """Compare values, types, and how often each row is there."""
    columns = ", ".join(f'quote("{name}")' for name, _ in _columns(connection, table))
    rows = (
        f'SELECT {columns}, count(*) FROM {schema}."{table}" GROUP BY {columns}'  # noqa: S608 (of the schema)
        for schema in ("main", "other")
    )
    one, two = rows
    both = f"SELECT 1 FROM (SELECT * FROM ({one}) EXCEPT SELECT * FROM ({two})) LIMIT 1"  # noqa: S608
    swapped = f"SELECT 1 FROM (SELECT * FROM ({two}) EXCEPT SELECT * FROM ({one})) LIMIT 1"  # noqa: S608
    return not connection.execute(both).fetchall() and not connection.execute(swapped).fetchall()


def _used_keys(changeset: bytes, connection: apsw.Connection) -> Iterator[str]:
    """Name the inserted rows whose key SQLite would never have chosen, had the changes been made only now."""
    if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
        return
    used: dict[str, int] = dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))
    for change in apsw.Changeset.iter(changeset):
        if change.op == "INSERT" and change.name in used:
            key = (change.new or ())[min(change.pk_columns)]
            row = f'SELECT 1 FROM "{change.name}" WHERE rowid = ?'  # noqa: S608 (of the schema)
            if isinstance(key, int) and key <= used[change.name] and not connection.execute(row, (key,)).fetchone():
                yield _row(change)


def _check_tables(changeset: bytes, connection: apsw.Connection) -> None:
    """Raises DoesNotFit for a table that is not there or has another form: SQLite would leave its changes out, and say
    nothing.
    """
    for name, count, keys in {
        (change.name, change.column_count, tuple(sorted(change.pk_columns)))
        for change in apsw.Changeset.iter(changeset)
    }:
        columns = _columns(connection, name)
        if len(columns) < count or tuple(place for place, (_, key) in enumerate(columns) if key) != keys:
            raise DoesNotFit(f"all rows of {name}, which is another table now")


def _tables(connection: apsw.Connection) -> list[str]:
    return [str(name) for (name,) in connection.execute(_TABLES)]


def _columns(connection: apsw.Connection, table: str) -> list[tuple[str, bool]]:
    """Name, and whether it is part of the primary key."""
    found = connection.execute("SELECT name, pk FROM pragma_table_info(?)", (table,))
    return [(str(name), bool(key)) for name, key in found]


def _row(change: apsw.TableChange) -> str:
    values = (change.new if change.op == "INSERT" else change.old) or ()
    return f"{change.name} {', '.join(_quoted(values[place]) for place in sorted(change.pk_columns))}"


def _each(columns: list[str], values: tuple[object, ...], relation: str, glue: str) -> str:
    known = zip(columns, values, strict=False)
    return glue.join(f"{name}{relation}{_quoted(value)}" for name, value in known if value is not apsw.no_change)


def _quoted(value: object) -> str:
    return apsw.format_sql_value(value)
