"""The log in the object store: who comes next is decided here, by creating an object only if it is absent.

`CommitLog` restores, reads what is new, and appends. What is true of the log's end is for head.py, what an object is
called and holds for objects.py.
"""

import random
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Protocol

from core.errors import (
    CommitConflict,
    CommitError,
    CommitNotStored,
    CommitOutcomeUnknown,
    LogDamaged,
    ObjectExists,
    ObjectMissing,
    SnapshotGone,
    StoreError,
    StoreRefused,
    StoreUnavailable,
    StoreUnreachable,
    TxidNotKept,
)
from infra.clock import Clock
from infra.commitlog import dates, ltx
from infra.commitlog.chain import (
    START,
    BinaryFile,
    Change,
    LogObject,
    Position,
    chain,
    check_follows,
    end_of,
    is_made_on,
    newest_in,
    position_after,
    write_pages,
)
from infra.commitlog.commit_clock import CommitClock
from infra.commitlog.create_probe import prove_create_if_absent
from infra.commitlog.head import LOOKS, Head, call_it_a_gap_unless
from infra.commitlog.objects import (
    PARALLEL_READS,
    SMALL,
    SNAPSHOTS,
    Objects,
    Read,
    Reads,
    closed_on_error,
    commit_object,
)
from infra.commitlog.observer import Observer, Unobserved
from infra.progress import Progress, no_progress
from infra.storage.object_store import LARGE_OBJECT_SECONDS, READ_AT_ONCE, SMALL_OBJECT_SECONDS, ObjectStore

_PROBES_BEFORE_LISTING = 8
_PROBES_OF_NEW = 24  # of which the first is made alone, the next 7 side by side, and so the last 16


class Store(Reads, Protocol):
    """What the log asks of an object store; see ObjectStore for the errors."""

    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None: ...
    def race(self, name: str, body: bytes, racers: int) -> int: ...


class CommitLog:
    """One instance's view of the log. One thread's, but for what Head says of itself.

    Every method raises StoreRefused or StoreUnavailable when the store cannot be read, and LogDamaged, with
    the object's URL, when what it holds is not an unbroken chain.
    """

    def __init__(
        self,
        quick: Store,
        bulk: Store,
        clock: Clock,
        rng: random.Random,
        parallel: int = PARALLEL_READS,
        likely_seconds: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        """`quick` does one attempt with a short time-out, `bulk` one that has time for large objects. `parallel`: how
        many small objects are read at once. `likely_seconds`: see Head. `observer`: of all that is done to this log.
        """
        self.url = quick.url
        self.observer = observer or Unobserved()
        self.objects = Objects(quick, bulk, clock, parallel)
        self._quick = quick
        self._bulk = bulk
        self._clock = clock
        self._random = rng
        self._commit_clock = CommitClock(clock, quick.url)
        self.head = Head(self.objects, clock, self._commit_clock, likely_seconds)
        self._keeps_create_if_absent = False

    # Reading

    def restore(
        self,
        path: Path,
        txid: int | None = None,
        progress: Progress = no_progress,
        snapshot: LogObject | None = None,
    ) -> Position:
        """Build the database after commit `txid`, or the newest, in a new file. START if the log is empty.

        `snapshot`: the one to begin with, instead of whatever makes for the fewest reads. What was written so far
        stays there after an error. Raises TxidNotKept, and SnapshotGone when `snapshot` is not there any more.
        """
        with path.open("xb") as file:
            for look_again in (True, False):
                try:
                    return self._restore(file, txid, progress, snapshot)
                except ObjectMissing as error:
                    call_it_a_gap_unless(look_again, error)
                    file.truncate(0)  # perhaps not all that was read is of the log
        raise AssertionError("unreachable")

    def _restore(self, file: BinaryFile, txid: int | None, progress: Progress, snapshot: LogObject | None) -> Position:
        """Raises ObjectMissing when maintenance was at work meanwhile."""
        asked = self._clock.now()
        plan = self._plan(txid, snapshot)
        read = _Progress(sum(item.size for item in plan), progress)
        before = position = START
        size = 0
        after_a_commit = False
        for item, chunks in self.objects.bodies(plan):
            try:
                with self.objects.named_in_damage(item):
                    reader = ltx.Reader(read.counted(chunks))
                    check_follows(reader.header, position)
                    size = write_pages(file, reader.header, reader.pages(), size)
                    after = position_after(reader, item.level)
            except LogDamaged as error:
                if not after_a_commit or self.head.is_confirmed(position, before):
                    raise
                if txid:  # the commit before was created long after its number was free again
                    raise self._not_kept(txid) from error
                raise ObjectMissing(self.objects.url_of(item)) from error
            before, position = position, replace(after, timestamp=dates.corrected(after.timestamp, item.modified))
            after_a_commit = not item.level
        if not plan:
            self.objects.check_nothing_misnamed()
            self.head.remember(asked, 0)
            return START
        is_single = not plan[-1].level
        if txid is None and self.head.stands(before if is_single else position):
            self.head.remember(asked, position.txid)
        elif is_single and not self.head.is_confirmed(position, before):
            if txid:
                raise self._not_kept(txid)
            raise ObjectMissing(self.objects.url_of(plan[-1]))
        return position

    def _plan(self, txid: int | None, snapshot: LogObject | None) -> list[LogObject]:
        """The objects that lead from the beginning, or from a snapshot, to a TXID or the head, fewest first."""
        if txid is None:
            listed = self.head.listing_past(START)
            if snapshot is None:
                return chain(listed, 0)
            if snapshot.max_txid not in (item.max_txid for item in listed if item.level == SNAPSHOTS):
                raise SnapshotGone(f"{self.objects.url_of(snapshot)} was deleted since it was found")
            return [snapshot, *chain(listed, snapshot.max_txid)]
        listed = self.head.listing_past(START, self.objects.everything)
        if (newest := newest_in(listed)) < txid:
            raise LogDamaged(f"{self.url} ends at TXID {newest:016x}, before {txid:016x}")
        if snapshot and snapshot.max_txid == txid:
            return [snapshot]
        plan = chain([item for item in listed if item.max_txid <= txid], 0)
        if end_of(plan) < txid:
            raise self._not_kept(txid)
        return plan

    def _not_kept(self, txid: int) -> TxidNotKept:
        return TxidNotKept(f"{self.url} no longer holds TXID {txid:016x} alone; `infra log` shows what it holds")

    def changes(
        self, position: Position, limit: int | None = None, *, most: int | None = None, is_new: bool = False
    ) -> Iterator[Change]:
        """Yield what follows `position`, in order. Whoever takes one closes it.

        When it ends, the head was seen where it ends: but not if there are `limit` objects or more. `most`: bytes, as
        the store has them; raises SnapshotGone when more than that follow, or it takes a whole snapshot. `is_new`:
        nobody has looked for what follows yet, and it may be more than one or two.
        """
        for _ in range(LOOKS):
            most_probes = _PROBES_OF_NEW if is_new else _PROBES_BEFORE_LISTING
            asked, found, at_end = self._probe(position, limit or most_probes, is_new)
            is_enough = at_end or len(found) == limit
            try:
                stands = self.head.stands(position)  # so nothing after it was ever deleted
                if stands and at_end:
                    self.head.remember(asked, position.txid + len(found))
                while stands and found:
                    position = found[0].position
                    yield found.pop(0)
            finally:
                for change in found:
                    change.close()
            if stands and is_enough:
                return
            position, at_end = yield from self._listed_changes(position, most)
            if at_end:
                return
        raise StoreUnavailable(f"{self.url} changes faster than it can be read")

    def _probe(self, position: Position, most: int, is_new: bool) -> tuple[float, list[Change], bool]:
        """Read the next commits, until one is missing. Returns when that was asked for, or before, too, and whether it
        is. `is_new`: once there is one, the others are read side by side.
        """
        found: list[Change] = []
        at_end = False
        with ExitStack() as on_error, ExitStack() as reading:
            reads: Iterator[Read] = iter(())
            while not at_end and len(found) < most:
                if (read := next(reads, None)) is None:
                    asked = self._clock.now()
                    if is_new and found:
                        ends = position.txid + 1, position.txid + 1 + min(max(7, 2 * len(found)), most - len(found))
                        reads = reading.enter_context(self.objects.side_by_side([*map(commit_object, range(*ends))]))
                        read = next(reads)
                try:
                    change = self._commit_after(position, read)
                except ObjectMissing:
                    at_end = True
                except (StoreUnavailable, LogDamaged):
                    break  # too large for a quick read, or perhaps none of the log: a listing tells
                else:
                    on_error.callback(change.close)
                    found.append(change)
                    position = change.position
            on_error.pop_all()
        return asked, found, at_end

    def _listed_changes(self, position: Position, most: int | None) -> Generator[Change, None, tuple[Position, bool]]:
        """Yield what a listing leads to. Returns where that is, and whether the log was seen to end there.

        A commit may still turn out to be none of the log. So each is held back until the next one names it or, if it is
        the last, until the one before was found to stand after that; otherwise until it is confirmed.
        """
        refuted: list[LogObject] = []  # commits that are none of the log, where a merged object has that number
        for look_again in (True, False):
            unproven: Change | None = None
            reading = ExitStack()
            try:
                asked = self._clock.now()
                listed = self.head.listing_past(position)
                believed = [item for item in listed if item not in refuted]
                if end_of(chain(believed, position.txid)) < newest_in(listed):
                    believed = listed
                plan = self._plan_after(position, believed, most)
                if not plan:
                    if self.head.is_last_in(listed, position):
                        self.head.remember(asked, position.txid)
                        return position, True
                    if look_again:
                        continue
                    raise self.head.another_at(position)
                before = reached = position
                reads = reading.enter_context(self.objects.side_by_side(plan))
                for item, read in zip(plan, reads, strict=True):
                    change = self._read_proving(item, reached, before if unproven else None, read)
                    if unproven:
                        position = reached
                        yield unproven
                        unproven = None
                    before, reached = reached, change.position
                    if item.level:
                        position = reached
                        yield change
                    else:
                        unproven = change
                at_end = self.head.stands(before if unproven else reached)
                if unproven:
                    if not at_end:
                        self.head.check_confirmed(reached, before)
                    position = reached
                    yield unproven
                    unproven = None
                if at_end:
                    self.head.remember(asked, position.txid)
                return position, at_end
            except ObjectMissing as error:
                if unproven:
                    refuted = [item for item in plan if item.max_txid == unproven.position.txid and not item.level]
                call_it_a_gap_unless(look_again, error)
            finally:
                if unproven:
                    unproven.close()
                reading.close()
        raise AssertionError("unreachable")

    def _plan_after(self, position: Position, listed: list[LogObject], most: int | None) -> list[LogObject]:
        if most is None:
            return chain(listed, position.txid)
        plan = chain([item for item in listed if item.level != SNAPSHOTS], position.txid)
        if max(end_of(plan), position.txid) < newest_in(listed) or sum(item.size for item in plan) > most:
            raise SnapshotGone(f"{self.url} goes on far past TXID {position.txid:016x}: a newer snapshot leads on")
        return plan

    def _read_proving(self, item: LogObject, position: Position, before: Position | None, read: Read) -> Change:
        """Read what follows `position`. Raises ObjectMissing if that commit may be none of the log; `before`: the one
        before it, None if it needs no proof.
        """
        try:
            change = self.objects.read_after(position, item, read)
        except LogDamaged:
            if before:
                self.head.check_confirmed(position, before)
            raise
        with closed_on_error(change):
            if before and not is_made_on(change.header, position):
                self.head.check_confirmed(position, before)
        return change

    def commits(self, position: Position, end: int) -> Iterator[Change]:
        """Yield the commits after `position` up to TXID `end`, one by one. Whoever takes one closes it. Raises
        ObjectMissing for one that was merged.
        """
        before = position
        while position.txid < end:
            try:
                change = self._commit_after(position)
            except LogDamaged:
                self.head.check_confirmed(position, before)
                raise
            yield change
            before, position = position, change.position

    def _commit_after(self, position: Position, read: Read | None = None) -> Change:
        return self.objects.read_after(position, commit_object(position.txid + 1), read)

    # Writing

    def append(
        self, position: Position, page_size: int, size: int, pages: Iterable[tuple[int, bytes]], deadline: float
    ) -> Position:
        """Store the next commit, trying until `deadline` (by the clock), and return its position.

        `size`: of the database after it, in pages of `page_size` bytes. Raises CommitConflict when another instance has
        taken the number, CommitNotStored when it is certain that nothing was stored or ever will be,
        CommitOutcomeUnknown otherwise.
        """
        try:
            if not self._keeps_create_if_absent:
                prove_create_if_absent(self._quick, self._random)
                self._keeps_create_if_absent = True
            self.head.check_number_is_next(position)
            timestamp = self._dated_after(position)
        except StoreError as error:
            raise CommitNotStored(str(error)) from error
        started = self._clock.now()
        log_id = position.log_id or self._drawn_id()
        txid = position.txid + 1
        header = ltx.Header(page_size, size, txid, txid, timestamp, position.checksum, self._drawn_id(), log_id)
        attempt = _Attempt(header, *ltx.encode(header, pages))
        after = self._create_next(position, attempt, deadline)
        self._commit_clock.stored(after.txid)
        self.observer.commit_stored(len(attempt.body), self._clock.now() - started)
        return after

    def _dated_after(self, position: Position) -> int:
        """The date of the next commit, milliseconds since 1970: not that of a writer whose clock was ahead."""
        previous = position.timestamp
        if self._commit_clock.doubts(previous):
            with suppress(ObjectMissing):
                _, modified = self.objects.commit_end(position.txid)
                previous = dates.corrected(previous, modified)
        return self._commit_clock.stamp(previous)

    def _create_next(self, position: Position, attempt: "_Attempt", deadline: float) -> Position:
        """Send, settle by reading, look at the commit before, and say what came of it.

        An answer of the store alone proves nothing: replies get lost, and 409 and 412 look the same here and may be the
        echo of our own earlier attempt. So whatever is not a clear success is settled by reading; and a success counts
        only if the commit before stands after it: the number may have been free again.

        No attempt is made twice: each has a commit id of its own. Bytes that were stored once, merged and deleted would
        otherwise come back, and others who have seen them would take that for a commit that stands.
        """
        outcome = _Outcome(position.txid + 1)
        asked = self._clock.now()  # before the first attempt: the one that stored it, whichever it was
        for tries in count(1):
            try:
                if not outcome.holder:
                    if outcome.doubts(attempt):
                        attempt = attempt.with_id(self._drawn_id())
                    self._send(attempt, outcome)
                if not outcome.holder:
                    self._settle_by_reading(outcome, position)
                if outcome.holder:
                    self._check_created(outcome.holder, position)
                    self.head.remember(asked, position.txid)
                    return outcome.holder
            except LogDamaged as error:  # the one before was gone; should it come back, it proves nothing any more
                raise outcome.given_up(error) from error
            except StoreError as error:
                outcome.trouble = error
            if self._clock.now() >= deadline:
                raise outcome.given_up(outcome.trouble) from outcome.trouble
            self._clock.sleep(min(0.05 * 2**tries, 1.0) * self._random.uniform(0.5, 1))
        raise AssertionError("unreachable")

    def _send(self, attempt: "_Attempt", outcome: "_Outcome") -> None:
        """Ask once to create the object, and take down what the answer makes of the outcome.

        Raises CommitNotStored for a refusal, CommitOutcomeUnknown for one after an attempt that is in doubt.
        """
        store = self._quick if len(attempt.body) <= SMALL else self._bulk
        try:
            store.create(self._name_of(attempt.position.txid), attempt.body, attempt.written_at)
            outcome.holder = attempt.position
        except StoreUnreachable as error:
            outcome.trouble = error  # it was never sent
        except (ObjectExists, StoreUnavailable) as error:
            outcome.trouble = error
            outcome.in_doubt[attempt.header_bytes] = attempt.position
        except (StoreRefused, ObjectMissing) as error:
            if not self._is_there(attempt):  # what stands before the store may say so of what the store has done
                raise outcome.given_up(error) from error
            outcome.holder = attempt.position

    def _is_there(self, attempt: "_Attempt") -> bool:
        """Also False when the store does not let that be read."""
        with suppress(StoreError):
            return self._header_bytes(attempt.position.txid) == attempt.header_bytes
        return False

    def _settle_by_reading(self, outcome: "_Outcome", position: Position) -> None:
        """Find which attempt has the number after `position`: none if nothing has.

        Raises CommitConflict for another's, CommitOutcomeUnknown when ours may have been there before that.
        """
        txid = position.txid + 1
        try:
            found = self._header_bytes(txid)
        except ObjectMissing:
            return
        outcome.holder = outcome.in_doubt.get(found)
        if outcome.holder:
            return
        message = f"{self.objects.url_of(commit_object(txid))} was stored by another instance first"
        if outcome.in_doubt and not self.head.stands(position) and self._is_covered(txid):
            raise CommitOutcomeUnknown(f"{message}, or after this one was merged", txid)
        raise CommitConflict(message)

    def _is_covered(self, txid: int) -> bool:
        """Whether a number may have been free again: what covers it is there before it is deleted, and something that
        does always is from then on, in this level or in one that is listed later.
        """
        return any(item.level and item.max_txid >= txid for item in self.objects.everything())

    def _check_created(self, holder: Position, position: Position) -> None:
        """Look at the commit before the one created. Raises CommitOutcomeUnknown when ours may be a leftover."""
        if not (self.head.stands(position) or self.head.is_confirmed(holder, position)):
            raise CommitOutcomeUnknown(
                f"{self.url} has gone on past TXID {holder.txid:016x} while this instance was asleep", holder.txid
            )

    def _header_bytes(self, txid: int) -> bytes:
        return self._quick.read_range(self._name_of(txid), 0, ltx.HEADER_SIZE)

    def _name_of(self, txid: int) -> str:
        return self.objects.names.name_of(commit_object(txid))

    def _drawn_id(self) -> int:
        return self._random.getrandbits(64) or 1


@dataclass(frozen=True)
class _Attempt:
    """An object that is to be the next commit."""

    header: ltx.Header
    body: bytearray
    checksum: int

    @property
    def header_bytes(self) -> bytes:
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


class _Outcome:
    """What has become of the attempts to store one commit, as far as the store's answers tell."""

    def __init__(self, txid: int) -> None:
        self.holder: Position | None = None  # the attempt that has the number
        self.in_doubt: dict[bytes, Position] = {}  # attempts that may be stored, or may yet be, by their header
        self.trouble: Exception | None = None  # what was in the way last
        self._txid = txid

    def doubts(self, attempt: _Attempt) -> bool:
        return attempt.header_bytes in self.in_doubt

    def given_up(self, cause: Exception | None) -> CommitError:
        """Return what to raise when no more is tried: that nothing is stored only if no attempt is in doubt."""
        if self.holder or self.in_doubt:
            return CommitOutcomeUnknown(str(cause), self._txid)
        return CommitNotStored(str(cause))


class _Progress:
    """Tells how much of a restore has been read."""

    def __init__(self, total: int, progress: Progress) -> None:
        self._done, self._total = 0, total
        self._progress = progress

    def counted(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            self._done += len(chunk)
            self._progress("restore", self._done, self._total)


def open_log(
    url: str, clock: Clock, bulk_timeout: float = LARGE_OBJECT_SECONDS, observer: Observer | None = None
) -> CommitLog:
    """Return the log at this URL; nothing is asked of it yet. `bulk_timeout`: seconds for one large object. `observer`:
    of all that is done to this log.

    Raises StoreRefused when the place cannot be used.
    """
    observer = observer or Unobserved()
    quick = ObjectStore(url, timeout=SMALL_OBJECT_SECONDS, retries=0, asked=observer.log_asked)
    bulk = ObjectStore(url, timeout=bulk_timeout, retries=0, asked=observer.log_asked, parts_at_once=READ_AT_ONCE)
    return CommitLog(quick, bulk, clock, random.SystemRandom(), observer=observer)
