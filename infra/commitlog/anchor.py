"""What keeps the work of other programs in the WAL until it has been shipped.

While somebody reads, SQLite backfills nothing that is newer than what is read, and never reuses a part of the WAL
that was not backfilled; no checkpoint, of whatever kind and by whichever program, goes past that. So a read
transaction stays open all the time, at a state all of which is in the log, and every frame after it can be found:
where the last shipped one ends or, in a WAL that was begun anew since, from its start. More than once it cannot be
begun anew meanwhile: that takes a checkpoint of the frames in it. All of this holds among programs that have the same
file, WAL and index open, which `OpenFile.look` sees to.

Source: https://www.sqlite.org/walformat.html#wal_locks (WAL_READ_LOCK)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

from infra.commitlog.defences import open_database

# Not a constant: then SQLite would not read the file
_READ = "SELECT count(*) FROM sqlite_schema"


class Anchor:
    """Keeps a read transaction open: one of two connections always reads."""

    def __init__(self, path: Path, vfs: str = "") -> None:
        """`vfs`: the one to open it through, if not SQLite's own."""
        self._path = str(path)
        self._vfs = vfs
        self._connections: list[apsw.Connection] = []  # the reading one first

    def hold(self) -> None:
        """Begin to read the newest state. Raises apsw.Error."""
        for _ in range(2):
            connection = open_database(self._path, apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE, self._vfs)
            self._connections.append(connection)
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        begin_reading(self._connections[0])

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Read the newest state, and let go of the older one only when the body has ended well."""
        old, new = self._connections
        begin_reading(new)
        try:
            yield
        except BaseException:
            end_reading(new)
            raise
        end_reading(old)
        self._connections.reverse()

    def release(self) -> None:
        """Let go, as often as one likes."""
        while self._connections:
            self._connections.pop().close()


class Guard:
    """Holds the WAL between two anchors: meanwhile no shell that ends takes it away, and all that is new is in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: apsw.Connection | None = None

    def hold(self) -> None:
        """Begin to read, if there is a database that can be read, and nothing is held yet."""
        # SQLite would remove the WAL of an empty file
        if self._connection or not self._path.exists() or not self._path.stat().st_size:
            return
        connection = existing_database(self._path)
        try:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            begin_reading(connection)
        except apsw.Error:  # nothing that somebody else could have open
            connection.close()
        else:
            self._connection = connection

    def release(self) -> None:
        """Let go of the WAL; safe to call when nothing is held."""
        if self._connection:
            self._connection.close()
            self._connection = None


def existing_database(path: Path, vfs: str = "") -> apsw.Connection:
    """Open for reading and writing, and never create a file. Raises apsw.Error."""
    return open_database(str(path), apsw.SQLITE_OPEN_READWRITE, vfs)


def begin_reading(connection: apsw.Connection) -> None:
    """Begin a transaction that sees the newest state. Raises apsw.Error, and leaves none behind then."""
    connection.execute("BEGIN")
    try:
        connection.execute(_READ).fetchall()
    except apsw.Error:
        end_reading(connection)
        raise


def end_reading(connection: apsw.Connection) -> None:
    """End the transaction, if a page that could not be read has not ended it already."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")
