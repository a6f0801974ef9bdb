"""The newest snapshot of a log, to be read page by page."""

import logging
from collections.abc import Container
from dataclasses import dataclass

from core.errors import LogDamaged, ObjectMissing, SnapshotGone, StoreUnavailable
from infra.commitlog import ltx
from infra.commitlog.chain import LogObject, Position
from infra.commitlog.objects import Objects
from infra.commitlog.paging.page_index import PageIndex

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Paging:
    """When a private file is opened page by page, and how much of what it reads is kept."""

    above: int  # bytes: of the newest snapshot's object; a log without a larger one is restored as a whole
    cache: int  # bytes of pages as they are in the snapshot; what was changed since is kept besides


class NewestSnapshot:
    """An index of pages, and the object that has them.

    Raises StoreRefused or StoreUnavailable when the store cannot be read, SnapshotGone when the object was deleted.
    """

    def __init__(self, objects: Objects, item: LogObject, index: PageIndex) -> None:
        self.item = item
        self.is_of_another = False  # whether its index turned out to be that of another object
        self._objects = objects
        self._index = index
        self.blocks = index.blocks
        self.pages_per_block = index.pages_per_block
        self.block_of = index.block_of
        self.span = index.span
        self._has_upper = True

    @property
    def header(self) -> ltx.Header:
        return self._index.header

    @property
    def position(self) -> Position:
        return self._index.position

    def upper(self, number: int) -> bytes | None:
        """Return the content of an upper page, None if the index has it not, or not in a way that can be used."""
        try:
            return self._index.upper(number) if self._has_upper else None
        except LogDamaged as error:
            self._has_upper = False  # a block has it, too
            logger.warning("the sidecar of %s %s", self._objects.url_of(self.item), error)
            return None

    def fetch(self, begin: int, end: int) -> bytes:
        """Read the object's bytes from one offset to before another, unchecked but for how many they are. Raises
        StoreUnavailable for another number, unless it is the object that is another.
        """
        try:
            for _ in range(2):
                found = self._objects.read_part(self.item, begin, end)
                if len(found) == end - begin:
                    return found
        except ObjectMissing as error:
            raise self._gone("was deleted while its pages are read") from error
        self._check_is_of_this_object()
        url = self._objects.url_of(self.item)
        raise StoreUnavailable(f"{url}: {len(found):,} bytes came where {end - begin:,} are")

    def pages(self, block: int, body: bytes) -> list[tuple[int, bytes]]:
        """Decode a block and check it. Raises LogDamaged, with the object's URL, when it is not what it was, and
        SnapshotGone when the object is not the one that the index was made of.
        """
        try:
            return self._index.pages(block, body)
        except LogDamaged as error:
            with self._objects.named_in_damage(self.item):
                self._check_is_of_this_object()
                raise LogDamaged(str(error)) from error

    def _check_is_of_this_object(self) -> None:
        try:
            checksum = self._objects.checksum(self.item)
        except ObjectMissing as error:
            raise self._gone("was deleted while its pages are read") from error
        if checksum != self._index.checksum:
            self.is_of_another = True
            raise self._gone("is not the object that its index was made of")

    def _gone(self, what: str) -> SnapshotGone:
        return SnapshotGone(f"{self._objects.url_of(self.item)} {what}")


def newest_snapshot(objects: Objects, above: int, distrusted: Container[LogObject] = ()) -> NewestSnapshot | None:
    """Find the newest snapshot that can be read page by page; None if it is not larger than `above`, in bytes.

    One without a sidecar is read through once for its index, unless the one before it has one: maintenance may be at
    work, or have been killed. `distrusted`: snapshots whose sidecars are of no use.
    Raises what `Objects` raises for a log that cannot be read, LogDamaged for a snapshot that is not whole, and
    SnapshotGone for one that was deleted meanwhile.
    """
    newest = objects.snapshots()[:2]
    if not newest or newest[0][0].size <= above:
        return None
    item = next((item for item, has_sidecar in newest if has_sidecar and item not in distrusted), None)
    index = _index_in_sidecar(objects, item) if item else None
    item = item or newest[0][0]
    if index is None:
        logger.info("%s has no index of its pages that can be used: it is read through once", objects.url_of(item))
        try:
            with objects.named_in_damage(item):
                index = PageIndex.read_through(objects.chunks(item))
                _check_is_of(index, item)
        except ObjectMissing as error:
            raise SnapshotGone(f"{objects.url_of(item)} was deleted since it was found") from error
    return NewestSnapshot(objects, item, index)


def _index_in_sidecar(objects: Objects, item: LogObject) -> PageIndex | None:
    """None when it is not there any more, or is none that this release can use: the snapshot has all of it as well."""
    try:
        index = PageIndex.decode(objects.sidecar(item))
        _check_is_of(index, item)
    except ObjectMissing:
        return None
    except LogDamaged as error:
        logger.warning("the sidecar of %s %s", objects.url_of(item), error)
        return None
    return index


def _check_is_of(index: PageIndex, item: LogObject) -> None:
    header = index.header
    if (header.min_txid, header.max_txid, index.object_size) != (item.min_txid, item.max_txid, item.size):
        raise LogDamaged(
            f"holds TXID {header.min_txid}-{header.max_txid} in {index.object_size:,} bytes, "
            f"and is named {item.min_txid}-{item.max_txid} of {item.size:,}"
        )
