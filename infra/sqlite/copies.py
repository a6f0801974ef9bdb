"""Copies of the newest state, to be read at leisure.

A transaction that reads the database file for long keeps its WAL from being begun anew, and other instances' commits
out of it. So whoever needs one state for longer than a query takes builds it out of the log, in a file of its own.
"""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from playhouse.apsw_ext import APSWDatabase

from core.errors import LogDamaged
from infra.clock import Clock
from infra.commitlog import Observer, defend, open_log
from infra.database import Copy, CopyLimit
from infra.disk.workspace import workspace_in
from infra.sqlite_errors import translated_errors


class Copies:
    """Any thread may call it."""

    def __init__(self, url: str, observer: Observer | None = None) -> None:
        """`url`: of the log. `observer`: of all that is asked of it."""
        self._url = url
        self._observer = observer
        self._limit = CopyLimit()

    @contextmanager
    def newest(self, at_least: int) -> Iterator[Copy]:
        """One for as long as the context lasts. `at_least`: a TXID that the log has been seen to have.

        Raises TooManyCopies, StoreError or CommitError, DatabaseFull when there is no room for it.
        """
        with ExitStack() as stack:
            stack.enter_context(self._limit.one())
            top = Path(tempfile.gettempdir())
            with translated_errors(top):
                image = stack.enter_context(workspace_in(top)) / "copy.db"
                position = open_log(self._url, Clock(), observer=self._observer).restore(image)
                if position.txid < at_least:
                    raise LogDamaged(f"{self._url} ends at TXID {position.txid:016x}, but {at_least:016x} was in it.")
                db = APSWDatabase(str(image), pragmas={"query_only": 1}, thread_safe=False)
                stack.callback(db.close)
                db.connect()
                defend(db.connection())
            yield Copy(db, position.txid)
