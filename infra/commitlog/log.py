"""The log in the object store: who comes next is decided here, by creating an object only if it is absent."""

import random
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
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
from infra.commitlog import dates, ltx
from infra.commitlog.chain import (
    IN_MEMORY,
    START,
    BinaryFile,
    Change,
    LogObject,
    Position,
    chain,
    check_follows,
    position_after,
    write_pages,
)
from infra.commitlog.commit_clock import CommitClock
from infra.commitlog.create_probe import prove_create_if_absent
from infra.commitlog.objects import Catalog, Names, retrying
from infra.progress import Progress, no_progress
from infra.storage.object_store import ObjectInfo, ObjectStore

T = TypeVar("T")

_QUICK_TIMEOUT = 3.0
_SMALL = 1024 * 1024  # bytes that surely pass within the quick timeout
_PROBES_BEFORE_LISTING = 8
_PARALLEL_READS = 8
_LOOKS = 5
_LIKELY_SECONDS = 0.2  # for so long a number is tried in a bucket without asking first whether it is still the next


class Store(Protocol):
    """What the log asks of an object store; see ObjectStore for the errors."""

    @property
    def url(self) -> str: ...
    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None: ...
    def race(self, name: str, body: bytes, racers: int) -> int: ...
    def read(self, name: str) -> Iterator[bytes]: ...
    def read_range(self, name: str, end: int) -> bytes: ...
    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def directories(self, directory: str = "") -> list[str]: ...


class CommitLog:
    """One instance's view of the log. One thread's, but for `verified_at` and `is_head`.

    No clock decides what is true. Objects of level 0 are deleted in ascending order, the newest never: so if a commit
    still stands there, no number after it was ever free again. Whatever follows from a number being free, or taken,
    counts only when the commit before it stands *afterwards*; see "I4" in docs/commit-log.md.

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
        self._dates = CommitClock(clock, quick.url)
        self._likely_seconds = 0.0 if quick.url.startswith("file:") else _LIKELY_SECONDS
        self._stood_at = float("-inf")  # by the clock: when a commit that is known here was last found in its place
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
        with path.open("xb") as file:
            for look_again in (True, False):
                try:
                    return self._restore(file, txid, progress, snapshot)
                except ObjectMissing as error:
                    _call_it_a_gap_unless(look_again, error)
                    file.truncate(0)  # perhaps not all that was read is of the log
        raise AssertionError("unreachable")

    def _restore(self, file: BinaryFile, txid: int | None, progress: Progress, snapshot: LogObject | None) -> Position:
        """Raises ObjectMissing when maintenance was at work meanwhile."""
        asked = self._clock.now()
        plan = self._plan(START, txid, snapshot)
        read = _Read(sum(item.size for item in plan), progress)
        before = position = START
        after_a_commit = False
        for item, chunks in self._bodies(plan):
            try:
                with self._naming(item):
                    reader = ltx.Reader(read.counted(chunks))
                    check_follows(reader.header, position)
                    write_pages(file, reader.header, reader.pages())
                    after = position_after(reader, item.level)
            except LogDamaged as error:
                if not after_a_commit or self.is_confirmed(position, before):
                    raise
                if txid:  # the commit before was created long after its number was free again
                    raise self._not_kept(txid) from error
                raise ObjectMissing(self.name_of(item)) from error
            before, position = position, replace(after, timestamp=dates.corrected(after.timestamp, item.modified))
            after_a_commit = not item.level
        if not plan:
            self._catalog.check_nothing_misnamed()
            self._verified = asked, 0
            return START
        is_single = not plan[-1].level
        if txid is None and self.stands(before if is_single else position):
            self._verified = asked, position.txid
        elif is_single and not self.is_confirmed(position, before):
            if txid:
                raise self._not_kept(txid)
            raise ObjectMissing(self.name_of(plan[-1]))
        return position

    def stands(self, position: Position) -> bool:
        """Whether this very commit is in the log, on its own: then no number after it was ever free again."""
        if not position.txid:
            return False
        with suppress(ObjectMissing):
            checksum, modified = self._end_of(position.txid)
            if checksum == position.checksum:
                self._stood_at = self._clock.now()
                self._dates.learned(position.txid, int(modified.timestamp() * 1000))
                return True
        self._stood_at = float("-inf")  # perhaps this is another log by now: the next create looks first
        return False

    def _end_of(self, txid: int) -> tuple[int, datetime]:
        """A commit's checksum, and when the store had it. Raises ObjectMissing."""
        path = self._names.commit(txid)
        end, modified = self._retrying(lambda: self._quick.read_end(path, ltx.CHECKSUM_SIZE))
        return int.from_bytes(end, "big"), modified

    def is_confirmed(self, position: Position, before: Position) -> bool:
        """Whether what was read, or created, is a commit of the log beyond doubt: the next one names it or, if there is
        none, the one `before` it still stands, or a listing made now ends with it.

        An object of level 0 alone proves nothing: it may have been created long after its number was free again.
        """
        for _ in range(_LOOKS):
            try:
                return self._header_after(position).predecessor in (position.checksum, 0)
            except ObjectMissing:
                if self.stands(before) or self._ends_with(position, before):
                    return True
        return False

    def _ends_with(self, position: Position, before: Position) -> bool:
        """Whether a listing ends with this very commit, after the one before it. Raises LogDamaged for a gap."""
        found = self._surveyed(position)
        if _head(found) > position.txid:
            return False
        if any(item.level and item.max_txid == position.txid for item in found):
            return self._is_last(position, found)
        rest = [item for item in found if item.max_txid < position.txid]
        return (
            _end(chain(rest, 0), 0) == before.txid == position.txid - 1
            and self._is_last(before, rest)
            and self.stands(position)
        )

    def changes(self, position: Position, limit: int | None = None) -> Iterator[Change]:
        """What follows `position`, in order. Whoever takes one closes it.

        When it ends, `verified_at` is when the log ended there: but not if there are `limit` objects or more.
        """
        for _ in range(_LOOKS):
            asked, found, at_end = self._probe(position, limit or _PROBES_BEFORE_LISTING)
            is_enough = at_end or len(found) == limit
            try:
                stands = self.stands(position)  # so nothing after it was ever deleted
                if stands and at_end:
                    self._verified = asked, position.txid + len(found)
                while stands and found:
                    position = found[0].position
                    yield found.pop(0)
            finally:
                for change in found:
                    change.close()
            if stands and is_enough:
                return
            position, at_end = yield from self._listed_changes(position)
            if at_end:
                return
        raise StoreUnavailable(f"{self.url} changes faster than it can be read")

    def _probe(self, position: Position, most: int) -> tuple[float, list[Change], bool]:
        """The next commits, until one is missing; when that was asked for; and whether it is missing."""
        found: list[Change] = []
        with ExitStack() as on_error:
            while True:
                asked = self._clock.now()
                try:
                    change = self._commit_after(position)
                except ObjectMissing:
                    at_end = True
                    break
                except (StoreUnavailable, LogDamaged):
                    at_end = False  # too large for a quick read, or perhaps none of the log: the listing knows
                    break
                on_error.callback(change.close)
                found.append(change)
                position = change.position
                if len(found) >= most:
                    at_end = False
                    break
            on_error.pop_all()
        return asked, found, at_end

    def _listed_changes(self, position: Position) -> Generator[Change, None, tuple[Position, bool]]:
        """What a listing leads to. Returns where that is, and whether the log is known to have ended there."""
        for look_again in (True, False):
            unproven: Change | None = None  # a commit that may still turn out to be none of the log
            try:
                asked = self._clock.now()
                found = self._surveyed(position)
                plan = chain(found, position.txid)
                if not plan:
                    if self._is_last(position, found):
                        self._verified = asked, position.txid
                        return position, True
                    if look_again:
                        continue
                    raise self._replaced(_ANOTHER.format(position.txid))
                before = reached = position
                for item in plan:
                    try:
                        change = self._change(item, reached)
                    except LogDamaged:
                        if unproven:
                            self._check_confirmed(reached, before)
                        raise
                    if unproven:
                        with _closing_on_error(change):
                            if not _names(change.header, reached):
                                self._check_confirmed(reached, before)
                        position = reached
                        yield unproven
                        unproven = None
                    before, reached = reached, change.position
                    if item.level:
                        position = reached
                        yield change
                    else:
                        unproven = change
                at_end = self.stands(before if unproven else reached)
                if unproven:
                    if not at_end:
                        self._check_confirmed(reached, before)
                    position = reached
                    yield unproven
                    unproven = None
                if at_end:
                    self._verified = asked, position.txid
                return position, at_end
            except ObjectMissing as error:
                _call_it_a_gap_unless(look_again, error)
            finally:
                if unproven:
                    unproven.close()
        raise AssertionError("unreachable")

    def commits(self, position: Position, end: int) -> Iterator[Change]:
        """The commits after `position` up to TXID `end`, one by one. Raises ObjectMissing for one that was merged."""
        before = position
        while position.txid < end:
            try:
                change = self._commit_after(position)
            except LogDamaged:
                self._check_confirmed(position, before)
                raise
            yield change
            before, position = position, change.position

    def verified_at(self, txid: int) -> float:
        """When the log was last known to end at this TXID, by the clock; -inf when it is known to be longer."""
        moment, end = self._verified
        return moment if txid >= end else float("-inf")

    def is_head(self, position: Position) -> bool:
        """Whether nothing follows `position`; False also when only a listing could tell."""
        asked = self._clock.now()
        try:
            self._header_after(position)
        except ObjectMissing:
            if self.stands(position):
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
        try:
            if not self._keeps_create_if_absent:
                prove_create_if_absent(self._quick, self._random)
                self._keeps_create_if_absent = True
            self._check_number_is_next(position)
            timestamp = self._dated_after(position)
        except StoreError as error:
            raise CommitNotStored(str(error)) from error
        log_id = position.log_id or self._drawn_id()
        header = ltx.Header(
            page_size,
            size,
            position.txid + 1,
            position.txid + 1,
            timestamp,
            position.checksum,
            self._drawn_id(),
            log_id,
        )
        after = self._create_next(position, _Attempt(header, *ltx.encode(header, pages)), deadline)
        self._dates.stored(after.txid)
        return after

    def _dated_after(self, position: Position) -> int:
        """The date of the next commit, milliseconds since 1970: not that of a writer whose clock was ahead."""
        previous = position.timestamp
        if self._dates.doubts(previous):
            with suppress(ObjectMissing):
                _, modified = self._end_of(position.txid)
                previous = dates.corrected(previous, modified)
        return self._dates.stamp(previous)

    def _create_next(self, position: Position, attempt: "_Attempt", deadline: float) -> Position:
        """An answer of the store alone proves nothing: replies get lost, and 409 and 412 look the same here and
        may be the echo of our own earlier attempt. So whatever is not a clear success is settled by reading; and a
        success counts only if the commit before stands after it: the number may have been free again.

        No attempt is made twice: each has a commit id of its own. Bytes that were stored once, merged and deleted would
        otherwise come back, and others who know them would take that for a commit that stands.
        """
        txid = position.txid + 1
        name = self._names.commit(txid)
        store = self._quick if len(attempt.body) <= _SMALL else self._bulk
        doubtful: dict[bytes, Position] = {}  # attempts that may be stored, or may yet be, by their header
        after: Position | None = None  # the one that has the number
        tries = 0
        asked = self._clock.now()  # before the first attempt: the one that stored it, whichever it was
        while True:
            trouble: Exception | None = None
            try:
                if after is None:
                    if attempt.head in doubtful:
                        attempt = attempt.with_id(self._drawn_id())
                    store.create(name, attempt.body, attempt.written_at)
                    after = attempt.position
            except StoreUnreachable as error:
                trouble = error
            except (ObjectExists, StoreUnavailable) as error:
                trouble = error
                doubtful[attempt.head] = attempt.position
            except (StoreRefused, ObjectMissing) as error:
                if not self._is_there(attempt):  # what stands before the store may say so of what the store has done
                    raise _given_up(error, txid, bool(doubtful)) from error
                after = attempt.position
            try:
                after = after or self._holder_among(doubtful, position)
                if after:
                    self._check_created(after, position)
                    self._verified = asked, position.txid
                    return after
            except LogDamaged as error:  # the one before was gone; should it come back, it proves nothing any more
                raise _given_up(error, txid, bool(after or doubtful)) from error
            except StoreError as error:
                trouble = error
            if self._clock.now() >= deadline:
                raise _given_up(trouble, txid, bool(after or doubtful)) from trouble
            tries += 1
            self._clock.sleep(min(0.05 * 2**tries, 1.0) * self._random.uniform(0.5, 1))

    def _is_there(self, attempt: "_Attempt") -> bool:
        """Also False when the store does not let that be read."""
        with suppress(StoreError):
            name = self._names.commit(attempt.position.txid)
            return self._quick.read_range(name, ltx.HEADER_SIZE) == attempt.head
        return False

    def _drawn_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def _check_created(self, after: Position, position: Position) -> None:
        """Our object has the number after `position`: raises CommitOutcomeUnknown when that may be a leftover."""
        if not (self.stands(position) or self.is_confirmed(after, position)):
            raise CommitOutcomeUnknown(
                f"{self.url} has gone on past TXID {after.txid:016x} while this instance was asleep", after.txid
            )

    def _holder_among(self, attempts: dict[bytes, Position], position: Position) -> Position | None:
        """Which of our attempts has the number after `position`; None if nothing has.

        Raises CommitConflict for another's, CommitOutcomeUnknown when ours may have been there before that.
        """
        txid = position.txid + 1
        name = self._names.commit(txid)
        try:
            found = self._quick.read_range(name, ltx.HEADER_SIZE)
        except ObjectMissing:
            return None
        if found in attempts:
            return attempts[found]
        message = f"{self.url}/{name} was stored by another instance first"
        if attempts and not self.stands(position) and self._is_covered(txid):
            raise CommitOutcomeUnknown(f"{message}, or after this one was merged", txid)
        raise CommitConflict(message)

    def _is_covered(self, txid: int) -> bool:
        """Whether a number may have been free again: what covers it is there before it is deleted, and something that
        does always is from then on, in this level or in one that is listed later.
        """
        return any(item.level and item.max_txid >= txid for item in self._catalog.everything())

    def _check_number_is_next(self, position: Position) -> None:
        """After some time the next number may be free although it was taken long ago, or because this is another log.

        The check after the create finds that as well, but by then the object is there.
        """
        if self._clock.now() - self._stood_at < self._likely_seconds or self.stands(position):
            return
        for _ in range(2):
            found = self._surveyed(position)
            if _head(found) > position.txid:
                raise CommitConflict(f"{self.url} has gone on while this instance was asleep")
            if self._is_last(position, found):
                return
        raise self._replaced(_ANOTHER.format(position.txid))

    # Listing

    def _surveyed(self, position: Position, listed: Callable[[], list[LogObject]] | None = None) -> list[LogObject]:
        """What there is, after making sure that it leads from the first commit to the last one, past `position`."""
        for look_again in (True, False):
            found = (listed or self._catalog.towards_the_head)()
            head, end = _head(found), _end(chain(found, 0), 0)
            if end == head:
                break
            _call_it_a_gap_unless(look_again, ObjectMissing(f"{self.url}/{self._names.commit(end + 1)}"))
        if head < position.txid:
            raise self._replaced(f"ends at TXID {head:016x}, but this instance has seen {position.txid:016x}")
        return found

    def _is_last(self, position: Position, found: list[LogObject]) -> bool:
        """Whether a listing that ends at this TXID has this very commit there, and not another log's."""
        if not position.checksum:
            return True  # nothing is known of it but its number
        merged = [item for item in found if item.level and item.max_txid == position.txid]
        known = {self._header(item).node_id for item in merged}
        return bool(known & {position.checksum, 0}) if known else self.stands(position)  # 0: Litestream leaves it out

    def _replaced(self, what: str) -> LogDamaged:
        return LogDamaged(
            f"{self.url} {what}: the log was emptied or replaced. Nothing is written to it; restore its objects, or "
            "use a new prefix"
        )

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

    def _check_confirmed(self, position: Position, before: Position) -> None:
        """Raises ObjectMissing for a commit that may be none of the log."""
        if not self.is_confirmed(position, before):
            raise ObjectMissing(f"{self.url}/{self._names.commit(position.txid)}")

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


@dataclass(frozen=True)
class _Attempt:
    """An object that is to be the next commit."""

    header: ltx.Header
    body: bytearray
    checksum: int

    @property
    def head(self) -> bytes:
        return bytes(self.body[: ltx.HEADER_SIZE])

    @property
    def position(self) -> Position:
        return Position(self.header.max_txid, self.checksum, self.header.timestamp, self.header.log_id)

    @property
    def written_at(self) -> datetime:
        return datetime.fromtimestamp(self.header.timestamp / 1000, UTC)

    def with_id(self, commit_id: int) -> "_Attempt":
        header = replace(self.header, node_id=commit_id)
        return _Attempt(header, *ltx.encode(header, ltx.Reader([bytes(self.body)]).pages()))


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
        if isinstance(error.__context__, LogDamaged):
            raise error.__context__
        raise LogDamaged(f"{error}: this object is missing, and no merged one holds it") from error


def _names(header: ltx.Header, position: Position) -> bool:
    """Whether it says that it was made on top of this very commit."""
    return header.min_txid == position.txid + 1 and header.predecessor == position.checksum


def _given_up(cause: Exception | None, txid: int, may_be_stored: bool) -> Exception:
    return CommitOutcomeUnknown(str(cause), txid) if may_be_stored else CommitNotStored(str(cause))


def _head(objects: list[LogObject]) -> int:
    return max((item.max_txid for item in objects), default=0)


def _end(plan: list[LogObject], start: int) -> int:
    return plan[-1].max_txid if plan else start


_ANOTHER = "has another commit under TXID {:016x} than this instance has seen"
_NEVER = datetime.fromtimestamp(0, UTC)
