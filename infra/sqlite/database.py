"""SQLite over the commit log: reads on the event loop, writes on a thread of their own, in groups.

WAL lets reads see the last stored commit while a write is under way, so they do not wait for it. All writes that wait
when a commit begins share it, each in a savepoint of its own.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from core import errors
from core.migrations import is_migrated, migrate
from infra.clock import Clock
from infra.commitlog import START_SECONDS, CommitLog, Paging, Replica, Write, open_log
from infra.database import Copy, GiveUp, Session, UseCase
from infra.disk import volume
from infra.disk.owner_lock import OwnerLock
from infra.disk.ownership import make_directories, why_not_writable
from infra.served import ServedSchema
from infra.settings import Settings
from infra.sqlite.background import Background
from infra.sqlite.copies import Copies
from infra.sqlite.freshness import Freshness
from infra.sqlite.slow_statements import SlowStatements
from infra.sqlite.write_queue import WATCH_SECONDS, Waiting, WriteQueue
from infra.sqlite_errors import root_cause, translated_errors
from infra.storage.object_store import ObjectStore
from infra.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BUSY_POLL_SECONDS = 0.02
_LOOP_SECONDS = 0.1
_MB = 1024 * 1024  # bytes
_PATIENCE_SECONDS = 0.2  # with a lock at the start: what stays locked is waited for while requests are answered


class SqliteDatabase:
    """Raises DatabaseError, StoreError or CommitError when it cannot be opened.

    A database that does not exist, neither here nor in the log, is created with the newest schema.
    """

    def __init__(
        self,
        path: Path,
        log: CommitLog,
        clock: Clock,
        *,
        lasting: bool = True,
        busy_timeout: float = 5.0,
        commit_timeout: float = 10.0,
        freshness: float = 0.0,
        write_queue_limit: int = 1000,
        slow_statement_ms: int = 0,
        queued: Callable[[float], None] = lambda seconds: None,
        paging: Paging | None = None,
        give_up: GiveUp | None = None,
    ) -> None:
        """All in seconds: `busy_timeout` for the lock of another connection and for the writes ahead in the queue,
        `commit_timeout` for storing a commit, `freshness` the age of the state that a read may answer from; `queued`:
        whom to tell how long each write has waited for its turn. `paging`: when a file that does not last is opened
        page by page.

        With `give_up` a lock of another program is no error: the database opens when it is let go, and until then all
        that asks for it raises DatabaseLocked. What stands against it then goes to `give_up`, on another thread.
        """
        self.path = path
        self.log = log
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._commit_timeout = commit_timeout
        self._max_age = freshness
        self._give_up = give_up or (lambda error: None)
        self._waits_for: errors.DatabaseLocked | None = None  # what keeps it from being opened
        self._slow = SlowStatements(slow_statement_ms)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._file_is_whole = threading.Lock()
        self._translated_errors = translated_errors(path)
        self._lasting = lasting
        self._probing_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="database-probe")
        self._copies = Copies(log.url, log.observer)
        self._lock = OwnerLock(path)
        _make_directory(path.parent)
        self._check_files_are_writable()
        self._lock.acquire()
        self._replica = Replica(
            path,
            log,
            clock,
            lasting=lasting,
            busy_timeout=busy_timeout,
            swap=self._swap,
            schema=ServedSchema(),
            paging=paging,
        )
        if give_up:
            self._replica.at_rest.busy_timeout = min(_PATIENCE_SECONDS, busy_timeout)
        try:
            if not self._open_if_let() and not give_up:
                raise self._waits_for or AssertionError
        except BaseException:
            self._release()
            raise
        self._background = Background(self._replica.read_ahead)
        self._freshness = Freshness(self._replica, log, clock, self._catch_up)
        self._queue = WriteQueue(
            self._replica,
            clock,
            busy_timeout=busy_timeout,
            commit_timeout=commit_timeout,
            most_waiting=write_queue_limit,
            watch_seconds=WATCH_SECONDS if lasting else None,
            queued=queued,
            prepare=self._prepare,
        )

    @property
    def txid(self) -> int:
        """The newest commit that reads see."""
        return self._replica.visible.txid

    @property
    def has_been_current(self) -> bool:
        """Whether what is here was the newest state at some time since the start."""
        return self._replica.has_looked_past

    def session(self, at_least: int = 0) -> Session:
        """Of a request that arrives now."""
        return Session(at_least, arrived=self._clock.now())

    async def read(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run on the reading connection, on a state that is fresh enough.

        Raises DatabaseLocked after the busy timeout, StoreError when the freshness cannot be had, TxidNotReached
        when the session has seen a commit that the log does not have.
        """
        self._check_open()
        session = session or Session()
        not_before = self._not_before(session)
        if not self._replica.is_fresh(not_before, session.at_least):
            await self._freshness.reach(not_before, session.at_least)
        try:
            return await self._patiently(use_case, session, is_counted=True)
        except errors.DatabaseDamaged:
            if not self._replica.suspect():
                raise
        except errors.SnapshotGone:
            self._replica.lose_pages()
        await self._freshness.reach(not_before, session.at_least)  # which brings it in order
        return await self._patiently(use_case, session, is_counted=True)

    async def read_local(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run on the reading connection, on whatever state is here; no metric has it."""
        self._check_open()
        return await self._patiently(use_case, session or Session(), is_counted=False)

    async def _patiently(self, use_case: UseCase[T], session: Session, *, is_counted: bool) -> T:
        """Again and again while another connection holds a lock."""
        begun = waited = 0.0
        try:
            while True:
                try:
                    with self._file_is_whole, self._translated_errors:
                        started = time.perf_counter()
                        try:
                            return self._slow.watch(use_case, self._replica.reader)
                        except Exception as error:
                            # A disk error ends the whole transaction, so that a savepoint's end is an error as well
                            if (first := root_cause(error, self.path)) is not error:
                                raise first from error
                            raise
                        finally:
                            session.shown = self._replica.stored.txid  # after it: it may have seen a new commit
                            if is_counted:
                                self.log.observer.query_finished("read", time.perf_counter() - started)
                except errors.DatabaseLocked:
                    now = self._clock.now()
                    begun = begun or now
                    waited = now - begun
                    self.log.observer.lock_met()
                    if waited >= self._busy_timeout:
                        raise
                    await asyncio.sleep(_BUSY_POLL_SECONDS)
        finally:
            if waited:
                self.log.observer.lock_waited(waited)

    async def write(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run in a transaction, with whatever else waits; when this returns, the commit is in the log.

        Raises DatabaseLocked when the writes ahead took longer than the busy timeout, or another program held the
        lock that long, TooManyWrites at once when too many are waiting, TxidNotReached as `read` does, with nothing
        done. Whatever the use case raises undoes it alone.
        """
        self._check_open()
        session = session or Session()
        if session.at_least > self.txid:
            await self._freshness.reach(float("-inf"), session.at_least)
        self._loop = asyncio.get_running_loop()
        arrived = self._clock.now()
        write = Write(self._slow.watched(use_case), self._not_before(session), session.at_least)
        waiting = Waiting(write, arrived, self._loop.create_future())
        self._queue.put(waiting)
        await waiting.done
        session.shown = write.shown
        result: T = write.outcome()
        return result

    async def write_alone(self, use_case: UseCase[T]) -> T:
        """Run outside of any transaction, each statement a commit of its own: VACUUM, and what else SQLite allows
        nowhere else. Another instance's commit in between runs all of it again. WRITE_QUEUE_LIMIT does not count it:
        it is for operators' work, not for requests.
        """
        return await self._on_thread(
            lambda: self._replica.run_alone(self._slow.watched(use_case), self._clock.now() + self._commit_timeout)
        )

    def copy(self, at_least: int) -> AbstractContextManager[Copy]:
        """See `Copies.newest`."""
        return self._copies.newest(at_least)

    async def verify(self) -> None:
        """Ask the store for the newest state now. Raises StoreError or CommitError when there is no good answer."""
        self._check_open()
        await self._freshness.reach(self._clock.now(), 0)

    def check(self) -> None:
        """Raises DatabaseUnavailable when the file was removed or replaced by another program, DatabaseLocked while a
        lock of one keeps it from being opened.
        """
        self._check_open()
        self._replica.check()

    def check_unlocked(self) -> None:
        """Raises DatabaseLocked when a lock of another program has kept the last write from being done, and stays."""
        if self._replica.blocked:
            raise self._replica.blocked

    @property
    def waits_for(self) -> errors.DatabaseLocked | None:
        """The lock of another program for which something waits now."""
        return self._replica.waits_for

    def check_writable(self) -> None:
        """Raises DatabaseUnavailable, with the command that mends it, when the file or what is beside it is another
        user's or read-only: those who have it open may go on for a while, and then nobody can open it any more. Raises
        WritesStopped when the data is being moved elsewhere, or was.
        """
        self._check_files_are_writable()
        from infra.moving.write_stop import found_in  # no request needs it

        with self._file_is_whole, translated_errors(self.path):
            stop = found_in(self._replica.reader.connection())
        if stop and (stop.until is None or stop.until > time.time()):
            raise errors.WritesStopped(f"Writes are stopped: {stop}")

    def _check_files_are_writable(self) -> None:
        beside = ("", "-wal", "-shm", ".position", ".last-wal", ".lock")
        if reason := why_not_writable(
            [self.path.parent, *(self.path.with_name(self.path.name + end) for end in beside)]
        ):
            raise errors.DatabaseUnavailable(reason)

    def in_background(self) -> AbstractContextManager[None]:
        """Read ahead what is likely to be asked for, if the file is paged; see `Background.during`."""
        return self._background.during()

    def gauges(self) -> dict[str, float]:
        """What the file, its volume and its place in the log are now, by the names of infra/telemetry/catalogue.py."""
        wal = self.path.with_name(self.path.name + "-wal")
        found = {
            "database_size_bytes": _size(self.path),
            "database_wal_size_bytes": _size(wal),
            "database_writes_waiting": len(self._queue),
            **volume.gauges(self.path.parent),
        }
        if self._waits_for:
            return found
        shown = self.txid
        return found | {
            "commit_log_txid": shown,
            "commit_log_lag_commits": max(0, self.log.head.known_end - shown),
            "commit_log_unsaved_seconds": self._replica.unsaved_seconds(),
        }

    def close(self) -> None:
        """Finish the queued writes, move the WAL into the file, release it. Safe to call twice."""
        self._queue.close()
        self._release()

    # Opening

    def _open(self) -> None:
        self._replica.open()
        if is_migrated(self._replica.reader):
            return
        self._replica.look_past_snapshot()  # perhaps it was migrated since
        if not is_migrated(self._replica.reader):
            self._replica.write(migrate, self._clock.now() + START_SECONDS, self._clock.now())

    def _open_if_let(self) -> bool:
        """Returns False while another program holds a lock that does not let it be opened."""
        try:
            self._open()
        except errors.DatabaseLocked as error:
            if not self._waits_for:
                logger.error("the start waits, and until then whatever asks for rows is a 503: %s", error)
            self._waits_for = error
            return False
        if self._waits_for:
            logger.info("%s was let go: the start goes on", self.path)
        self._waits_for = None
        self._replica.at_rest.busy_timeout = self._busy_timeout
        return True

    def _prepare(self) -> bool:
        """The first that the thread of the queue does, until it succeeds."""
        try:
            return not self._waits_for or self._open_if_let()
        except errors.StoreUnavailable as error:
            logger.warning("%s", error)
        except Exception as error:
            self._give_up(error)
        return False

    def _check_open(self) -> None:
        if self._waits_for:
            raise errors.DatabaseLocked(f"The start waits: {self._waits_for}")

    # Closing

    def _release(self) -> None:
        self._probing_thread.shutdown(wait=True)
        self._replica.close(self._clock.now())
        self._lock.release()

    def _not_before(self, session: Session) -> float:
        arrived = session.arrived if session.arrived < float("inf") else self._clock.now()
        return arrived - self._max_age

    async def _catch_up(self) -> None:
        """A write that is being stored keeps its thread: beside it one can ask, and need not wait if nothing is new."""
        loop = asyncio.get_running_loop()
        if not (self._queue.is_busy and await loop.run_in_executor(self._probing_thread, self._replica.is_current)):
            await self._on_thread(self._brought_up_to_date)

    def _brought_up_to_date(self) -> None:
        self._replica.catch_up()
        if not self._lasting:  # nothing watches over it between two requests
            try:
                self._replica.settle_unknown(self._clock.now())
            except errors.ServiceError as error:
                logger.warning("the number of a commit of unknown outcome is not taken yet: %s", error)

    async def _on_thread(self, function: Callable[[], T]) -> T:
        self._check_open()
        self._loop = asyncio.get_running_loop()
        return await asyncio.wrap_future(self._queue.run(function))

    def _swap(self, change: Callable[[], None]) -> None:
        """Reads run on the event loop, so there no read is ever in the middle of a change of the file.

        While no loop runs, as Lambda's does not between two invocations, the lock keeps the next one's reads away.
        """
        done: Future[None] = Future()
        claim = threading.Lock()

        def run() -> None:
            if claim.acquire(blocking=False):
                try:
                    with self._file_is_whole:
                        change()
                    done.set_result(None)
                except BaseException as error:
                    done.set_exception(error)

        while not done.done():
            loop = self._loop
            try:
                if loop is None or not loop.is_running():
                    run()
                else:
                    loop.call_soon_threadsafe(run)
            except RuntimeError:  # the loop was closed in this moment
                continue
            wait([done], _LOOP_SECONDS)
        done.result()


def open_sqlite(
    settings: Settings, *, lasting: bool = True, metrics: Metrics | None = None, give_up: GiveUp | None = None
) -> SqliteDatabase:
    """See `SqliteDatabase`, also for what it raises."""
    clock = Clock()
    metrics = metrics or Metrics()
    ObjectStore(settings.replica_url).check_directories()
    return SqliteDatabase(
        settings.database_path,
        open_log(settings.replica_url, clock, observer=metrics),
        clock,
        lasting=lasting,
        busy_timeout=settings.busy_timeout_seconds,
        commit_timeout=settings.commit_timeout_seconds,
        freshness=settings.read_freshness_seconds,
        write_queue_limit=settings.write_queue_limit,
        slow_statement_ms=settings.slow_statement_ms,
        queued=metrics.write_queued,
        paging=_paging(settings),
        give_up=give_up,
    )


def _paging(settings: Settings) -> Paging | None:
    if settings.paged_above_mb == "never":
        return None
    above = 0 if settings.paged_above_mb == "always" else settings.paged_above_mb
    return Paging(above * _MB, settings.page_cache_mb * _MB)


def _make_directory(directory: Path) -> None:
    try:
        make_directories(directory)
    except OSError as error:
        raise errors.DatabaseUnavailable(f"Cannot create the directory {directory}: {error.strerror}") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
