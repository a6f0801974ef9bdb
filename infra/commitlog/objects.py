"""The objects of a log: what they are called, and which there are, in as few listings as it takes.

The names are Litestream's: in a bucket `<prefix>/<level, 4 hex digits>/<first TXID>-<last TXID>.ltx`, in a directory
`ltx/<level>/...`, TXIDs as 16 hex digits. Level 0 holds one commit each, the levels 1 to 4 merged runs of them, level 9
snapshots; Litestream itself writes others between, all of which are read.
"""

import re
from collections.abc import Callable
from typing import Protocol, TypeVar

from core.errors import LogInUse, StoreUnavailable
from infra.clock import Clock
from infra.commitlog.chain import LogObject, chain
from infra.storage.object_store import ObjectInfo

T = TypeVar("T")

COMMITS, SNAPSHOTS = 0, 9  # levels
RUN = 16  # objects of a level in one of the level above; see upkeep/compactor.py

_READ_ATTEMPTS = 2
_BUCKETS_LEVEL = re.compile("000[0-9]")
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})\.ltx")


class Names:
    def __init__(self, url: str) -> None:
        self._in_directory = url.startswith("file:")
        self.levels = "ltx" if self._in_directory else ""  # the directory that holds those of all levels

    def directory(self, level: int) -> str:
        return f"ltx/{level}" if self._in_directory else f"{level:04x}"

    def level_of(self, directory: str) -> int | None:
        text = directory.rpartition("/")[2]
        try:
            level = int(text, 10 if self._in_directory else 16)
        except ValueError:
            return None
        return level if directory == self.directory(level) else None

    def misnamed(self, directories: list[str]) -> str:
        """What these, right under the URL, are instead of a log of this service, and what to do."""
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

    def path(self, level: int, low: int, high: int) -> str:
        return f"{self.directory(level)}/{low:016x}-{high:016x}.ltx"

    def commit(self, txid: int) -> str:
        return self.path(COMMITS, txid, txid)

    def path_of(self, item: LogObject) -> str:
        return self.path(item.level, item.min_txid, item.max_txid)

    def object_of(self, level: int, info: ObjectInfo) -> LogObject | None:
        match = _NAME.fullmatch(info.name.rpartition("/")[2])
        if not match:
            return None
        low, high = (int(text, 16) for text in match.groups())
        return LogObject(level, low, high, info.size, info.modified, info.dated)


class Lists(Protocol):
    @property
    def url(self) -> str: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def directories(self, directory: str = "") -> list[str]: ...


class Catalog:
    """Raises StoreRefused or StoreUnavailable."""

    def __init__(self, store: Lists, names: Names, clock: Clock) -> None:
        self._store = store
        self._names = names
        self._clock = clock

    def everything(self) -> list[LogObject]:
        """All objects of all levels, level by level in order of TXID."""
        return [item for level in self._levels() for item in self.level(level)]

    def towards_the_head(self) -> list[LogObject]:
        """What it takes to build the newest state: the snapshots, and of each level what lies past all that the levels
        above it hold. A listing has a price by the thousand names, and a week of merged runs are many.
        """
        levels = self._levels()
        found = self.level(SNAPSHOTS) if SNAPSHOTS in levels else []
        for level in reversed([level for level in levels if level not in (COMMITS, SNAPSHOTS)]):
            found += self.level(level, _start_of_run(level, _end(found)) - 1)
        # The newest commit is never deleted, so there is one at the end or past it: or the log is another's, with
        # runs that do not begin where ours do
        commits = self.level(COMMITS, _end(found) - 1)
        if commits and _end(found + commits) == commits[-1].max_txid:
            return found + commits
        found = [item for level in levels if level for item in self.level(level)]
        return found + self.level(COMMITS, _end(found))

    def level(self, level: int, after: int = 0) -> list[LogObject]:
        """Those that begin after TXID `after`, and perhaps the one that begins there, in order of TXID."""
        directory = self._names.directory(level)
        start = self._names.path(level, after, after) if after > 0 else ""
        found = retrying(self._clock, lambda: self._store.objects(directory, start))
        return [item for info in found if (item := self._names.object_of(level, info))]

    def check_nothing_misnamed(self) -> None:
        """Raises LogInUse for an empty log beside one under other names, which a new one would hide."""
        found = retrying(self._clock, lambda: self._store.directories(""))
        if what := self._names.misnamed(found):
            raise LogInUse(f"{self._store.url} has no commit, and something else: {what}. No log is begun there")

    def _levels(self) -> list[int]:
        found = retrying(self._clock, lambda: self._store.directories(self._names.levels))
        return sorted(level for level in map(self._names.level_of, found) if level is not None)


def retrying(clock: Clock, ask: Callable[[], T]) -> T:
    """Once more, if the store is only unavailable."""
    for attempt in range(1, _READ_ATTEMPTS):
        try:
            return ask()
        except StoreUnavailable:
            clock.sleep(0.05 * attempt)
    return ask()


def _end(objects: list[LogObject]) -> int:
    """The TXID that they lead to without a gap."""
    return max((item.max_txid for item in chain(objects, 0)), default=0)


def _start_of_run(level: int, end: int) -> int:
    """The first TXID of the aligned run that holds the commit after `end`."""
    span: int = RUN**level
    return end // span * span + 1
