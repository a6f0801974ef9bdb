"""Putting another file in the place of a database that nobody serves."""

import logging
import os
import shutil
from contextlib import closing
from pathlib import Path

import apsw

from core.errors import DatabaseLocked
from infra.durable import fsync_directory
from infra.owner_lock import give_to_owner_of

logger = logging.getLogger(__name__)


def replace_database(database: Path, restored: Path) -> None:
    """Swap the checked file in. `database` exists at every moment, and no old -wal ever meets the new file.

    What was there is kept as `<database>.before-restore`. Raises DatabaseLocked, and changes nothing, while
    another program has the file open.
    """
    give_to_owner_of(database if database.exists() else database.parent, restored)
    if database.exists():
        _keep_old(database)
        shutil.copymode(database, restored)
    os.replace(restored, database)
    fsync_directory(database.parent)


def _keep_old(database: Path) -> None:
    _checkpoint(database)
    before = database.with_name(database.name + ".before-restore")
    for suffix in ("", "-wal", "-shm", "-journal"):
        before.with_name(before.name + suffix).unlink(missing_ok=True)
    try:
        os.link(database, before)
    except OSError:  # a file system without hard links
        shutil.copy2(database, before)
    # Left only when the old file is too damaged to open: they belong with that file
    for suffix in ("-wal", "-journal"):
        log = database.with_name(database.name + suffix)
        if log.exists():
            log.rename(before.with_name(before.name + suffix))
    database.with_name(database.name + "-shm").unlink(missing_ok=True)


def _checkpoint(database: Path) -> None:
    """Bring the file to its last commit, whichever journal it has."""
    try:
        with closing(apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READWRITE)) as connection:
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # or closing a damaged file removes its -wal
            # a connection that has read nothing knows of no WAL; reading also rolls a hot journal back
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            if not database.with_name(database.name + "-wal").exists():
                # not in WAL mode: busy while somebody else is at work
                connection.execute("BEGIN EXCLUSIVE")
                connection.execute("ROLLBACK")
            connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
    except apsw.BusyError as error:
        raise DatabaseLocked(
            f"{database} is in use: close the program that has it open (`fuser {database}`)."
        ) from error
    except apsw.Error as error:
        logger.warning("%s is damaged (%s): it is kept as it is, its journal with it", database, error)
