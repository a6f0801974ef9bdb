"""What SQLite is told before it looks into a file: nothing of it may reach beyond it, or take more than it is worth.

A file may come from anywhere: a backup, a log, what somebody has put in place. Its schema has code in it: triggers,
views, virtual tables, expressions in indexes, columns and constraints. Source: https://www.sqlite.org/security.html
"""

from collections.abc import Iterator
from contextlib import contextmanager

import apsw

OUT_OF_PROPORTION = (apsw.InterruptError, apsw.TooBigError)  # what is raised for it

_MOST = 256 * 1024 * 1024  # bytes of a value: no commit could hold more
_MOST_OF_ANY = 1024 * 1024  # bytes of a value and
_TIMES_THE_FILE = 4  # so often the file, if that is less
_STEPS = 10_000_000  # of SQLite's virtual machine, a second or less, and
_STEPS_PER_BYTE = 100  # of the file
_STEPS_BETWEEN_LOOKS = 10_000


def open_database(name: str, flags: int, vfs: str = "") -> apsw.Connection:
    """Open a file that may come from anywhere, through a VFS or SQLite's own. Raises apsw.Error."""
    connection = apsw.Connection(name, flags=flags, vfs=vfs or None)
    defend(connection)
    return connection


def defend(connection: apsw.Connection) -> None:
    """See to it that a schema calls only what SQLite has for all schemas, that nobody writes past SQLite's own tables,
    and that no value is too long for a commit.
    """
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, _MOST)
    connection.pragma("cell_size_check", True)


@contextmanager
def in_proportion(connection: apsw.Connection) -> Iterator[None]:
    """Stop what takes so many steps, or makes so long a value, that no file of that size can need it: a view that never
    ends, an expression of an index that makes a gigabyte of nothing. `OUT_OF_PROPORTION` is what is raised then, from
    there on by whatever takes long.
    """
    size = int(connection.pragma("page_count")) * int(connection.pragma("page_size"))
    left = _STEPS + _STEPS_PER_BYTE * size

    def is_over() -> bool:
        nonlocal left
        left -= _STEPS_BETWEEN_LOOKS
        return left < 0

    longest = connection.limit(apsw.SQLITE_LIMIT_LENGTH, min(_MOST_OF_ANY + _TIMES_THE_FILE * size, _MOST))
    connection.set_progress_handler(is_over, _STEPS_BETWEEN_LOOKS, id=in_proportion)
    try:
        yield
    finally:
        connection.set_progress_handler(None, id=in_proportion)
        connection.limit(apsw.SQLITE_LIMIT_LENGTH, longest)
