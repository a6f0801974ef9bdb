"""The database as the endpoints see it, whichever it is."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import peewee

from core.errors import DatabaseLocked, TooManyCopies

if TYPE_CHECKING:
    from infra.settings import Settings
    from infra.telemetry.metrics import Metrics

T = TypeVar("T")
UseCase = Callable[[peewee.Database], T]
GiveUp = Callable[[Exception], object]

MOST_COPIES = 4  # at once


@dataclass(slots=True)
class Session:
    """Of one request: what its caller has seen, and what the answer shows, both TXIDs; and when it arrived (by the
    database's clock), so that one question to the store answers whatever it reads.
    """

    at_least: int = 0
    shown: int = 0
    arrived: float = float("inf")  # each read for itself


@dataclass(frozen=True, slots=True)
class Copy:
    """One state, for as long as somebody reads it."""

    db: peewee.Database
    txid: int  # the commit that it is the state of; 0 where commits have no numbers


class CopyLimit:
    """As many copies as may be read at once. Any thread may call it."""

    def __init__(self) -> None:
        self._free = threading.BoundedSemaphore(MOST_COPIES)

    @contextmanager
    def one(self) -> Iterator[None]:
        """Raises TooManyCopies."""
        if not self._free.acquire(blocking=False):
            raise TooManyCopies(f"{MOST_COPIES} copies of the database are being read already.")
        try:
            yield
        finally:
            self._free.release()


class Database(Protocol):
    """What it raises is a ServiceError, or what a use case has raised."""

    @property
    def txid(self) -> int:
        """The newest commit that reads see; 0 where commits have no numbers."""

    @property
    def has_been_current(self) -> bool:
        """Whether what `read_local` answers from was the newest state at some time since the start."""

    def session(self, at_least: int = 0) -> Session:
        """Of a request that arrives now."""

    async def read(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run it on one state, which is fresh enough. It may run again."""

    async def read_local(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """The same on whatever state can be had at once."""

    async def write(self, use_case: UseCase[T], session: Session | None = None) -> T:
        """Run it in a transaction. It may run again; when this returns, it is stored once. What it raises undoes it."""

    def copy(self, at_least: int) -> AbstractContextManager[Copy]:
        """One state that may be read for long, on any thread; `at_least`: a TXID that has been shown."""

    async def verify(self) -> None:
        """Ask whether writes could be stored now. Raises StoreError or CommitError when not."""

    def check(self) -> None:
        """Raises DatabaseError when nothing can be read."""

    def check_unlocked(self) -> None:
        """Raises DatabaseLocked when a lock of another program has kept the last write from being done, and stays."""

    def check_writable(self) -> None:
        """Raises DatabaseUnavailable, with what mends it, when nothing can be written."""

    @property
    def waits_for(self) -> DatabaseLocked | None:
        """The lock of another program for which something waits now."""

    def in_background(self) -> AbstractContextManager[None]:
        """For as long as it lasts, do what nobody waits for: of a function's instance, while it answers."""

    def gauges(self) -> dict[str, float]:
        """What it is now, by the names of infra/telemetry/catalogue.py."""

    def close(self) -> None:
        """Finish what is under way, and release it. Safe to call twice."""


def open_database(
    settings: "Settings", *, lasting: bool, metrics: "Metrics", give_up: GiveUp | None = None
) -> Database:
    """Open what the settings name. Raises ServiceError when it cannot be opened.

    `lasting`: the process is a server, and no instance on Lambda; `give_up`: whom to tell, on another thread, what
    stands against a start that was waiting.
    """
    if settings.database_url:
        from infra.postgresql import open_postgresql

        return open_postgresql(settings, lasting=lasting, metrics=metrics, give_up=give_up)
    from infra.sqlite.database import open_sqlite

    return open_sqlite(settings, lasting=lasting, metrics=metrics, give_up=give_up)
