"""The one thread that writes, and what waits for it.

Writes that wait at the same time are handed over together, so that they can share a commit.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from core.errors import DatabaseUnavailable, TooManyWrites
from infra.commitlog import Write

logger = logging.getLogger(__name__)

T = TypeVar("T")

MOST_TOGETHER = 128


@dataclass(slots=True)
class Waiting:
    write: Write
    arrived: float  # by the clock
    done: "asyncio.Future[None]"  # cancelled when nobody waits any more


Job = Callable[[], None]


class WriteQueue:
    def __init__(
        self,
        store: Callable[[list[Waiting]], None],
        idle: Callable[[], None],
        idle_seconds: float | None,
        most_waiting: int,
    ) -> None:
        """`store` sets what became of each write; `idle` is called every so many seconds, between two jobs."""
        self._store = store
        self._idle = idle
        self._idle_seconds = idle_seconds
        self._most_waiting = most_waiting
        self._queue: SimpleQueue[Waiting | Job | None] = SimpleQueue()
        self._idle_due = time.monotonic() + (idle_seconds or 0.0)
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
        """Raises TooManyWrites."""
        self._check_open()
        if len(self) >= self._most_waiting:
            raise TooManyWrites(f"{self._most_waiting} writes are waiting already.")
        self._queue.put(waiting)

    def run(self, function: Callable[[], T]) -> "Future[T]":
        """Between two commits."""
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
        while (job := self._next()) is not None:
            self._working = True
            while isinstance(job, Waiting):
                job = self._store_with_others(job)
            if job is None:
                return
            job()
            self._working = False

    def _next(self) -> "Waiting | Job | None":
        while self._idle_seconds is not None:
            try:
                return self._queue.get(timeout=max(0.0, self._idle_due - time.monotonic()))
            except Empty:
                self._idle()
                self._idle_due = time.monotonic() + self._idle_seconds
        return self._queue.get()

    def _store_with_others(self, first: Waiting) -> "Waiting | Job | None":
        """Store it with the writes that wait right behind it; returns what comes next."""
        group = [first]
        following: Waiting | Job | None = _nothing
        with suppress(Empty):
            while len(group) < MOST_TOGETHER and isinstance(following := self._queue.get_nowait(), Waiting):
                group.append(following)
                following = _nothing
        group = [waiting for waiting in group if not waiting.done.cancelled()]
        try:
            self._store(group)
        except BaseException as error:  # of the code: whoever waits must hear of it, and the thread goes on
            for waiting in group:
                waiting.write.error = RuntimeError(f"A write has failed by {error!r}.")
                waiting.write.error.__cause__ = error
        _tell(group)
        return following


def _nothing() -> None:
    pass


def _tell(group: list[Waiting]) -> None:
    """One call wakes an event loop for all of its writes."""
    for loop in {waiting.done.get_loop() for waiting in group}:
        futures = [waiting.done for waiting in group if waiting.done.get_loop() is loop]
        with suppress(RuntimeError):  # closed: nobody waits there any more
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: "list[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
