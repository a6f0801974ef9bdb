"""The one thread that writes, and what waits for it.

Writes that wait at the same time are done together, so that they share a commit, which costs as much as dozens of
them; between commits the thread looks after the file.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from queue import Empty, SimpleQueue
from typing import TypeVar

from core.errors import DatabaseLocked, DatabaseUnavailable, ServiceError, TooManyWrites
from infra.clock import Clock
from infra.commitlog import Replica, Write
from infra.telemetry.trace_context import WORKED_FOR

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_TOGETHER = 256
ANSWERED_IN_A_TURN = 4  # of the event loop, of those that share a commit
_GATHER_SECONDS = 0.02  # the longest that writes wait for others that are just being read
_PREPARE_SECONDS = 0.5
WATCH_SECONDS = 0.5  # how often an idle server looks for the work of other programs


@dataclass(slots=True)
class Waiting:
    write: Write
    arrived: float  # by the clock
    done: "asyncio.Future[None]"  # cancelled when nobody waits any more


Job = Callable[[], None]


class WriteQueue:
    """Any thread may call it. From its start on the replica belongs to its thread."""

    def __init__(
        self,
        replica: Replica,
        clock: Clock,
        *,
        busy_timeout: float,
        commit_timeout: float,
        most_waiting: int,
        watch_seconds: float | None,
        queued: Callable[[float], None] = lambda seconds: None,
        prepare: Callable[[], bool] | None = None,
    ) -> None:
        """In seconds: `busy_timeout`, how long a write may have waited for those ahead of it; `commit_timeout`, how
        long a commit is tried; `watch_seconds`, how often the file is looked after, None for never; `queued`:
        whom to tell how long each write has waited for its turn.

        `prepare`: what the thread does first, again and again until it returns True. Nothing may be put before.
        """
        self._replica = replica
        self._clock = clock
        self._busy_timeout = busy_timeout
        self._commit_timeout = commit_timeout
        self._most_waiting = most_waiting
        self._watch_seconds = watch_seconds
        self._queued = queued
        self._prepare = prepare or (lambda: True)
        self._is_watch_failing = False
        self._queue: SimpleQueue[Waiting | Job | None] = SimpleQueue()
        self._watch_due = time.monotonic() + (watch_seconds or 0.0)
        self._working = False
        self._closed = False
        # a daemon: the process must be able to end while a store does not answer
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        return self._queue.qsize()

    @property
    def is_busy(self) -> bool:
        return self._working or bool(len(self))

    def put(self, waiting: Waiting) -> None:
        """Let it wait for its turn. Raises TooManyWrites, DatabaseUnavailable after `close`."""
        self._check_open()
        if len(self) >= self._most_waiting:
            raise TooManyWrites(f"{self._most_waiting} writes are waiting already.")
        self._queue.put(waiting)

    def run(self, function: Callable[[], T]) -> "Future[T]":
        """Call a function on the thread, between two commits. Raises DatabaseUnavailable after `close`."""
        self._check_open()
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function())
                except BaseException as error:
                    future.set_exception(error)

        self._queue.put(job)
        return future

    def close(self) -> None:
        """Do what is waiting, and end."""
        self._closed = True
        self._queue.put(None)
        self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise DatabaseUnavailable("The database is closed.")

    def _run(self) -> None:
        job: Waiting | Job | None
        while not self._prepare():
            with suppress(Empty):
                self._queue.get(timeout=_PREPARE_SECONDS)
                return  # it was closed
        while (job := self._next()) is not None:
            self._working = True
            while isinstance(job, Waiting):
                job = self._store_with_others(job)
            if job is None:
                return
            job()
            self._working = False

    def _next(self) -> "Waiting | Job | None":
        while self._watch_seconds is not None:
            try:
                return self._queue.get(timeout=max(0.0, self._watch_due - time.monotonic()))
            except Empty:
                self._watch()
                self._watch_due = time.monotonic() + self._watch_seconds
        return self._queue.get()

    def _watch(self) -> None:
        path = self._replica.path
        try:
            self._replica.watch(self._clock.now())
            self._is_watch_failing = False
        except ServiceError as error:
            if not self._is_watch_failing:
                logger.warning("%s cannot be brought in order with its log now: %s", path, error)
            self._is_watch_failing = True
        except Exception:
            logger.exception("watching %s failed", path)

    def _store_with_others(self, first: Waiting) -> "Waiting | Job | None":
        """Store it with the writes that wait right behind it; returns what comes next."""
        group, following = self._gather(first)
        group = [waiting for waiting in group if not waiting.done.cancelled()]
        try:
            self._write(group)
        except BaseException as error:  # of the code: whoever waits must hear of it, and the thread goes on
            for waiting in group:
                waiting.write.error = RuntimeError(f"A write has failed by {error!r}.")
                waiting.write.error.__cause__ = error
        _tell(group)
        return following

    def _gather(self, first: Waiting) -> "tuple[list[Waiting], Waiting | Job | None]":
        """Take the writes that wait behind it, as long as each turn of the event loop brings more: whoever was just
        answered asks again, and would find the others gone. Returns them, and what comes next.
        """
        group, before, until = [first], 0, time.monotonic() + _GATHER_SECONDS
        while before < len(group) < MOST_TOGETHER and (left := until - time.monotonic()) > 0:
            before = len(group)
            _let_turn(first.done.get_loop(), left)
            with suppress(Empty):
                while len(group) < MOST_TOGETHER:
                    following = self._queue.get_nowait()
                    if not isinstance(following, Waiting):
                        return group, following
                    group.append(following)
        return group, _nothing

    def _write(self, group: list[Waiting]) -> None:
        now = self._clock.now()
        writes = []
        for waiting in group:
            waiting.write.context.run(self._queued, now - waiting.arrived)
            if now - waiting.arrived > self._busy_timeout > 0:
                waiting.write.error = DatabaseLocked("The writes ahead took too long: a lock, or a slow store.")
            else:
                writes.append(waiting.write)
        if writes:
            token = WORKED_FOR.set([write.context for write in writes])
            try:
                self._replica.write_together(writes, self._commit_timeout)
            finally:
                WORKED_FOR.reset(token)


def _nothing() -> None:
    pass


def _let_turn(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Wait until an event loop has done what it has at hand, so long at most."""
    turned = threading.Lock()
    turned.acquire()
    with suppress(RuntimeError):  # closed: nothing comes from there any more
        loop.call_soon_threadsafe(turned.release)
        turned.acquire(timeout=seconds)


def _tell(group: list[Waiting]) -> None:
    """One call wakes an event loop for all of its writes."""
    for loop in {waiting.done.get_loop() for waiting in group}:
        futures = [waiting.done for waiting in group if waiting.done.get_loop() is loop]
        with suppress(RuntimeError):  # closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, loop, iter(futures))


def _resolve(loop: asyncio.AbstractEventLoop, futures: "Iterator[asyncio.Future[None]]") -> None:
    """A few in each turn of the loop: whoever reads meanwhile is not to wait until all of them are answered."""
    some = list(islice(futures, ANSWERED_IN_A_TURN))
    for future in some:
        if not future.done():
            future.set_result(None)
    if len(some) == ANSWERED_IN_A_TURN:
        loop.call_soon(_resolve, loop, futures)
