"""A use case on a connection: in a transaction, again when another one was first, and what became of it."""

import logging
import random
import time
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import TypeVar

import psycopg
from peewee import PeeweeException

from core.errors import (
    CommitNotStored,
    CommitOutcomeUnknown,
    DatabaseLocked,
    DatabaseRefused,
    DatabaseUnavailable,
    ServiceError,
)
from infra.database import UseCase
from infra.postgresql.connections import Connector, PeeweeConnection
from infra.postgresql.errors import (
    driver_error,
    is_conflict,
    is_duplicate,
    is_lost,
    is_stale,
    needs_plain_statements,
    translated,
)
from infra.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SHORTEST, _LONGEST = 45 * 60.0, 55 * 60.0  # of a connection: DSQL ends one after an hour
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.5
_GRACE_SECONDS = 1.0  # for the server to end by itself what takes too long, before it is not waited for any more
_RESTED_SECONDS, _PATIENCE_SECONDS = 60.0, 1.0  # what is between may have forgotten a connection that long unused
_MOST_DUPLICATES = 3  # attempts at a row that is there: twice it may have come just now


class _Again(Exception):
    """Nothing was stored, and the use case may run again. `instead`: what is raised when there is no time for that."""

    def __init__(self, instead: ServiceError) -> None:
        super().__init__(instead)
        self.instead = instead


class Transactions:
    """One connection, and what is run on it; of one thread at a time."""

    def __init__(self, connector: Connector, metrics: Metrics, seconds: float) -> None:
        """`seconds`: how long a use case may take with all of its attempts."""
        self._connector = connector
        self._metrics = metrics
        self._seconds = seconds
        self._db: PeeweeConnection | None = None
        self._renew_at = self._used_at = 0.0  # by the clock `monotonic`

    def read(self, use_case: UseCase[T], seconds: float = inf) -> T:
        """Run it, each statement for itself, or in a transaction that it begins; for so long at most."""
        return self._until_done(lambda until, attempts: self._read(use_case, until, attempts), seconds)

    def write(self, use_case: UseCase[T]) -> T:
        """Run it in a transaction. What it raises undoes it."""
        return self._until_done(lambda until, attempts: self._write(use_case, until, attempts))

    @property
    def is_connected(self) -> bool:
        """As far as is known."""
        return self._db is not None and not self._db.driver.closed

    @property
    def takes_writes(self) -> bool:
        return self._db is None or self._db.driver.closed or self._db.driver.takes_writes

    def close(self) -> None:
        if self._db:
            self._db.driver.close()
        self._db = None

    def _until_done(self, attempt: Callable[[float, int], T], seconds: float = inf) -> T:
        until, pause, attempts = monotonic() + min(self._seconds, seconds), _FIRST_PAUSE, 0
        while True:
            attempts += 1
            try:
                return attempt(until, attempts)
            except _Again as again:
                instead = again.instead
            wait = random.uniform(0, pause)  # noqa: S311  # so that two do not meet again
            if monotonic() + wait >= until:
                raise instead
            self._metrics.use_case_repeated()
            time.sleep(wait)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _read(self, use_case: UseCase[T], until: float, attempts: int) -> T:
        db = self._connected(until)
        db.begin_statement = "BEGIN READ ONLY"
        return self._run("read", db, lambda: use_case(db), attempts)

    def _write(self, use_case: UseCase[T], until: float, attempts: int) -> T:
        db = self._connected(until)

        def run() -> T:
            db.driver.execute(f"BEGIN ISOLATION LEVEL {self._connector.isolation}")
            result = use_case(db)
            db.check_is_there()  # or nobody could say whether COMMIT was heard
            return result

        result = self._run("write", db, run, attempts)
        self._commit(db)
        return result

    def _run(self, kind: str, db: PeeweeConnection, run: Callable[[], T], attempts: int) -> T:
        began = monotonic()
        try:
            return run()
        except BaseException as error:
            self._undo(db)
            self._explain(error, attempts)
            raise
        finally:
            self._metrics.query_finished(kind, monotonic() - began)

    def _commit(self, db: PeeweeConnection) -> None:
        began = monotonic()
        db.driver.deadline = max(db.driver.deadline, began + _GRACE_SECONDS)
        try:
            cursor = db.driver.execute("COMMIT")
        except Exception as error:
            cause = driver_error(error)
            if is_conflict(cause) or (cause is not None and (cause.sqlstate or "").startswith("23")):
                self._undo(db)
                self._explain(error, _MOST_DUPLICATES)
            self.close()
            self._metrics.outcome_unknown()
            raise CommitOutcomeUnknown(f"The connection was lost during COMMIT: {cause or error}", 0) from error
        if cursor.statusmessage != "COMMIT":
            raise _Again(CommitNotStored("A statement of it has failed, and so the database has undone all of it."))
        self._metrics.commit_stored(0, monotonic() - began)

    def _explain(self, error: BaseException, attempts: int) -> None:
        """Raise what is meant by it, if it is not what it says."""
        cause = driver_error(error)
        if cause is None:
            return
        if is_conflict(cause):
            self._metrics.commit_conflicted()
            raise _Again(DatabaseLocked(f"Other transactions were first, for {self._seconds:g} s.")) from error
        if needs_plain_statements(cause):
            self._connector.prepare_after = None
            self.close()
            raise _Again(DatabaseUnavailable("What is before the database has lost a prepared statement.")) from error
        service_error = translated(cause)
        if is_lost(cause) or is_stale(cause):
            self.close()
            raise _Again(service_error or DatabaseUnavailable(str(cause))) from error
        if is_duplicate(cause) and service_error and attempts < _MOST_DUPLICATES:
            raise _Again(service_error) from error
        if isinstance(service_error, DatabaseUnavailable):
            self.close()  # a server that takes no writes has perhaps a successor
        if service_error and isinstance(error, PeeweeException | psycopg.Error):
            raise service_error from error

    def _connected(self, until: float) -> PeeweeConnection:
        now = monotonic()
        if self._db and (self._db.driver.closed or now >= self._renew_at or not self._is_there(self._db, now)):
            self.close()
        self._used_at = now
        if not self._db:
            try:
                self._db = self._connector.connect()
            except DatabaseRefused:
                raise
            except DatabaseUnavailable as error:
                raise _Again(error) from error
            self._renew_at = now + random.uniform(_SHORTEST, _LONGEST)  # noqa: S311  # not all at once
        self._db.driver.deadline = until + _GRACE_SECONDS
        return self._db

    def _is_there(self, db: PeeweeConnection, now: float) -> bool:
        """Asked of one that has rested: a lost packet is waited for as long as the whole request may take."""
        if now - self._used_at < _RESTED_SECONDS:
            return True
        db.driver.deadline = monotonic() + _PATIENCE_SECONDS
        try:
            db.driver.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def _undo(self, db: PeeweeConnection) -> None:
        if db.driver.closed or not db.is_in_transaction:
            return
        try:
            db.rollback()
        except psycopg.Error:
            self.close()
