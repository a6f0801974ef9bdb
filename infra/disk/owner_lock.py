"""One process owns a database file.

The lock is an flock on a file beside the database, which the kernel drops when the process dies, however it
dies. It is not on the database itself: closing any descriptor of that file would drop SQLite's own locks.
"""

import fcntl
import json
import os
import socket
from pathlib import Path

from core.errors import DatabaseInUse, DatabaseUnavailable
from infra.disk.ownership import give_to_owner_of


class OwnerLock:
    """The lock of one database file; see above."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._path = database.with_name(database.name + ".lock")
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Raises DatabaseInUse naming the owner, DatabaseUnavailable when the file cannot be written or locked."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DatabaseUnavailable(f"Cannot write {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise DatabaseInUse(
                f"{self._database} is in use by {self.owner()}. Stop that process first "
                "(Ctrl-C under `make serve`, `make stop` for the container), then try again."
            ) from None
        except OSError as error:
            os.close(descriptor)
            raise DatabaseUnavailable(f"Cannot lock {self._path}: {error.strerror}") from error
        try:
            give_to_owner_of(self._database.parent, descriptor)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
        except OSError as error:
            os.close(descriptor)
            raise DatabaseUnavailable(f"Cannot write {self._path}: {error.strerror}") from error
        self._descriptor = descriptor

    def release(self) -> None:
        """Let go of the lock; safe to call twice."""
        # The file stays: removing it would let two processes lock two different files of one name
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def held(self) -> bool:
        """Whether any process holds the lock now. Raises DatabaseUnavailable when that cannot be found out."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise DatabaseUnavailable(f"Cannot read {self._path}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            raise DatabaseUnavailable(f"Cannot lock {self._path}: {error.strerror}") from error
        finally:
            os.close(descriptor)
        return False

    def owner(self) -> str:
        """Who wrote the lock file last, for messages."""
        try:
            owner = json.loads(self._path.read_text())
            return f"process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"
