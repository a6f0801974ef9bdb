"""What of a database cannot be moved, found before anything is: rows that only a shell can have made, and tables and
columns that are not of this release.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path

import apsw

from core.errors import MoveRefused, NotServed
from core.migrations import check_served, scripts
from infra.commitlog import open_database, opened_image
from infra.moving.rows import Lines, OddRow, Sum, Table, selected
from infra.progress import Progress
from infra.sqlite_errors import translated_errors

_MOST_NAMED = 20
_ROWS_BETWEEN_LOOKS = 5000


@dataclass(slots=True)
class Survey:
    """Of a whole database."""

    sums: dict[str, Sum] = field(default_factory=dict)  # by table
    bytes: int = 0  # of all lines
    left_behind: list[str] = field(default_factory=list)  # of the schema, without rows of its own


def survey(image: Path, tables: list[Table], progress: Progress) -> Survey:
    """Look at every row of a file that nobody writes. Raises MoveRefused, which names what cannot be moved."""
    found = Survey()
    with translated_errors(image), opened_image(image) as connection:
        check_schema(connection)
        size = image.stat().st_size
        _refuse(
            chain(
                _not_of_the_release(connection, tables, found),
                *(_odd_values(connection, table, found, progress, size) for table in tables),
            )
        )
        # Only then, or they would be named again, by what SQLite makes of them
        _refuse(
            chain(
                _odd_ids(connection, tables),
                _refused_by_foreign_keys(connection),
                _refused_by_constraints(image, tables, str(connection.pragma("encoding"))),
            )
        )
        progress("check", size, size)
    return found


def _refuse(problems: Iterator[str]) -> None:
    """Raises MoveRefused if there are any."""
    if named := list(islice(problems, _MOST_NAMED)):
        more = sum(1 for _ in problems)
        raise MoveRefused(
            "\n  ".join(["these cannot be moved; nothing was copied, nothing has changed:", *named])
            + (f"\n  and {more:,} more" if more else "")
            + '\n`python -m infra sql "UPDATE ..."` mends rows'
        )


def check_schema(connection: apsw.Connection) -> None:
    """Raises MoveRefused unless it is the one of this release."""
    try:
        is_current = check_served(connection)
    except NotServed as error:
        raise MoveRefused(str(error)) from error
    version, known = connection.pragma("user_version"), len(scripts())
    if not is_current or version != known:
        raise MoveRefused(
            f"the log's newest state has schema version {version}, and this release makes version {known} of a "
            "PostgreSQL: move with the release that the servers have, after its first start"
        )


def _odd_values(
    connection: apsw.Connection, table: Table, found: Survey, progress: Progress, size: int
) -> Iterator[str]:
    lines, total = Lines(table, str(connection.pragma("encoding"))), Sum()
    for row in connection.execute(f"SELECT {selected(table)} FROM {table.rows()}"):  # noqa: S608
        try:
            found.bytes += len(line := lines.line(row))
            total.add(line)
        except OddRow as odd:
            yield str(odd)
        if not total.rows % _ROWS_BETWEEN_LOOKS:
            progress("check", min(found.bytes, size - 1), size)  # lines are about as long as what they are made of
    found.sums[table.name] = total


def _odd_ids(connection: apsw.Connection, tables: list[Table]) -> Iterator[str]:
    for table in tables:
        if table.id:
            try:
                highest_id(connection, table)
            except OddRow as odd:
                yield str(odd)


def highest_id(connection: apsw.Connection, table: Table) -> int:
    """That a row has, or ever had; 0 if none. Raises OddRow for what is no such number."""
    sequences = "SELECT typeof(seq), CASE typeof(seq) WHEN 'integer' THEN seq END FROM sqlite_sequence WHERE name = ?"
    highest = f"SELECT 'integer', max({table.key_names}) FROM {table.quoted}"  # noqa: S608
    rows = connection.execute(f"{sequences} UNION ALL {highest}", (table.name,)).fetchall()
    if odd := [kind for kind, _ in rows if kind != "integer"]:
        raise OddRow(f"sqlite_sequence {table.name}: seq is {odd[0]}, and no whole number")
    return max([0, *(int(number) for _, number in rows if number is not None)])


def _refused_by_foreign_keys(connection: apsw.Connection) -> Iterator[str]:
    for table, rowid, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        yield f"{table} {rowid}: it refers to a row of {parent} that is not there"


def _refused_by_constraints(image: Path, tables: list[Table], encoding: str) -> Iterator[str]:
    """Rows that a shell has forced past what the migrations ask for. `encoding`: of the texts in the image."""
    scratch = image.with_name("constraints.db")
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
    try:
        with closing(open_database(str(scratch), flags)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
            connection.execute("PRAGMA journal_mode = off; PRAGMA synchronous = off")
            connection.pragma("encoding", encoding)
            for script in scripts():
                connection.execute(script)
            connection.execute("ATTACH ? AS theirs", (f"{image.absolute().as_uri()}?immutable=1",))
            for table in tables:
                yield from _refused_of(connection, table)
    finally:
        scratch.unlink(missing_ok=True)


def _refused_of(connection: apsw.Connection, table: Table) -> Iterator[str]:
    names, name, key = table.names, table.quoted, table.key_names
    with connection:
        connection.execute(f"INSERT OR IGNORE INTO main.{name} ({names}) SELECT {names} FROM {table.rows('theirs')}")  # noqa: S608
    left = f"SELECT {selected(table)} FROM {table.rows('theirs')} WHERE ({key}) NOT IN (SELECT {key} FROM main.{name})"  # noqa: S608
    for row in connection.execute(left):
        yield f"{table.named(row)}: the table's own constraints would not let it in"


def _not_of_the_release(connection: apsw.Connection, tables: list[Table], found: Survey) -> Iterator[str]:
    """What has rows or values in it cannot be moved, and must not be lost; all else is left behind."""
    with closing(apsw.Connection(":memory:")) as ours:
        for script in scripts():
            ours.execute(script)
        known = set(ours.execute(_OBJECTS))
    for kind, name in connection.execute(_OBJECTS).fetchall():
        if (kind, name) in known:
            continue
        if kind == "table" and _has_rows(connection, f'"{_quotable(name)}"'):
            yield f"table {name}: it has rows, and no migration makes it"
        elif not str(name).startswith("write_stop_"):
            found.left_behind.append(f"{kind} {name}")
    for table in tables:
        columns = {column.name for column in table.columns}
        for (name,) in connection.execute("SELECT name FROM pragma_table_xinfo(?)", (table.name,)).fetchall():
            if name in columns:
                continue
            if _has_rows(connection, f'{table.quoted} WHERE "{_quotable(name)}" IS NOT NULL'):
                yield f"column {name} of table {table.name}: it has values, and no migration makes it"
            else:
                found.left_behind.append(f"column {name} of table {table.name}")


_OBJECTS = """
SELECT type, name FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY type = 'table' DESC, name
"""


def _has_rows(connection: apsw.Connection, what: str) -> bool:
    try:
        return bool(connection.execute(f"SELECT 1 FROM {what} LIMIT 1").fetchall())  # noqa: S608 (quoted by the caller)
    except apsw.SQLError:  # it needs a module or a collation
        return True


def _quotable(name: object) -> str:
    return str(name).replace('"', '""')
