"""The sidecars of a log's snapshots: stored with them, made anew where they are of no use, removed with them.

Nobody has to have one: whoever finds none, or none that is of use, reads the snapshot for what it says. So nothing here
has to happen at once, and each run may be killed anywhere.
"""

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

from core.errors import LogDamaged, ObjectMissing
from infra.commitlog.chain import LogObject
from infra.commitlog.objects import SNAPSHOTS, Objects
from infra.commitlog.paging.page_index import PageIndex
from infra.commitlog.paging.sidecar import LEAST_SNAPSHOT, index_of
from infra.storage.object_store import ObjectInfo

_A_DAY = timedelta(days=1)  # for which the snapshot may still be on its way

Check = Callable[[], None]


class Store(Protocol):
    """What is done to them; see ObjectStore for the errors."""

    def put(self, name: str, body: Path | bytes, written_at: datetime | None = None) -> None: ...
    def objects(self, directory: str = "", after: str = "") -> list[ObjectInfo]: ...
    def delete(self, name: str) -> None: ...


class Sidecars:
    """Raises StoreError when the store does not do what is asked."""

    def __init__(self, objects: Objects, store: Store) -> None:
        self._objects = objects
        self._names = objects.names
        self._store = store

    def put(self, snapshot: LogObject, index: PageIndex) -> None:
        """Store a sidecar, if the snapshot is so large that it pays. It may come before the snapshot."""
        if pays(snapshot):
            self._store.put(self._names.sidecar_of(snapshot), index.encode())

    def delete(self, snapshot: LogObject) -> None:
        """Remove the sidecar of a snapshot, if there is one."""
        if pays(snapshot):
            self._store.delete(self._names.sidecar_of(snapshot))

    def is_missed(self, snapshot: LogObject) -> bool:
        """Say whether a snapshot that is there ought to have a sidecar, and has none that is of use."""
        try:
            return pays(snapshot) and not self._is_sound(snapshot)
        except ObjectMissing:  # another run has deleted it, for there is a newer one
            return False

    def _is_sound(self, snapshot: LogObject) -> bool:
        """Whether its sidecar is whole, and of just this object."""
        try:
            index = PageIndex.decode(self._objects.sidecar(snapshot))
        except (ObjectMissing, LogDamaged):
            return False
        return index.object_size == snapshot.size and index.checksum == self._objects.checksum(snapshot)

    def mend(self, scratch: Path, now: datetime, check: Check) -> LogObject | None:
        """Make a sidecar for the newest snapshot if it has none that is of use, and return that snapshot then. Remove
        those that have been without a snapshot for a day. `now`: by the store's clock. `check`: is called now and then;
        what it raises, the caller gets.

        Raises LogDamaged when it is the snapshot that is not whole.
        """
        found = self._store.objects(self._names.directory(SNAPSHOTS))
        snapshots = [item for info in found if (item := self._names.object_of(SNAPSHOTS, info))]
        for info in found:
            sidecar = self._names.sidecar_in(info)
            is_orphan = sidecar and sidecar.max_txid not in (item.max_txid for item in snapshots)
            if is_orphan and now - info.modified > _A_DAY:
                self._store.delete(info.name)
        newest = max(snapshots, key=lambda item: item.max_txid, default=None)
        if newest is None or not self.is_missed(newest):
            return None
        try:
            self._make(newest, scratch / "indexed.db", check)
        except ObjectMissing:
            return None
        return newest

    def _make(self, snapshot: LogObject, image: Path, check: Check) -> None:
        def chunks() -> Iterator[bytes]:
            for chunk in self._objects.chunks(snapshot):
                check()
                yield chunk

        try:
            with self._objects.named_in_damage(snapshot):
                index = index_of(chunks(), image)
            self.put(snapshot, index)
        finally:
            image.unlink(missing_ok=True)


def pays(snapshot: LogObject) -> bool:
    """Say whether a snapshot is large enough to be read page by page."""
    return snapshot.size >= LEAST_SNAPSHOT
