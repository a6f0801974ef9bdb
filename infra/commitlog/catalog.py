"""Which objects there are, in as few listings as it takes."""

from collections.abc import Callable
from typing import Protocol, TypeVar

from core.errors import LogInUse, StoreUnavailable
from infra.clock import Clock
from infra.commitlog.chain import LogObject, chain
from infra.commitlog.names import COMMITS, SNAPSHOTS, Names
from infra.object_store import ObjectInfo

T = TypeVar("T")

RUN = 16  # objects of a level in one of the level above; see maintenance.py
_READ_ATTEMPTS = 2


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
