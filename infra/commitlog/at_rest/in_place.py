"""The log's state put where the database file is, past SQLite."""

import os
from contextlib import closing
from pathlib import Path

import apsw

from infra.commitlog.raw_file import RawFile
from infra.disk.durable import fsync_directory
from infra.disk.ownership import give_to_owner_of

_VERSIONS = slice(18, 20)  # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
_WAL_MODE = b"\2\2"
_AT_A_TIME = 64 * 1024  # bytes
_PAGE_SIZE = 1024  # bytes. A commit holds whole pages: docs/commit-log-measurements.md has what others would cost


def write_over(path: Path, image: Path, *, lasting: bool) -> None:
    """Make the file's content that of an image. A shell that waits at its prompt has this very file open without any
    lock, and would write to the WAL of another one that has its name. `lasting`: it must survive a power cut.
    """
    with RawFile(path) as mine, RawFile(image) as other:
        offset = 0
        while some := other.read(_AT_A_TIME):
            mine.seek(offset)
            if mine.read(len(some)) != some:
                mine.seek(offset)
                mine.write(some)
            offset += len(some)
        mine.truncate(offset)
        if lasting:
            mine.sync()


def put_where_none_is(path: Path, image: Path, *, lasting: bool) -> None:
    """Move an image to where there is no file, in WAL mode. `lasting`: it must survive a power cut."""
    if lasting:
        with image.open("rb") as file:
            give_to_owner_of(path.parent, file.fileno())
            os.fsync(file.fileno())
    os.replace(image, path)
    leave_in_wal_mode(path, lasting=lasting)
    if lasting:
        fsync_directory(path.parent)


def leave_in_wal_mode(path: Path, *, lasting: bool, vfs: str = "") -> None:
    """Make the file's header say WAL mode, whatever the log's image says. Once the anchor reads it, SQLite cannot."""
    if is_in_wal_mode(path, vfs):
        return
    with RawFile(path, vfs) as file:
        file.seek(_VERSIONS.start)
        file.write(_WAL_MODE)
        if lasting:
            file.sync()


def is_in_wal_mode(path: Path, vfs: str = "") -> bool:
    """Ask the file's header whether SQLite would open it in WAL mode."""
    with RawFile(path, vfs) as file:
        return file.read(_VERSIONS.stop)[_VERSIONS] == _WAL_MODE


def create_empty(path: Path) -> None:
    """Create a database with nothing in it."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.pragma("page_size", _PAGE_SIZE)
        connection.execute("PRAGMA journal_mode=wal").fetchall()
