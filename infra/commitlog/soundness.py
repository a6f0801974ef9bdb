"""Whether a database is sound, as far as this SQLite can tell."""

from dataclasses import dataclass, field
from pathlib import Path

import apsw

from infra.commitlog.defences import OUT_OF_PROPORTION, in_proportion

_BTREES = "SELECT name FROM sqlite_schema WHERE type = 'table' AND rootpage"


@dataclass(slots=True)
class Soundness:
    """What is damaged, and what could not be looked at."""

    damage: list[str]
    unchecked: list[str] = field(default_factory=list)  # tables, and why


def soundness_of(connection: apsw.Connection, most: int = 10) -> Soundness:
    """Check every page, and name at most so much damage. Rows that the table's CHECKs would refuse are none, nor is
    what cannot be looked at because this SQLite lacks a function or collation: then every other table is checked by
    itself.

    Raises apsw.CorruptError and the like for what is no database.
    """
    if Path(connection.filename).stat().st_size % int(connection.pragma("page_size")):
        return Soundness(["it ends in the middle of a page"])  # for the rest of which SQLite reads zeros
    connection.execute("PRAGMA ignore_check_constraints = 1")
    try:
        with in_proportion(connection):
            return _soundness_of(connection, most)
    except OUT_OF_PROPORTION as error:
        return Soundness([f"what its schema asks for is out of all proportion to its size ({error})"])
    finally:
        connection.execute("PRAGMA ignore_check_constraints = 0")


def _soundness_of(connection: apsw.Connection, most: int) -> Soundness:
    try:
        return Soundness(_checked(connection, f"integrity_check({most})"))
    except apsw.SQLError:
        found = Soundness([])
        for (table,) in connection.execute(_BTREES).fetchall():
            _check_table(connection, str(table), found)
        found.damage = found.damage[:most]
        return found


def _check_table(connection: apsw.Connection, table: str, found: Soundness) -> None:
    quoted = apsw.format_sql_value(table)
    try:
        found.damage += _checked(connection, f"integrity_check({quoted})")
        return
    except apsw.SQLError as error:
        reason = str(error)
    try:
        found.damage += _checked(connection, f"quick_check({quoted})")
        found.unchecked.append(f"the indexes of table {table} cannot be checked here: {reason}")
    except apsw.SQLError:
        found.unchecked.append(f"table {table} cannot be checked here: {reason}")


def _checked(connection: apsw.Connection, check: str) -> list[str]:
    rows = [str(message) for (message,) in connection.execute(f"PRAGMA {check}")]
    return [] if rows == ["ok"] else rows
