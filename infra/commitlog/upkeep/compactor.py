"""What keeps a log short to read: runs of commits are merged, now and then the whole database is written, and what is
old goes.

Every step makes an object that any other run would make exactly alike, or deletes one that nobody needs: several may
be at work at once, and each may be killed anywhere.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Protocol

from core.errors import LogDamaged, ObjectExists, ObjectMissing, SnapshotGone
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import START, Change, LogObject, Position, chain, check_follows
from infra.commitlog.create_probe import RACED
from infra.commitlog.dates import Misdated, corrected, latest, misdated
from infra.commitlog.log import CommitLog
from infra.commitlog.objects import RUN, SNAPSHOTS, Listing
from infra.commitlog.upkeep.merge import write_merged, write_snapshot
from infra.commitlog.upkeep.retention import ExpiredObject
from infra.commitlog.upkeep.sidecars import Sidecars, pays
from infra.progress import Progress, no_progress
from infra.storage.object_store import ObjectInfo

_RUN_LEVELS = range(1, 5)  # of 16, 256, 4,096 and 65,536 commits
_GROWTH = 0.5  # of the newest snapshot's size: when so much follows it, the next one is due
_MOST_FOLLOWS = 64 * 1024 * 1024  # bytes, which is what a start reads besides, however large the snapshot
_A_DAY = timedelta(days=1)
_IN_MEMORY = 1024 * 1024  # bytes, of each of the objects that are merged
_HASHED_AT_ONCE = 64  # pages
_ONE_REQUEST = 16 * 1024 * 1024  # bytes
_LARGEST_RUN = 256 * 1024 * 1024  # bytes of its parts: merging what is large gains nothing, and takes twice the room

Check = Callable[[], None]


class MaintenanceStore(Protocol):
    """What only maintenance may do; see ObjectStore for the errors."""

    @property
    def url(self) -> str: ...
    def create(self, name: str, body: bytes | bytearray, written_at: datetime | None = None) -> None: ...
    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None: ...
    def read(self, name: str) -> Iterator[bytes]: ...
    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def directories(self, directory: str = "") -> list[str]: ...
    def delete(self, name: str) -> None: ...
    def remove_unfinished(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Snapshots:
    """Of one listing."""

    newest: LogObject | None
    follows: int  # bytes that a restore reads on top of it
    head: int  # TXID

    def is_due(self, now: datetime) -> bool:
        """Say whether the next one is to be made. `now`: by the store's clock."""
        if self.newest is None:
            return self.head > 0
        if self.newest.max_txid == self.head:
            return False
        return self.follows >= min(_GROWTH * self.newest.size, _MOST_FOLLOWS) or now - self.newest.modified > _A_DAY


def digest_of(image: Path) -> str:
    """Return the SHA-256 of a database file that nobody has open."""
    with image.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _with_lock_page(pages: Iterator[tuple[int, bytes]], header: ltx.Header) -> Iterator[tuple[int, bytes]]:
    """Yield the pages of a snapshot, and among them the one that SQLite keeps for locks, which a file has as zeros."""
    lock = ltx.lock_page(header.page_size)
    for number, page in pages:
        if number == lock + 1:
            yield lock, bytes(header.page_size)
        yield number, page
    if header.size == lock:
        yield lock, bytes(header.page_size)


class Compactor:
    """One at a time; several of them may be at work. Raises what CommitLog raises."""

    def __init__(
        self,
        log: CommitLog,
        store: MaintenanceStore,
        clock: Clock,
        run: int = RUN,
        one_request: int = _ONE_REQUEST,
    ) -> None:
        """`run`: how many objects of a level make one of the next; 16, or what divides it. `one_request`: bytes; what
        is larger goes up in parts.
        """
        self.log = log
        self.counts: Counter[str] = Counter()
        self.misdated: Misdated | None = None  # among the commits that were merged here
        self._store = store
        self._clock = clock
        self._listing = Listing(store, clock)
        self._sidecars = Sidecars(log.objects, store)
        self._run = run
        self._one_request = one_request
        self._merged_to: dict[int, int] = {}  # by level, TXIDs: what is up to there has been merged

    # Merging

    def merge(self, scratch: Path, check: Check = lambda: None) -> int:
        """Make every run that is complete, and return how many those were. `check` is called before each; what it
        raises, the caller gets. `scratch`: a directory for temporary files.
        """
        made = 0
        for level in _RUN_LEVELS:
            is_new = level not in self._merged_to
            runs = self._complete_runs(level)
            for run in runs:
                check()
                if not self._merge(level, run, scratch):
                    return made
                self._merged_to[level] = max(run[-1].max_txid, self._merged_to[level])
                made += 1
            if not runs and not is_new:
                break  # then nothing has become complete in the levels above
        return made

    @property
    def merged(self) -> dict[int, int]:
        """By level, to which TXID all has been merged, as far as was seen here. Whoever merges elsewhere writes it."""
        return self._merged_to

    @property
    def merged_to(self) -> int | None:
        """The TXID of the newest commit that has been merged, as far as was seen here; None: nobody has looked."""
        return self._merged_to.get(1)

    def look_again(self) -> None:
        """Forget how far merging has come: others may have stopped in the middle of it."""
        self._merged_to.clear()

    def has_run(self, head: int) -> bool:
        """Say whether there is anything to merge in a log that ends at TXID `head`, as far as was seen here."""
        return head // self._run * self._run > self._merged_to.get(1, 0)

    def runs_to_merge(self) -> int:
        """Count the runs that are complete; more may be when those have been made."""
        return sum(len(self._complete_runs(level)) for level in _RUN_LEVELS)

    def _complete_runs(self, level: int) -> list[list[LogObject]]:
        """Aligned, so that everybody makes the same ones, and in ascending order."""
        known = self._merged_to.get(level)
        runs = self._complete_runs_after(level, known or 0)
        if known is not None and not runs:
            return []
        there = self._listing.level(level, known or 0)  # somebody else may have made them
        self._merged_to[level] = max((item.max_txid for item in there), default=known or 0)
        made = {item.min_txid for item in there}
        return [run for run in runs if run[0].min_txid not in made]

    def _complete_runs_after(self, level: int, done: int) -> list[list[LogObject]]:
        span, part = self._run**level, self._run ** (level - 1)
        found = self._listing.level(level - 1, done)
        parts = {item.min_txid: item for item in found if item.max_txid == item.min_txid + part - 1}
        starts = sorted({(txid - 1) // span * span + 1 for txid in parts})
        runs = [[parts[txid] for txid in range(low, low + span, part) if txid in parts] for low in starts]
        return [run for run in runs if len(run) == self._run and sum(item.size for item in run) <= _LARGEST_RUN]

    def _merge(self, level: int, run: list[LogObject], scratch: Path) -> bool:
        with ExitStack() as stack:
            changes: list[Change] = []
            before = position = Position(run[0].min_txid - 1, 0, 0)
            try:
                for item in run:
                    changes.append(change := self.log.objects.read(item, _IN_MEMORY))
                    stack.callback(change.close)
                    try:
                        check_follows(change.header, position)
                    except LogDamaged:
                        if level == 1 and self._is_merged(position.txid):
                            return False  # a leftover before it
                        raise
                    before, position = position, change.position
            except ObjectMissing:
                return False  # another run of maintenance has been here, long ago
            if level == 1 and not self.log.head.is_confirmed(position, before):
                return False  # a leftover among them, perhaps
            path = scratch / "merged.ltx"
            try:
                header = write_merged(changes, path, self._date_of_run(run, changes))
                self._create(level, header, path)
            finally:
                path.unlink(missing_ok=True)
        self.counts["merges"] += 1
        return True

    def _is_merged(self, txid: int) -> bool:
        return any(item.level and item.min_txid <= txid <= item.max_txid for item in self._listing.everything())

    def _date_of_run(self, run: list[LogObject], changes: list[Change]) -> int:
        """Of its last commit, corrected, as by all who make this run: it outlives the commits and their times."""
        dated = changes[-1].header.timestamp
        if run[-1].modified < run[0].modified:  # the store's clock went back
            return dated
        for item, change in zip(run, changes, strict=True):
            if found := misdated(item.max_txid, change.header.timestamp, latest(item.modified)):
                self.misdated = found.with_(self.misdated)
        return corrected(dated, run[-1].modified)

    # Snapshots

    def snapshots(self) -> Snapshots:
        """Look what a start would read now, and so whether a snapshot is due."""
        found = self._listing.towards_the_head()
        newest = max((item for item in found if item.level == SNAPSHOTS), key=lambda item: item.max_txid, default=None)
        plan = chain(found, newest.max_txid if newest else 0)
        head = max((item.max_txid for item in found), default=0)
        return Snapshots(newest, sum(item.size for item in plan), head)

    def check_nothing_misnamed(self) -> None:
        """Raise LogInUse when a log without a commit has some under other names."""
        self._listing.check_nothing_misnamed()

    def store_snapshot(self, image: Path, position: Position, scratch: Path) -> LogObject:
        """Store a database file, which is the state of the log at this confirmed position, and its sidecar."""
        path = scratch / "snapshot.ltx"
        try:
            index = write_snapshot(image, position, path)
            snapshot = LogObject(SNAPSHOTS, 1, position.txid, index.object_size, datetime.now(UTC))
            self._sidecars.put(snapshot, index)  # first: whoever sees the snapshot shall see both
            self._create(SNAPSHOTS, index.header, path)
        finally:
            path.unlink(missing_ok=True)
        self.counts["snapshots"] += 1
        return snapshot

    def restore_newest(self, image: Path, snapshot: LogObject | None, progress: Progress = no_progress) -> Position:
        """Build the newest state in a new file, beginning with this snapshot, and return where that is. Raises LogInUse
        when another program has written it: a backup of it would be another program's.
        """
        position = self.log.restore(image, progress=progress, snapshot=snapshot)
        self.log.head.check_written_here(position)
        return position

    def mend_sidecars(
        self, newest: LogObject, scratch: Path, now: datetime, check: Check = lambda: None
    ) -> LogObject | None:
        """See Sidecars.mend. `newest`: the newest snapshot; beside a small one nothing is looked for."""
        return self._sidecars.mend(scratch, now, check) if pays(newest) else None

    def misses_sidecar(self, newest: LogObject) -> bool:
        """Look whether `mend_sidecars` would make one now."""
        return self._sidecars.is_missed(newest)

    def holds(self, snapshot: LogObject, digest: str, progress: Progress = no_progress) -> bool:
        """Read a snapshot back, and say whether it holds the database file of this digest, as `digest_of` returns it.
        Raises LogDamaged when it is not whole or not there, SnapshotGone when that is because there is a newer one.
        """

        def chunks() -> Iterator[bytes]:
            done = 0
            for chunk in self.log.objects.chunks(snapshot):
                done += len(chunk)
                progress("restore", done, snapshot.size)
                yield chunk

        found = sha256()
        with self.log.objects.named_in_damage(snapshot):
            try:
                reader = ltx.Reader(chunks())
                check_follows(reader.header, START)
                pages = (page for _, page in _with_lock_page(reader.pages(), reader.header))
                while some := b"".join(islice(pages, _HASHED_AT_ONCE)):
                    found.update(some)
            except ObjectMissing as error:
                if any(item.max_txid > snapshot.max_txid for item, _ in self._listing.snapshots()):
                    raise SnapshotGone(f"{self.log.objects.url_of(snapshot)} was deleted since it was made") from error
                raise LogDamaged("is not there, although it was stored just now") from error
        return reader.header.max_txid == snapshot.max_txid and found.hexdigest() == digest

    def _create(self, level: int, header: ltx.Header, path: Path) -> None:
        """Whoever else makes an object of this name makes the same, so that it does no harm to replace it."""
        name = self._listing.names.name(level, header.min_txid, header.max_txid)
        written_at = datetime.fromtimestamp(header.timestamp / 1000, UTC)
        if path.stat().st_size > self._one_request:
            self._store.put(name, path, written_at)
            return
        try:
            self._store.create(name, path.read_bytes(), written_at)
        except ObjectExists:
            try:
                self._store.read_end(name, 1)
            except ObjectMissing:  # it was a conflict of several, of which none is stored
                self._store.put(name, path, written_at)

    # Deleting

    def everything(self) -> list[LogObject]:
        """List all objects of all levels, level by level in order of TXID."""
        return self._listing.everything()

    def delete(self, expired: Iterable[ExpiredObject], check: Check = lambda: None) -> None:
        """Delete in the order given. The run or snapshot that is left for it is read and checked before anything
        goes.
        """
        sound: LogObject | None = None
        for one in expired:
            check()
            if one.held_by and one.held_by != sound:
                self.log.objects.read(one.held_by, _IN_MEMORY).close()
                sound = one.held_by
            if one.item.level == SNAPSHOTS:
                self._sidecars.delete(one.item)  # first: nobody would know of it any more
            self._store.delete(self._listing.names.name_of(one.item))
            self.counts["deletions"] += 1

    def delete_raced(self, now: datetime) -> None:
        """Delete what proofs of create-if-absent have left, a day ago or more. `now`: by the store's clock."""
        for info in self._store.objects():
            if RACED.fullmatch(info.name) and now - info.modified > _A_DAY:
                self._store.delete(info.name)

    def discard(self, snapshot: LogObject) -> None:
        """Delete a snapshot that was just made, and is not what was written."""
        self._store.delete(self._listing.names.name_of(snapshot))
        self._sidecars.delete(snapshot)
