"""What the engine asks of the application whose database it keeps."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

import apsw

from infra.commitlog.defences import open_database


class Schema(Protocol):
    """The application's word on a database."""

    def check(self, connection: apsw.Connection) -> bool:
        """Raises NotServed for a database that may not become a commit; returns False for one that must be migrated
        before.
        """

    def migrate(self, path: Path) -> None:
        """Bring a file to the newest schema, all or nothing. Raises ServiceError."""


class AnySchema:
    """Takes whatever is a database."""

    def check(self, connection: apsw.Connection) -> bool:
        """Take it."""
        return True

    def migrate(self, path: Path) -> None:
        """Leave it as it is."""
        pass


def is_new(connection: apsw.Connection) -> bool:
    """Ask whether a database is as SQLite makes it, with nothing in it."""
    [(content,)] = connection.execute("SELECT count(*) FROM sqlite_schema")
    return not (content or connection.pragma("user_version") or connection.pragma("application_id"))


def image_uri(path: Path) -> str:
    """Name a file that nobody writes so that no -wal or -shm is looked for or left behind."""
    return path.absolute().as_uri() + "?immutable=1"


@contextmanager
def opened_image(path: Path, vfs: str = "") -> Iterator[apsw.Connection]:
    """Open a file that nobody writes, for reading; see `image_uri`. `vfs`: the one to open it through, if not SQLite's
    own.
    """
    flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
    with closing(open_database(image_uri(path), flags, vfs)) as connection:
        yield connection
