"""The objects of a log: what they are called, which there are, and what is in a single one.

The names are Litestream's: in a bucket `<prefix>/<level, 4 hex digits>/<first TXID>-<last TXID>.ltx`, in a directory
`ltx/<level>/...`, TXIDs as 16 hex digits. Level 0 holds one commit each, the levels 1 to 4 merged runs of them, level 9
snapshots; Litestream itself writes others between, all of which are read. Beside a snapshot lies its sidecar, under the
same name with another ending, by which Litestream knows that it is none of the log's: see paging/page_index.py.

Nothing here says what is true: an object may be none of the log's. That is for log.py.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from core.errors import LogDamaged, LogInUse, StoreUnavailable
from infra.clock import Clock
from infra.commitlog import ltx
from infra.commitlog.chain import IN_MEMORY, Change, LogObject, Position, chain, check_follows, end_of, newest_in
from infra.storage.object_store import ObjectInfo

T = TypeVar("T")
Read = Callable[[], Change]

COMMITS, SNAPSHOTS = 0, 9  # levels
RUN = 16  # objects of a level in one of the level above; see upkeep/compactor.py
PARALLEL_READS = 8
SMALL = 1024 * 1024  # bytes that surely pass within the quick store's time-out

# What a sidecar has at most: 8 MiB of upper pages, and of each block, which has 260 bytes at least, 12
_MOST_SIDECAR = 16 * 1024 * 1024
_PARTS_OF_SNAPSHOT = 20
_READ_ATTEMPTS = 2
_BUCKETS_LEVEL = re.compile("000[0-9]")
_OBJECT, _SIDECAR = ".ltx", ".pages"  # how their names end
_OBJECT_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")
_UNTOLD = datetime.fromtimestamp(0, UTC)


def commit_object(txid: int) -> LogObject:
    """Return what a commit by itself is called, whether it is there or not: its size and time are not told."""
    return LogObject(COMMITS, txid, txid, 0, _UNTOLD)


class ObjectNames:
    """The names of a log's objects and directories, relative to its URL."""

    def __init__(self, url: str) -> None:
        self._in_directory = url.startswith("file:")
        self.levels = "ltx" if self._in_directory else ""  # the directory that holds those of all levels

    def directory(self, level: int) -> str:
        """Return the directory of a level."""
        return f"ltx/{level}" if self._in_directory else f"{level:04x}"

    def level_of(self, directory: str) -> int | None:
        """Return the level that a directory is for, None if it is no level's."""
        text = directory.rpartition("/")[2]
        try:
            level = int(text, 10 if self._in_directory else 16)
        except ValueError:
            return None
        return level if level >= 0 and directory == self.directory(level) else None

    def misnamed(self, directories: list[str]) -> str:
        """Say what these, right under the URL, are instead of a log of this service, and what to do; "" if nothing."""
        found = set(directories)
        if "generations" in found:
            return (
                "generations/ is a replica of Litestream 0.3: restore it with that release (`litestream restore -o "
                "app.db`), start with that file at DATABASE_PATH, and set REPLICA_URL to a prefix of its own"
            )
        if self._in_directory and (level := min(filter(_BUCKETS_LEVEL.fullmatch, found), default="")):
            return (
                f"{level}/ is a log as a bucket has it: in a directory 0000/ is ltx/0/, 0001/ is ltx/1/, …: move them"
            )
        if not self._in_directory and "ltx" in found:
            return "ltx/ is a log as a directory has it: in a bucket ltx/0/ is 0000/, ltx/1/ is 0001/, …: move them"
        return ""

    def name(self, level: int, low: int, high: int) -> str:
        """Return the name of the object that has these TXIDs, from `low` to `high`."""
        return f"{self.directory(level)}/{low:016x}-{high:016x}{_OBJECT}"

    def name_of(self, item: LogObject) -> str:
        """Return the name of an object."""
        return self.name(item.level, item.min_txid, item.max_txid)

    def sidecar_of(self, snapshot: LogObject) -> str:
        """Return the name of the object that says where a snapshot's pages are, whether it has one or not."""
        return self.name_of(snapshot).removesuffix(_OBJECT) + _SIDECAR

    def sidecar_in(self, info: ObjectInfo) -> LogObject | None:
        """Return what a listing shows as a sidecar: its snapshot's TXIDs, its own size and time. None for others."""
        if not info.name.endswith(_SIDECAR):
            return None
        return self.object_of(SNAPSHOTS, replace(info, name=info.name.removesuffix(_SIDECAR) + _OBJECT))

    def object_of(self, level: int, info: ObjectInfo) -> LogObject | None:
        """Return what a listing shows in a level's directory; None for what is no object of a log."""
        match = _OBJECT_NAME.fullmatch(info.name.rpartition("/")[2])
        if not match:
            return None
        low, high = (int(text, 16) for text in match.groups())
        if not 1 <= low <= high:
            return None
        return LogObject(level, low, high, info.size, info.modified, info.dated)


class Lists(Protocol):
    """What a listing asks of an object store; see ObjectStore for the errors."""

    @property
    def url(self) -> str: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def directories(self, directory: str = "") -> list[str]: ...


class Reads(Lists, Protocol):
    """And what reading single objects asks of it."""

    def read(self, name: str) -> Iterator[bytes]: ...
    def read_range(self, name: str, begin: int, end: int) -> bytes: ...
    def read_end(self, name: str, size: int) -> tuple[bytes, datetime]: ...


class Listing:
    """Which objects a log has, found in as few requests as it takes.

    Every method raises StoreRefused or StoreUnavailable when the store cannot be read.
    """

    def __init__(self, store: Lists, clock: Clock) -> None:
        self.url = store.url
        self.names = ObjectNames(store.url)
        self._lists = store
        self._clock = clock

    def everything(self) -> list[LogObject]:
        """Return all objects of all levels, level by level in order of TXID."""
        return [item for level in self._levels() for item in self.level(level)]

    def towards_the_head(self) -> list[LogObject]:
        """Return what it takes to build the newest state: the snapshots, and of each level what lies past all that the
        levels above it hold. A listing has a price by the thousand names, and a week of merged runs are many.
        """
        levels = self._levels()
        found = self.level(SNAPSHOTS) if SNAPSHOTS in levels else []
        for level in reversed([level for level in levels if level not in (COMMITS, SNAPSHOTS)]):
            found += self.level(level, _start_of_run(level, _end(found)) - 1)
        # The newest commit is never deleted, so there is one at the end or past it: or the log is another's, with
        # runs that do not begin where ours do
        end = _end(found)
        commits = self.level(COMMITS, end - 1, end)
        if commits and _end(found + commits) == commits[-1].max_txid:
            return found + commits
        found = [item for level in levels if level for item in self.level(level)]
        return found + self.level(COMMITS, _end(found))

    def snapshots(self) -> list[tuple[LogObject, bool]]:
        """Return the snapshots, the newest first, and of each whether it has a sidecar. One listing."""
        found = self._retrying(lambda: self._lists.objects(self.names.directory(SNAPSHOTS)))
        names = {info.name for info in found}
        items = [item for info in found if (item := self.names.object_of(SNAPSHOTS, info))]
        items.sort(key=lambda item: item.max_txid, reverse=True)
        return [(item, self.names.sidecar_of(item) in names) for item in items]

    def sidecars(self) -> list[LogObject]:
        """Return the sidecars, whether their snapshots are there or not: see ObjectNames.sidecar_in."""
        found = self._retrying(lambda: self._lists.objects(self.names.directory(SNAPSHOTS)))
        return [item for info in found if (item := self.names.sidecar_in(info))]

    def level(self, level: int, after: int = 0, held: int = 0) -> list[LogObject]:
        """Return those that begin after TXID `after`, and perhaps the one that begins there, in order of TXID.

        They are made in that order, and none is left out before one that was made later. `held`: the TXID up to which
        it does not matter.
        """
        found, end = self._listed(level, after), max(after, held)
        if not _gaps(found, end):
            return found
        # A store may show what is made while it lists, and not what was made before that. A second listing has all
        # that was there when the first one ended: what lies past a gap there, and past the first one's end, is newer
        newest, again = newest_in(found), self._listed(level, after)
        return again[: next((place for place in _gaps(again, end) if place and again[place].max_txid > newest), None)]

    def check_nothing_misnamed(self) -> None:
        """Raise LogInUse for an empty log beside one under other names, which a new one would hide."""
        found = self._retrying(lambda: self._lists.directories(""))
        if what := self.names.misnamed(found):
            raise LogInUse(f"{self.url} has no commit, and something else: {what}. No log is begun there")

    def _listed(self, level: int, after: int) -> list[LogObject]:
        directory = self.names.directory(level)
        start = self.names.name(level, after, after) if after > 0 else ""
        found = self._retrying(lambda: self._lists.objects(directory, start))
        return [item for info in found if (item := self.names.object_of(level, info))]

    def _levels(self) -> list[int]:
        found = self._retrying(lambda: self._lists.directories(self.names.levels))
        return sorted(level for level in map(self.names.level_of, found) if level is not None)

    def _retrying(self, ask: Callable[[], T]) -> T:
        """Once more, if the store is only unavailable."""
        for attempt in range(1, _READ_ATTEMPTS):
            try:
                return ask()
            except StoreUnavailable:
                self._clock.sleep(0.05 * attempt)
        return ask()


class Objects(Listing):
    """A listing whose objects can be read.

    Every method that reads one raises ObjectMissing when it is not there, StoreRefused or StoreUnavailable when the
    store cannot be read, and LogDamaged, with the object's URL, when what it holds is not what its name says.
    """

    def __init__(self, quick: Reads, bulk: Reads, clock: Clock, parallel: int = PARALLEL_READS) -> None:
        """`quick` does one attempt with a short time-out, `bulk` one that has time for large objects. `parallel`: how
        many small objects are read at once.
        """
        super().__init__(quick, clock)
        self._quick = quick
        self._bulk = bulk
        self._parallel = parallel

    def url_of(self, item: LogObject) -> str:
        """Return the URL of an object, for messages."""
        return f"{self.url}/{self.names.name_of(item)}"

    def sidecar(self, snapshot: LogObject) -> bytes:
        """Read what lies beside a snapshot, unchecked; see PageIndex. Raises ObjectMissing, and LogDamaged, with a
        predicate for a message, for more than a sidecar of such a snapshot can have.
        """
        most = _MOST_SIDECAR + snapshot.size // _PARTS_OF_SNAPSHOT

        def read() -> bytes:
            found = bytearray()
            for chunk in self._bulk.read(self.names.sidecar_of(snapshot)):
                found += chunk
                if len(found) > most:
                    raise LogDamaged(f"has more than {most:,} bytes, which is too much for such a snapshot")
            return bytes(found)

        return self._retrying(read)

    def checksum(self, item: LogObject) -> int:
        """Read the file checksum of an object, as its last bytes say. Raises ObjectMissing."""
        end, _ = self._retrying(lambda: self._quick.read_end(self.names.name_of(item), ltx.CHECKSUM_SIZE))
        return int.from_bytes(end, "big")

    def chunks(self, item: LogObject) -> Iterator[bytes]:
        """Read an object's bytes in their order, unchecked. Raises ObjectMissing."""
        store = self._quick if item.size <= SMALL else self._bulk
        return store.read(self.names.name_of(item))

    def url_of_sidecar(self, snapshot: LogObject) -> str:
        """Return the URL of a sidecar, for messages."""
        return f"{self.url}/{self.names.sidecar_of(snapshot)}"

    def read(self, item: LogObject, in_memory: int = IN_MEMORY) -> Change:
        """Read an object to its end and check it. `in_memory`: bytes; what is larger passes through a temporary file.
        Whoever takes it closes it.
        """
        with self.named_in_damage(item):
            change = self._retrying(lambda: Change(self.chunks(item), item.level, in_memory))
            if (item.min_txid, item.max_txid) != (change.header.min_txid, change.header.max_txid):
                change.close()
                raise LogDamaged(f"holds TXID {change.header.min_txid}-{change.header.max_txid}")
            return change

    def read_after(self, position: Position, item: LogObject, read: "Read | None" = None) -> Change:
        """Read an object, and raise LogDamaged as well when it does not follow this position. `read`: how, if that has
        begun.
        """
        change = read() if read else self.read(item)
        with self.named_in_damage(item), closed_on_error(change):
            check_follows(change.header, position)
        return change

    def header(self, item: LogObject) -> ltx.Header:
        """Read the header of an object. Raises ObjectMissing."""
        with self.named_in_damage(item):
            head = self._retrying(lambda: self._quick.read_range(self.names.name_of(item), 0, ltx.HEADER_SIZE))
            return ltx.decode_header(head)

    def read_part(self, item: LogObject, begin: int, end: int) -> bytes:
        """Read an object's bytes from one offset to before another, unchecked. Any thread may."""
        store = self._quick if end - begin <= SMALL else self._bulk
        return self._retrying(lambda: store.read_range(self.names.name_of(item), begin, end))

    def commit_end(self, txid: int) -> tuple[int, datetime]:
        """Return the file checksum of a commit by itself, and when the store had it."""
        name = self.names.name_of(commit_object(txid))
        end, modified = self._retrying(lambda: self._quick.read_end(name, ltx.CHECKSUM_SIZE))
        return int.from_bytes(end, "big"), modified

    def bodies(self, items: list[LogObject]) -> Iterator[tuple[LogObject, Iterable[bytes]]]:
        """Yield each with its bytes, unchecked, in the order given. Small ones are fetched side by side, large ones
        stream.
        """
        if self._parallel == 1:
            yield from ((item, self.chunks(item)) for item in items)
            return
        with ThreadPoolExecutor(self._parallel) as pool:

            def start(item: LogObject) -> Callable[[], Iterable[bytes]]:
                if item.size > SMALL:
                    return lambda: self.chunks(item)
                return pool.submit(self._retrying, lambda: list(self.chunks(item))).result

            rest = iter(items)
            started = [(item, start(item)) for item in islice(rest, 2 * self._parallel)]
            while started:
                item, body = started.pop(0)
                yield item, body()
                started += [(item, start(item)) for item in islice(rest, 1)]

    @contextmanager
    def side_by_side(self, items: Sequence[LogObject]) -> Iterator[Iterator["Read"]]:
        """Begin to read objects, some at once; gives for each, in their order, what waits for it and returns it as
        `read` does. What nobody has taken at the end is closed.
        """
        if self._parallel == 1:
            yield (partial(self.read, item) for item in items)
            return
        begun: list[Future[Change]] = []
        with ThreadPoolExecutor(min(self._parallel, max(len(items), 1))) as pool:
            try:
                yield self._begun(items, pool, begun)
            finally:
                for future in begun:
                    if not future.cancel():
                        future.add_done_callback(_close)

    def _begun(
        self, items: Sequence[LogObject], pool: ThreadPoolExecutor, begun: "list[Future[Change]]"
    ) -> Iterator["Read"]:
        rest = iter(items)
        waiting: list[Read] = []
        while True:
            for item in islice(rest, 2 * self._parallel - len(waiting)):
                if item.size > SMALL:
                    waiting.append(partial(self.read, item))
                else:
                    begun.append(pool.submit(self.read, item))
                    waiting.append(partial(_taken, begun, begun[-1]))
            if not waiting:
                return
            yield waiting.pop(0)

    @contextmanager
    def named_in_damage(self, item: LogObject) -> Iterator[None]:
        """Put the object's URL before the message of LogDamaged."""
        try:
            yield
        except LogDamaged as error:
            raise LogDamaged(f"{self.url_of(item)} {error}") from error


def _taken(begun: "list[Future[Change]]", future: "Future[Change]") -> Change:
    begun.remove(future)
    return future.result()


def _close(future: "Future[Change]") -> None:
    if not future.cancelled() and not future.exception():
        future.result().close()


@contextmanager
def closed_on_error(change: Change) -> Iterator[None]:
    """Close a change if the body does not end well."""
    try:
        yield
    except BaseException:
        change.close()
        raise


def _end(found: list[LogObject]) -> int:
    """The TXID that they lead to without a gap."""
    return end_of(chain(found, 0))


def _gaps(found: list[LogObject], end: int) -> list[int]:
    """The places of those that do not lead on from the ones before, or from TXID `end`, 0 if that is not known."""
    places = []
    for place, item in enumerate(found):
        if end and item.min_txid > end + 1:
            places.append(place)
        end = max(end, item.max_txid)
    return places


def _start_of_run(level: int, end: int) -> int:
    """The first TXID of the aligned run that holds the commit after `end`."""
    span: int = RUN**level
    return end // span * span + 1
