"""The one thread that writes, and what waits for it.

Writes that wait at the same time are handed over together, so that they can share a commit.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

from core.errors import TooManyWrites
from infra.commitlog.replica import Write

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
        """`store` sets what became of each write; `idle` is called after so many seconds without anything to do."""
        self._store = store
        self._idle = idle
        self._idle_seconds = idle_seconds
        self._most_waiting = most_waiting
        self._queue: SimpleQueue[Waiting | Job | None] = SimpleQueue()
        self._working = False
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
        if len(self) >= self._most_waiting:
            raise TooManyWrites(f"{self._most_waiting} writes are waiting already.")
        self._queue.put(waiting)

    def run(self, function: Callable[[], T]) -> "Future[T]":
        """Between two commits."""
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
        self._queue.put(None)
        self._thread.join()

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
        while True:
            try:
                return self._queue.get(timeout=self._idle_seconds)
            except Empty:
                self._idle()

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
        except Exception as error:  # of this code: whoever waits must hear of it
            for waiting in group:
                waiting.write.error = error
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
