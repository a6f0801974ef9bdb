"""The SQLite file behind Peewee: one connection that reads, one that writes, one process that owns both.

Reads run on the event loop: WAL lets them see the last commit while a write is under way, so they do not
wait. Writes run one after another on a thread of their own, each in a transaction that is on disk
(synchronous=FULL) before the caller gets its answer.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import peewee
from playhouse.apsw_ext import APSWDatabase

from core import errors
from core.migrations import migrate
from infra.owner_lock import OwnerLock
from infra.sqlite_errors import translated_errors

logger = logging.getLogger(__name__)

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]

_BUSY_POLL_SECONDS = 0.02
_PRAGMAS = {"journal_mode": "wal", "synchronous": "full", "foreign_keys": 1}


class Database:
    """Raises DatabaseUnavailable, DatabaseInUse or SchemaTooNew when the file cannot be opened.

    A file that does not exist is created with the newest schema.
    """

    def __init__(self, path: Path, busy_timeout: float) -> None:
        """`busy_timeout`: seconds a request waits for another connection's lock before DatabaseLocked."""
        self.path = path
        self._busy_timeout = busy_timeout
        self._lock = OwnerLock(path)
        _make_directory(path.parent)
        self._lock.acquire()
        self._writer = APSWDatabase(str(path), pragmas=_PRAGMAS, timeout=busy_timeout, thread_safe=False)
        # Its waits happen on the event loop, between tries, so SQLite itself must not wait
        reader_pragmas = {**_PRAGMAS, "query_only": 1}
        self._reader = APSWDatabase(str(path), pragmas=reader_pragmas, timeout=0, thread_safe=False)
        self._writer_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database-writer")
        try:
            with translated_errors(path):
                self._writer.connect()
                migrate(self._writer)
                self._reader.connect()
        except BaseException:
            self.close()
            raise
        self._identity = _identity(path)

    async def read(self, use_case: UseCase[T]) -> T:
        """Run on the reading connection. Raises DatabaseLocked after the busy timeout."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                with translated_errors(self.path):
                    return use_case(self._reader)
            except errors.DatabaseLocked:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(_BUSY_POLL_SECONDS)

    async def write(self, use_case: UseCase[T]) -> T:
        """Run in a transaction; when this returns, it is committed and on disk.

        Raises DatabaseLocked when the write lock was not to be had within the busy timeout, counted from
        now: waiting behind other requests counts too. Whatever the use case raises rolls it back.
        """
        deadline = time.monotonic() + self._busy_timeout
        return await asyncio.get_running_loop().run_in_executor(
            self._writer_thread, self._run_in_transaction, use_case, deadline
        )

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file is not the one that was opened.

        After `rm` or `mv` SQLite would go on writing to a file that nobody can find any more.
        """
        if _identity(self.path) != self._identity:
            raise errors.DatabaseUnavailable(
                f"{self.path} was removed or replaced while the service runs; restart the service "
                "(to restore a backup, stop it first: `make restore` checks that)."
            )

    def sizes(self) -> dict[str, float]:
        """Bytes of the database and of its write-ahead log."""
        wal = self.path.with_name(self.path.name + "-wal")
        return {"database_size_bytes": _size(self.path), "database_wal_size_bytes": _size(wal)}

    def close(self) -> None:
        """Finish the queued writes, move the WAL into the file, release it. Safe to call twice."""
        self._writer_thread.shutdown(wait=True)
        self._reader.close()
        if not self._writer.is_closed():
            try:
                self._writer.execute_sql("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except peewee.PeeweeException as error:
                logger.warning("the WAL was not checkpointed (%s); the next start will do it", error)
            self._writer.close()
        self._lock.release()

    def _run_in_transaction(self, use_case: UseCase[T], deadline: float) -> T:
        remaining = deadline - time.monotonic()
        if remaining < 0 < self._busy_timeout:
            raise errors.DatabaseLocked("The database was busy with other writes for too long.")
        self.check()
        with translated_errors(self.path):
            self._writer.connection().setbusytimeout(max(0, int(remaining * 1000)))
            with self._writer.atomic("IMMEDIATE"):
                return use_case(self._writer)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise errors.DatabaseUnavailable(f"Cannot create the directory {directory}: {error.strerror}") from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
