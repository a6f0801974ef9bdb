"""The log in the object store: who comes next is decided here, by creating an object only if it is absent."""

import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

from core.errors import (
    CommitConflict,
    CommitNotStored,
    CommitOutcomeUnknown,
    LogDamaged,
    ObjectExists,
    ObjectMissing,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    TxidNotKept,
)
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.catalog import Catalog, retrying
from infra.commitlog.chain import (
    IN_MEMORY,
    START,
    Change,
    LogObject,
    Position,
    chain,
    check_follows,
    position_after,
    write_pages,
)
from infra.commitlog.names import Names
from infra.object_store import ObjectInfo, ObjectStore
from infra.snapshot import Progress, no_progress

T = TypeVar("T")

SURVEY_SECONDS = 300  # how long probing for the next number may replace a listing; see "I4" in docs/commit-log.md
_PROBE = "create-if-absent"
_QUICK_TIMEOUT = 3.0
_SMALL = 1024 * 1024  # bytes that surely pass within the quick timeout
_PROBES_BEFORE_LISTING = 8
_PARALLEL_READS = 8
_LOOKS = 3


class Store(Protocol):
    """What the log asks of an object store; see ObjectStore for the errors."""

    @property
    def url(self) -> str: ...
    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None: ...
    def read(self, name: str) -> Iterator[bytes]: ...
    def read_range(self, name: str, end: int) -> bytes: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def directories(self, directory: str = "") -> list[str]: ...


class CommitLog:
    """One instance's view of the log. One thread's, but for `verified_at` and `is_head`.

    Every method raises StoreRefused or StoreUnavailable when the store cannot be read, and LogDamaged, with
    the object's name, when what it holds is not an unbroken chain.
    """

    def __init__(self, quick: Store, bulk: Store, clock: Clock, rng: random.Random, parallel: int = _PARALLEL_READS):
        """`quick` does one attempt with a short time-out, `bulk` one that has time for large objects."""
        self.url = quick.url
        self._quick = quick
        self._bulk = bulk
        self._clock = clock
        self._random = rng
        self._parallel = parallel
        self._names = Names(quick.url)
        self._catalog = Catalog(quick, self._names, clock)
        self._surveyed_at = float("-inf")
        self._verified = float("-inf"), 0  # by the clock: when the log was last known to end, and at which TXID
        self._keeps_create_if_absent = False

    # Reading

    def everything(self) -> list[LogObject]:
        """All objects of all levels, level by level in order of TXID."""
        return self._catalog.everything()

    def read(self, item: LogObject, in_memory: int = IN_MEMORY) -> Change:
        """`in_memory`: bytes; what is larger passes through a temporary file."""
        with self._naming(item):
            change = self._retrying(lambda: Change(self._chunks(item), item.level, in_memory))
            if (item.min_txid, item.max_txid) != (change.header.min_txid, change.header.max_txid):
                change.close()
                raise LogDamaged(f"holds TXID {change.header.min_txid}-{change.header.max_txid}")
            return change

    def name_of(self, item: LogObject) -> str:
        return f"{self.url}/{self._names.path_of(item)}"

    def timestamp_of(self, item: LogObject) -> int:
        """Of its last commit, milliseconds since 1970. Raises ObjectMissing."""
        return self._header(item).timestamp

    def header_of(self, txid: int) -> ltx.Header:
        """Of a commit on its own. Raises ObjectMissing."""
        return self._header(LogObject(0, txid, txid, 0, _NEVER))

    def restore(
        self,
        path: Path,
        txid: int | None = None,
        progress: Progress = no_progress,
        snapshot: LogObject | None = None,
    ) -> Position:
        """Build the database after commit `txid`, or the newest, in a new file. START if the log is empty.

        `snapshot`: the one to begin with, instead of whatever makes for the fewest reads. What was written so far
        stays there after an error. Raises TxidNotKept.
        """
        position = START
        with path.open("xb") as file:
            for look_again in (True, False):
                try:
                    asked = self._clock.now()
                    plan = self._plan(position, txid, None if position.txid else snapshot)
                    read = _Read(sum(item.size for item in plan), progress)
                    for item, chunks in self._bodies(plan):
                        with self._naming(item):
                            reader = ltx.Reader(read.counted(chunks))
                            check_follows(reader.header, position)
                            write_pages(file, reader.header, reader.pages())
                            position = position_after(reader, item.level)
                    if plan and not plan[-1].level and (txid or self._has_slept(asked)):
                        self._check_confirmed(position, txid)
                    if txid is None:
                        self._is_head(asked, position.txid)
                    break
                except ObjectMissing as error:
                    _call_it_a_gap_unless(look_again, error)
                    if self._has_slept(asked):  # perhaps what was read is not of the log
                        position = START
                        file.truncate(0)
        return position

    def is_confirmed(self, position: Position) -> bool:
        """Whether this is a state of the log beyond doubt: the next commit names it, or it is the newest one.

        An object of level 0 alone does not prove it: one may have been created long after its number was free again.
        """
        for _ in range(_LOOKS):
            try:
                return self._header_after(position).predecessor in (position.checksum, 0)
            except ObjectMissing:
                if _head(self._catalog.towards_the_head()) == position.txid:
                    return True
        return False

    def changes(self, position: Position) -> Iterator[Change]:
        """Everything after `position`, in order. When it ends, `verified_at` is when the log ended there."""
        if self._survey_is_due(position.txid):
            yield from self._listed_changes(position)
            return
        for _ in range(_PROBES_BEFORE_LISTING):
            asked = self._clock.now()
            try:
                change = self._commit_after(position)
            except ObjectMissing:
                if self._survey_is_due(position.txid):
                    break  # after a sleep since the loop began: merged and deleted, perhaps
                self._verified = asked, position.txid
                return
            except StoreUnavailable:
                break  # perhaps it is too large for a quick read: the listing knows
            if self._survey_is_due(position.txid) and not self.is_confirmed(change.position):
                change.close()
                break
            yield change
            position = change.position
        yield from self._listed_changes(position)

    def commits(self, position: Position, end: int) -> Iterator[Change]:
        """The commits after `position` up to TXID `end`, one by one. Raises ObjectMissing for one that was merged."""
        while position.txid < end:
            change = self._commit_after(position)
            yield change
            position = change.position

    def has(self, position: Position) -> bool:
        """Whether this very commit is in the log, on its own."""
        try:
            with closing(self._commit_after(Position(position.txid - 1, 0, 0))) as change:
                return change.position.checksum == position.checksum
        except ObjectMissing:
            return False

    def verified_at(self, txid: int) -> float:
        """When the log was last known to end at this TXID, by the clock; -inf when it is known to be longer."""
        moment, end = self._verified
        return moment if txid >= end else float("-inf")

    def is_head(self, position: Position) -> bool:
        """Whether nothing follows `position`; False also when only a listing could tell."""
        if self._survey_is_due(position.txid):
            return False
        asked = self._clock.now()
        try:
            self._header_after(position)
        except ObjectMissing:
            if not self._survey_is_due(position.txid):  # it may have become so by a sleep on the way
                self._verified = max(self._verified, (asked, position.txid))
                return True
        return False

    # Writing

    def append(
        self, position: Position, page_size: int, size: int, pages: Iterable[tuple[int, bytes]], deadline: float
    ) -> Position:
        """Store the next commit, trying until `deadline` (by the clock), and return its position.

        Raises CommitConflict when another instance has taken the number, CommitNotStored when it is certain
        that nothing was stored or ever will be, CommitOutcomeUnknown otherwise.
        """
        txid = position.txid + 1
        timestamp = max(self._clock.timestamp(), position.timestamp)
        commit_id = self._random.getrandbits(64) or 1
        header = ltx.Header(page_size, size, txid, txid, timestamp, position.checksum, commit_id)
        body, checksum = ltx.encode(header, pages)
        try:
            self._prove_create_if_absent()
            self._check_number_is_next(position)
        except StoreError as error:
            raise CommitNotStored(str(error)) from error
        self._create_next(txid, body, datetime.fromtimestamp(timestamp / 1000, UTC), deadline)
        return Position(txid, checksum, timestamp)

    def _create_next(self, txid: int, body: bytearray, written_at: datetime, deadline: float) -> None:
        """An answer of the store alone proves nothing: replies get lost, and 409 and 412 look the same here and
        may be the echo of our own earlier attempt. So whatever is not a clear success is settled by reading.
        """
        name = self._names.path(0, txid, txid)
        store = self._quick if len(body) <= _SMALL else self._bulk
        may_be_stored = False
        attempt = 0
        asked = self._clock.now()  # before the first attempt: the one that stored it, whichever it was
        while True:
            created = False
            trouble: Exception | None = None
            try:
                store.create(name, body, written_at)
                created = may_be_stored = True
            except StoreUnreachable as error:
                trouble = error
            except (ObjectExists, StoreUnavailable) as error:
                trouble, may_be_stored = error, True
            except (StoreRefused, ObjectMissing) as error:
                raise _given_up(error, txid, may_be_stored) from error
            try:
                self._check_not_covered(txid, may_be_stored)
                if created or self._holder_is_ours(txid, body, may_be_stored):
                    self._verified = asked, txid - 1
                    return
            except (StoreError, LogDamaged) as error:
                trouble = error
            if self._clock.now() >= deadline:
                raise _given_up(trouble, txid, may_be_stored) from trouble
            attempt += 1
            self._clock.sleep(min(0.05 * 2**attempt, 1.0) * self._random.uniform(0.5, 1))

    def _holder_is_ours(self, txid: int, body: bytearray, may_be_stored: bool) -> bool:
        """Whether our own bytes have this number; False if nothing has. Raises CommitConflict for another's."""
        name = self._names.path(0, txid, txid)
        try:
            found = self._quick.read_range(name, ltx.HEADER_SIZE)
        except ObjectMissing:
            return False
        if found == body[: ltx.HEADER_SIZE]:
            return True
        self._check_not_covered(txid, may_be_stored)  # ours, merged while we slept; and this one is a leftover
        raise CommitConflict(f"{self.url}/{name} was stored by another instance first")

    def _prove_create_if_absent(self) -> None:
        """Many S3-compatible stores take If-None-Match and ignore it: on them every writer would overwrite."""
        for _ in range(0 if self._keeps_create_if_absent else 2):
            try:
                self._quick.create(_PROBE, b"Two creates of this object: the second one must fail.\n")
            except ObjectExists:
                self._keeps_create_if_absent = True
                return
        if not self._keeps_create_if_absent:
            raise StoreRefused(
                f"{self.url}: this store overwrites an object that was to be created only if absent (If-None-Match); "
                "commits of different instances would destroy each other. Use S3 or a store that keeps this promise."
            )

    def _check_number_is_next(self, position: Position) -> None:
        """After a long time the next number may be free because its object was merged and deleted long ago."""
        if self._survey_is_due(position.txid) and _head(self._surveyed(position)) > position.txid:
            raise CommitConflict(f"{self.url} has gone on while this instance was asleep")

    def _check_not_covered(self, txid: int, may_be_stored: bool) -> None:
        """The same again after an attempt, in case the sleep fell between. The store may have created an object under
        a number that was taken, merged and deleted long ago: a leftover, not a commit. Or it created the object in
        time, and that was merged while we slept.
        """
        if self._survey_is_due(txid - 1) and any(
            item.level and item.max_txid >= txid for item in self._surveyed(Position(txid - 1, 0, 0))
        ):
            message = f"{self.url} has gone on past TXID {txid:016x} while this instance was asleep"
            raise CommitOutcomeUnknown(message, txid) if may_be_stored else CommitConflict(message)

    # Listing

    def _survey_is_due(self, txid: int) -> bool:
        """Whether only a listing can tell what follows a TXID, as it always is when the log is known to be longer."""
        return self._clock.now() - self._surveyed_at > SURVEY_SECONDS or txid < self._verified[1]

    def _surveyed(self, position: Position, listed: Callable[[], list[LogObject]] | None = None) -> list[LogObject]:
        """What there is, after making sure that it leads from the first commit to the last one, past `position`."""
        for look_again in (True, False):
            asked = self._clock.now()
            found = (listed or self._catalog.towards_the_head)()
            head, end = _head(found), _end(chain(found, 0), 0)
            if end == head:
                break
            _call_it_a_gap_unless(look_again, ObjectMissing(f"{self.url}/{self._names.path(0, end + 1, end + 1)}"))
        if head < position.txid:
            raise LogDamaged(
                f"{self.url} ends at TXID {head:016x}, but this instance has seen {position.txid:016x}: the log was "
                "emptied or replaced. Nothing is written to it; restore its objects, or use a new prefix"
            )
        if head == position.txid:
            self._is_head(asked, head)
        return found

    def _is_head(self, asked: float, txid: int) -> None:
        """Whoever has all of the listing made at `asked`, to this TXID, may probe for the next one for a while."""
        self._surveyed_at = asked
        self._verified = asked, txid

    def _plan(self, position: Position, txid: int | None = None, snapshot: LogObject | None = None) -> list[LogObject]:
        """The objects that lead from a position to a TXID or the head, fewest first."""
        if txid is None:
            first = [snapshot] if snapshot else []
            return first + chain(self._surveyed(position), _end(first, position.txid))
        found = self._surveyed(position, self._catalog.everything)
        if _head(found) < txid:
            raise LogDamaged(f"{self.url} ends at TXID {_head(found):016x}, before {txid:016x}")
        kept = [item for item in found if item.max_txid <= txid]
        plan = [snapshot] if snapshot and snapshot.max_txid == txid else chain(kept, position.txid)
        if _end(plan, position.txid) < txid:
            raise self._not_kept(txid)
        return plan

    def _not_kept(self, txid: int) -> TxidNotKept:
        return TxidNotKept(f"{self.url} no longer holds TXID {txid:016x} alone; `infra log` shows what it holds")

    def _listed_changes(self, position: Position) -> Iterator[Change]:
        for look_again in (True, False):
            try:
                asked = self._clock.now()
                for item in self._plan(position):
                    change = self._change(item, position)
                    if not item.level and self._has_slept(asked):
                        with _closing_on_error(change):
                            self._check_confirmed(change.position)
                    yield change
                    position = change.position
                self._is_head(asked, position.txid)
                return
            except ObjectMissing as error:
                _call_it_a_gap_unless(look_again, error)

    # Objects

    def _commit_after(self, position: Position) -> Change:
        txid = position.txid + 1
        return self._change(LogObject(0, txid, txid, 0, _NEVER), position)

    def _header_after(self, position: Position) -> ltx.Header:
        return self.header_of(position.txid + 1)

    def _header(self, item: LogObject) -> ltx.Header:
        with self._naming(item):
            head = self._retrying(lambda: self._quick.read_range(self._names.path_of(item), ltx.HEADER_SIZE))
            return ltx.decode_header(head)

    def _has_slept(self, since: float) -> bool:
        """Whether so much time has passed that an object of level 0 may have been deleted, and created anew."""
        return self._clock.now() - since > SURVEY_SECONDS

    def _check_confirmed(self, position: Position, asked_for: int | None = None) -> None:
        """Takes no leftover for a commit: raises ObjectMissing, or TxidNotKept for one that was asked for."""
        if not self.is_confirmed(position):
            if asked_for:
                raise self._not_kept(asked_for)
            raise ObjectMissing(f"{self.url}/{self._names.path(0, position.txid, position.txid)}")

    def _change(self, item: LogObject, position: Position) -> Change:
        change = self.read(item)
        with self._naming(item), _closing_on_error(change):
            check_follows(change.header, position)
        return change

    def _bodies(self, plan: list[LogObject]) -> Iterator[tuple[LogObject, Iterable[bytes]]]:
        """Small objects are fetched side by side, large ones stream."""
        if self._parallel == 1:
            yield from ((item, self._chunks(item)) for item in plan)
            return
        with ThreadPoolExecutor(self._parallel) as pool:

            def start(item: LogObject) -> Callable[[], Iterable[bytes]]:
                if item.size > _SMALL:
                    return lambda: self._chunks(item)
                return pool.submit(self._retrying, lambda: list(self._chunks(item))).result

            rest = iter(plan)
            started = [(item, start(item)) for item in islice(rest, 2 * self._parallel)]
            while started:
                item, body = started.pop(0)
                yield item, body()
                started += [(item, start(item)) for item in islice(rest, 1)]

    def _chunks(self, item: LogObject) -> Iterator[bytes]:
        store = self._quick if item.size <= _SMALL else self._bulk
        return store.read(self._names.path_of(item))

    def _retrying(self, ask: Callable[[], T]) -> T:
        return retrying(self._clock, ask)

    def _naming(self, item: LogObject) -> "_Naming":
        return _Naming(self.name_of(item))


class _Naming:
    """Puts the object's name before the message of LogDamaged."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, LogDamaged):
            raise LogDamaged(f"{self._name} {error}") from error


class _Read:
    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total = 0, total
        self._progress = progress

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._done += len(chunk)
            self._progress("restore", self._done, self._total)


@contextmanager
def _closing_on_error(change: Change) -> Iterator[None]:
    try:
        yield
    except BaseException:
        change.close()
        raise


def open_log(url: str, clock: Clock, bulk_timeout: float = 60.0) -> CommitLog:
    """Raises StoreRefused when the place cannot be used. `bulk_timeout`: seconds for one large object."""
    quick = ObjectStore(url, timeout=_QUICK_TIMEOUT, retries=0)
    bulk = ObjectStore(url, timeout=bulk_timeout, retries=0)
    return CommitLog(quick, bulk, clock, random.SystemRandom())


def _call_it_a_gap_unless(look_again: bool, error: ObjectMissing) -> None:
    """Maintenance may merge and delete between a listing and the reading of what it listed."""
    if not look_again:
        raise LogDamaged(f"{error}: this object is missing, and no merged one holds it") from error


def _given_up(cause: Exception | None, txid: int, may_be_stored: bool) -> Exception:
    return CommitOutcomeUnknown(str(cause), txid) if may_be_stored else CommitNotStored(str(cause))


def _head(objects: list[LogObject]) -> int:
    return max((item.max_txid for item in objects), default=0)


def _end(plan: list[LogObject], start: int) -> int:
    return plan[-1].max_txid if plan else start


_NEVER = datetime.fromtimestamp(0, UTC)
