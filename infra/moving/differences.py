"""Which rows differ between two states of a log: the one that was copied, attached as `copied`, and the newest."""

from collections.abc import Iterator
from pathlib import Path

import apsw

from infra.moving.rows import Row, Table, selected


def attach(connection: apsw.Connection, copied: Path) -> None:
    """Put the state that was copied beside the newest, which the connection is on."""
    connection.execute("ATTACH ? AS copied", (str(copied),))


def gone(connection: apsw.Connection, table: Table) -> Iterator[Row]:
    """Rows as they were, which are not there any more, or not so."""
    return _only_in("copied", "main", connection, table)


def come(connection: apsw.Connection, table: Table) -> Iterator[Row]:
    """Rows as they are, which were not there before, or not so."""
    return _only_in("main", "copied", connection, table)


def _only_in(one: str, other: str, connection: apsw.Connection, table: Table) -> Iterator[Row]:
    by_key = " AND ".join(f'one."{name}" = other."{name}"' for name in table.key)
    differs = " OR ".join(f"one.{column.quoted} IS NOT other.{column.quoted}" for column in table.columns)
    return iter(
        connection.execute(
            f"SELECT {selected(table, 'one')} FROM {table.rows(one)} AS one "  # noqa: S608
            f"LEFT JOIN {table.rows(other)} AS other ON {by_key} WHERE {differs}"
        )
    )
