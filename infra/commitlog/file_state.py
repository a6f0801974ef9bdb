"""What is known of a database file and its WAL: enough to see that nobody else has touched them since."""

import os
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from core.errors import DatabaseUnavailable


class FileChanged(DatabaseUnavailable):
    """Another program has changed the file in a way that only a comparison with the log can tell."""


@dataclass(frozen=True, slots=True)
class FileState:
    """Tells one state of a file from another, as far as the file system does."""

    inode: int
    size: int  # bytes
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Shipped:
    """How much of the WAL is in the log: so many frames from its start, while it has these salts."""

    salts: bytes
    frames: int


NOTHING_SHIPPED = Shipped(b"", 0)


class Condition(Enum):
    """What a process may do with its database file."""

    UNSETTLED = auto()  # nothing: it is to be compared with the log
    OVERWRITTEN = auto()  # the same, and its WAL belongs to what was there before
    SERVED = auto()  # read and write it: it is what its position says, and the connections are open
    SUSPECT = auto()  # nothing: SQLite has found it damaged, the connections are still open
    PAGES_GONE = auto()  # nothing: what it has not read yet cannot be had any more, the connections are still open


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a database file as it was left, and of its WAL."""

    state: FileState | None  # None: there is no file, or it holds what the log does not
    shipped: Shipped = NOTHING_SHIPPED
    vouched: bool = True  # whether nobody else has backfilled anything, or the file was looked at since


def state_of(path: Path) -> FileState | None:
    """Ask the file system; returns None when there is no file. Raises OSError."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return FileState(status.st_ino, status.st_size, status.st_mtime_ns)


def inode_of(path: str) -> int:
    """Ask the file system; returns 0 when there is no file. Raises OSError."""
    try:
        return os.stat(path).st_ino
    except FileNotFoundError:
        return 0


def last_change_of(path: Path) -> int:
    """Return when the file, its name or its owner was last changed, in ns since 1970. For a copy that keeps the date of
    what was copied, that is when it was made.
    """
    status = path.stat()
    return max(status.st_mtime_ns, status.st_ctime_ns)


def wal_of(database: Path) -> Path:
    """Name the WAL of a database file."""
    return database.with_name(database.name + "-wal")


def shm_of(database: Path) -> Path:
    """Name the index of its WAL."""
    return database.with_name(database.name + "-shm")


def last_wal_of(database: Path) -> Path:
    """Name the WAL's second name, which SQLite does not know."""
    return database.with_name(database.name + ".last-wal")


def has_wal(database: Path) -> bool:
    """Tell whether there is a WAL, and something in it."""
    found = state_of(wal_of(database))
    return found is not None and found.size > 0
