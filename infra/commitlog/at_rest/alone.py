"""Having a database file for oneself: nobody else has it open, or adds anything to it, meanwhile.

No connection of this process may be open either.
"""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import apsw

from core import errors
from infra.commitlog.anchor import begin_reading, existing_database
from infra.commitlog.at_rest.in_place import is_in_wal_mode
from infra.commitlog.defences import OUT_OF_PROPORTION, in_proportion
from infra.commitlog.file_state import FileChanged, Known, has_wal, shm_of, state_of, wal_of
from infra.commitlog.raw_file import page_size_of
from infra.commitlog.soundness import soundness_of
from infra.commitlog.wal import salts_in
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

_CONSOLIDATIONS = 5


@contextmanager
def exclusively(path: Path, vfs: str = "") -> Iterator[apsw.Connection]:
    """Keep every other program from opening the database. Raises DatabaseLocked while one has it open."""
    with translated_errors(path), closing(existing_database(path, vfs)) as connection:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        try:
            connection.execute("PRAGMA locking_mode = EXCLUSIVE").fetchall()
            for statement in ("BEGIN EXCLUSIVE", "ROLLBACK"):
                connection.execute(statement)
        except apsw.BusyError as error:
            raise errors.DatabaseLocked(
                f"{path} is open in another program; close it, the file must be brought in order."
            ) from error
        yield connection


@contextmanager
def alone_with(path: Path) -> Iterator[None]:
    """Do the same, but go on without a lock when the file is too damaged for SQLite to take one."""
    with ExitStack() as stack:
        with suppress(errors.DatabaseDamaged):
            stack.enter_context(exclusively(path))
        yield


@contextmanager
def consolidated(path: Path, busy_timeout: float) -> Iterator[apsw.Connection]:
    """Bring everything that was committed into the file itself, and let nothing be added meanwhile: what other programs
    commit stays in the WAL. Gives a connection that reads the file. `busy_timeout`: seconds to wait for others.

    Raises DatabaseLocked while another program does not let it be.
    """
    with translated_errors(path), closing(existing_database(path)) as connection:
        connection.set_busy_timeout(int(busy_timeout * 1000))
        if not is_in_wal_mode(path):  # which SQLite does not see when a WAL lies beside it
            connection.execute("PRAGMA journal_mode=delete").fetchall()
        connection.execute("PRAGMA journal_mode=wal").fetchall()
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        for _ in range(_CONSOLIDATIONS):
            [(blocked, _, _)] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            begin_reading(connection)
            if not has_wal(path):
                break
            connection.execute("ROLLBACK")
            if blocked:
                raise errors.DatabaseLocked(f"{path} is held by another program, in a transaction: end it.")
        else:
            raise errors.DatabaseLocked(f"{path} is written by another program again and again: stop it.")
        yield connection


def give_pages_of(page_size: int, path: Path, busy_timeout: float) -> None:
    """Write a database anew with pages of this size, in bytes, if it has others. `busy_timeout`: seconds to wait.

    Raises DatabaseLocked while another program has it open, DatabaseError or apsw.Error when it cannot be written anew.
    """
    if page_size_of(path) == page_size:
        return
    with translated_errors(path), closing(existing_database(path)) as connection:
        connection.set_busy_timeout(int(busy_timeout * 1000))
        connection.execute("PRAGMA journal_mode=delete").fetchall()  # in WAL mode they keep their size
        connection.pragma("page_size", page_size)
        try:
            with in_proportion(connection):
                connection.execute("VACUUM")
        except OUT_OF_PROPORTION as error:
            raise errors.DatabaseDamaged(f"{path} cannot be written anew: {error}") from error


def check_sound(connection: apsw.Connection, path: Path) -> None:
    """Raises DatabaseDamaged: what is broken must not become history."""
    found = soundness_of(connection, 1)
    if found.damage:
        raise errors.DatabaseDamaged(f"{path} is damaged: {found.damage[0]}")
    for unchecked in found.unchecked:
        logger.warning("%s: %s", path, unchecked)


def checkpoint(connection: apsw.Connection, path: Path, known: Known) -> None:
    """Backfill the WAL and remove it, on a connection that has the file exclusively. Raises FileChanged unless file and
    WAL are what is known of them.
    """
    check_wal(connection, path, known)
    if state_of(path) != known.state:
        raise FileChanged(f"{path} was overwritten by another program.")
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    remove_wal(path)


def check_wal(connection: apsw.Connection, path: Path, known: Known) -> None:
    """Raises FileChanged when the WAL has anything else than what was shipped."""
    frames, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    frames = max(frames, 0)
    if frames != known.shipped.frames or (frames and salts_in(wal_of(path)) != known.shipped.salts):
        raise FileChanged(f"{path} was changed by another program.")


def remove_wal(path: Path) -> None:
    """Remove the WAL of a database, and the WAL's index."""
    for beside in (wal_of(path), shm_of(path)):
        beside.unlink(missing_ok=True)
