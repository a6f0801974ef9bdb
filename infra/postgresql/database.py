"""PostgreSQL as the endpoints see it: a few threads, and as many connections.

Reads and writes use the same threads. What waits for one longer than the busy timeout is refused, and so is, at once,
whatever comes while the server is known to be away.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from contextvars import copy_context
from time import monotonic
from typing import TypeVar

from core import errors
from core.migrations.postgresql import migrate
from infra.database import Copy, GiveUp, Session, UseCase
from infra.disk.ownership import make_directories
from infra.postgresql.connections import Connector
from infra.postgresql.copies import Copies
from infra.postgresql.errors import translated_errors
from infra.postgresql.transactions import Transactions
from infra.settings import Settings
from infra.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_START_PAUSE_SECONDS = 0.5
_AT_ONCE_SECONDS = 0.5
_MIGRATION_SECONDS = 3600.0
_PASSING = (errors.DatabaseUnavailable, errors.DatabaseLocked)  # as another start that migrates


class PostgresqlDatabase:
    """Raises DatabaseUnavailable, NotServed or SettingsError when it cannot be opened."""

    def __init__(
        self, settings: Settings, *, lasting: bool = True, metrics: Metrics, give_up: GiveUp | None = None
    ) -> None:
        """With `give_up` a server that is away is no error: the database opens when it is there, and until then all
        that asks for it raises DatabaseUnavailable. What stands against it then goes to `give_up`, on another thread.
        """
        if lasting:
            with suppress(OSError):  # for the history of the objectives, which says by itself where it cannot be kept
                make_directories(settings.database_path.parent)
        self._connector = Connector(settings)
        self._metrics = metrics
        self._settings = settings
        self._copies = Copies(self._connector)
        self._threads = ThreadPoolExecutor(settings.database_connections, "database")
        self._idle: list[Transactions] = []
        self._asked = 0  # and not answered; of the event loop
        self._takes_writes = True
        self._closed = threading.Event()
        self._start_waits_for: errors.DatabaseError | None = None
        try:
            self._open()
        except errors.DatabaseRefused:
            raise
        except _PASSING as error:
            if give_up is None:
                raise
            logger.error("the start waits, and until then whatever asks for rows is a 503: %s", error)
            self._start_waits_for = error
            threading.Thread(target=self._wait_for_start, args=(give_up,), name="database-start", daemon=True).start()

    @property
    def txid(self) -> int:
        """Commits have no numbers here."""
        return 0

    @property
    def has_been_current(self) -> bool:
        """Always: there is no other state."""
        return True

    def session(self, at_least: int = 0) -> Session:
        """Whoever has written is shown it: there is one database."""
        return Session()

    async def read(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run it on one of the connections, each statement for itself or in a transaction that it begins."""
        return await self._on_thread(lambda transactions: transactions.read(use_case))

    async def read_local(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """The same for whoever has no time to wait for a server that is away: there is no other state."""
        return await self._on_thread(lambda transactions: transactions.read(use_case, _AT_ONCE_SECONDS))

    async def write(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run it in a transaction; when this returns, that is stored.

        Raises DatabaseLocked when no connection was free within the busy timeout, TooManyWrites at once when too many
        wait for one, DatabaseLocked as well when others were first until the time was over, CommitOutcomeUnknown.
        """
        if self._waiting >= self._settings.write_queue_limit:
            raise errors.TooManyWrites(f"{self._waiting} requests wait for a connection already.")
        return await self._on_thread(lambda transactions: transactions.write(use_case), self._metrics.write_queued)

    def copy(self, at_least: int) -> AbstractContextManager[Copy]:
        """See `Copies.newest`."""
        return self._copies.newest()

    async def verify(self) -> None:
        """What `check` and a read have shown is all there is."""

    def check(self) -> None:
        """Raises DatabaseUnavailable while the start waits, and after the end."""
        if self._closed.is_set():
            raise errors.DatabaseUnavailable("The database is closed.")
        if self._start_waits_for:
            raise errors.DatabaseUnavailable(f"The start waits: {self._start_waits_for}")

    def check_unlocked(self) -> None:
        """No lock outlives what it is for here."""

    def check_writable(self) -> None:
        """Raises DatabaseUnavailable when the server has said that it is only read."""
        if not self._takes_writes:
            raise errors.DatabaseUnavailable(f"{self._connector.target.shown} is a standby, or set to be only read.")

    @property
    def waits_for(self) -> errors.DatabaseLocked | None:
        """None: see `check_unlocked`."""
        return None

    def in_background(self) -> AbstractContextManager[None]:
        """Do nothing: nothing of the database is here."""
        return nullcontext()

    def gauges(self) -> dict[str, float]:
        """What waits here; of the server, its own tools know more."""
        return {"database_writes_waiting": self._waiting}

    def close(self) -> None:
        """Finish what is under way, and close the connections. Safe to call twice."""
        self._closed.set()
        self._threads.shutdown(wait=True)
        for transactions in self._idle:
            transactions.close()

    # Opening

    def _open(self) -> None:
        db = self._connector.connect()
        try:
            with translated_errors():
                db.driver.deadline = monotonic() + _MIGRATION_SECONDS
                db.driver.execute("SET statement_timeout = 0")  # what a migration does may take long
                migrate(db, is_dsql=self._connector.is_dsql)
                db.driver.execute("RESET statement_timeout")  # of a session that PgBouncer may give to others
            self._takes_writes = db.driver.takes_writes
        finally:
            db.driver.close()

    def _wait_for_start(self, give_up: GiveUp) -> None:
        while not self._closed.wait(_START_PAUSE_SECONDS):
            try:
                self._open()
            except Exception as error:
                if isinstance(error, errors.DatabaseRefused) or not isinstance(error, _PASSING):
                    give_up(error)
                    return
                self._start_waits_for = error
            else:
                logger.info("%s is there: the start goes on", self._connector.target.shown)
                self._start_waits_for = None
                return

    # Threads

    @property
    def _waiting(self) -> int:
        return max(0, self._asked - self._settings.database_connections)

    async def _on_thread(
        self, run: Callable[[Transactions], T], queued: Callable[[float], None] = lambda seconds: None
    ) -> T:
        self.check()
        if not (self._idle and self._idle[-1].is_connected):
            self._connector.check_not_away()
        if self._waiting >= self._settings.write_queue_limit:
            raise errors.DatabaseLocked(f"{self._waiting} requests wait for a connection already.")
        context, arrived = copy_context(), monotonic()

        def job() -> T:
            context.run(queued, monotonic() - arrived)
            return context.run(self._run, run)

        try:
            future = self._threads.submit(job)
        except RuntimeError:  # closed since
            raise errors.DatabaseUnavailable("The database is closed.") from None
        self._asked += 1
        try:
            return await self._answer_of(future)
        finally:
            self._asked -= 1

    async def _answer_of(self, future: "Future[T]") -> T:
        """One that has not begun in time never does, and nor does one for which nobody waits any more."""
        is_late = False

        def give_up_waiting() -> None:
            nonlocal is_late
            is_late = future.cancel()

        seconds = self._settings.busy_timeout_seconds
        timer = asyncio.get_running_loop().call_later(seconds, give_up_waiting) if seconds else None
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if not is_late:
                raise
            raise errors.DatabaseLocked(f"No connection to the database was free within {seconds:g} s.") from None
        finally:
            if timer:
                timer.cancel()

    def _run(self, run: Callable[[Transactions], T]) -> T:
        """On a thread of the pool."""
        try:
            transactions = self._idle.pop()  # the one that was used last: the others may be closed, or not open yet
        except IndexError:
            transactions = Transactions(self._connector, self._metrics, self._settings.commit_timeout_seconds)
        try:
            return run(transactions)
        finally:
            self._takes_writes = transactions.takes_writes
            self._idle.append(transactions)
