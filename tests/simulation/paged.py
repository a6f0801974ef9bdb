"""Instances that open their files page by page, in a world that is small: so must be blocks, caches and patience."""

import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from unittest import mock

import apsw

from core.errors import ObjectMissing
from infra.commitlog import CommitLog, LogObject, Paging, Replica, ltx
from infra.commitlog import replica as replica_module
from infra.commitlog.paging import page_cache, page_index, paged_database, snapshot_pages
from infra.commitlog.upkeep import sidecars
from tests.simulation.model import Model
from tests.simulation.scheduler import Scheduler, Task, Violation
from tests.simulation.store import Bucket

_PAGE = 1024  # bytes, of a log that was begun without a file
_BLOCKS = (2, 4, 16)  # pages
_CACHES = (2, 8, 1000)  # blocks
_WITH_SIDECAR = (0, 0, 3_000)  # bytes of a snapshot, at least
_MUCH = (2_000, 20_000, 1 << 26)  # bytes: what follows a snapshot, or was changed since, before a newer one is opened
_WAL_MODE = slice(18, 20)  # of the first page


@contextmanager
def small_blocks(scheduler: Scheduler, rng: random.Random) -> Iterator[None]:
    """Let a few rows be many blocks, few of which have room, for as long as the context lasts; and who waits for what
    another thread fetches lets others take their turns.
    """
    simulated = SimpleNamespace(Lock=threading.Lock, Event=lambda: _Event(scheduler))
    with ExitStack() as stack:
        for module, name, value in (
            (snapshot_pages, "threading", simulated),
            (page_index, "BLOCK", rng.choice(_BLOCKS) * _PAGE),
            (page_cache, "_FEWEST", 1),
            (replica_module, "_MOST_BEHIND", rng.choice(_MUCH)),
            (paged_database, "_LEAST_ROOM", rng.choice(_MUCH)),
            (sidecars, "LEAST_SNAPSHOT", rng.choice(_WITH_SIDECAR)),
        ):
            stack.enter_context(mock.patch.object(module, name, value))
        yield


def drawn_paging(rng: random.Random) -> Paging | None:
    """Of an instance whose file does not last."""
    blocks = rng.choice(_CACHES)
    return Paging(above=0, cache=blocks * page_index.BLOCK) if rng.random() < 0.5 else None


class _Event:
    """As threading.Event, for tasks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False
        self._waiting: list[Task] = []

    def set(self) -> None:
        self._is_set = True
        for task in self._waiting:
            self._scheduler.at(0, task.resume)
        self._waiting.clear()

    def wait(self) -> None:
        if not self._is_set:
            task = self._scheduler.running
            assert task
            self._waiting.append(task)
            task.wait()


class PageReads:
    """What one process asks of its snapshot: the pauses in it are SQLite's own."""

    def __init__(self, log: CommitLog, bucket: Bucket, counts: Counter[str]) -> None:
        self._waiting = 0  # threads
        self._at_once = False
        self._counts = counts
        objects = log.objects
        read_part, checksum = objects.read_part, objects.checksum

        def read_now(item: LogObject, begin: int, end: int) -> bytes:
            if self._at_once:
                return bucket.read_range(objects.names.name_of(item), begin, end)
            with self._under_way():
                return read_part(item, begin, end)

        def checksum_now(item: LogObject) -> int:
            if self._at_once:
                return int.from_bytes(bucket.content(objects.names.name_of(item))[-ltx.CHECKSUM_SIZE :], "big")
            with self._under_way():
                return checksum(item)

        objects.read_part, objects.checksum = read_now, checksum_now  # type: ignore[method-assign]

    @property
    def is_under_way(self) -> bool:
        """SQLite waits for a page, in the middle of a statement."""
        return self._waiting > 0

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        except ObjectMissing:
            self._counts["pages gone"] += 1
            raise
        finally:
            self._waiting -= 1

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Read without a pause, and without trouble."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False


def check_by_chance(replica: Replica, model: Model, rng: random.Random, share: float) -> None:
    """Look at more of a paged file than most requests do: at no more than this share of all times. Raises Violation,
    and what reading raises.
    """
    match rng.random():
        case roll if roll < 0.05 * share:
            check_sound(replica)
        case roll if roll < 0.2 * share:
            check_pages(replica, model)


def check_pages(replica: Replica, model: Model) -> None:
    """Compare all that a paged file shows, byte by byte, with the log. Raises Violation, and what reading raises."""
    txid, true = replica.visible.txid, dict(model.chain.pages)
    if txid != model.chain.head:
        return
    connection = replica.reader.connection()
    shown = _pages_of(connection)
    if len(shown) != len(true):
        raise Violation(f"I8: a paged file has {len(shown)} pages at TXID {txid}, and the log {len(true)}")
    for number, page in shown.items():
        if _unmarked(number, page) != _unmarked(number, true[number]):
            raise Violation(f"I8: a paged file shows another page {number} than the log has at TXID {txid}")


def check_sound(replica: Replica) -> None:
    """Raises Violation, and what reading raises."""
    found = replica.reader.execute_sql("PRAGMA integrity_check(1)").fetchall()
    if found != [("ok",)]:
        raise Violation(f"I8: a paged file shows what is not sound: {found}")


def _pages_of(connection: apsw.Connection) -> dict[int, bytes]:
    """As SQLite sees them at one moment, those in the WAL as well."""
    with connection:
        size = connection.pragma("page_size")
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()
        image = connection.serialize("main")
    return {begin // size + 1: image[begin : begin + size] for begin in range(0, len(image), size)}


def _unmarked(number: int, page: bytes) -> bytes:
    if number > 1:
        return page
    return page[: _WAL_MODE.start] + page[_WAL_MODE.stop :]
