"""What an instance that has no file reads of the log before it can answer."""

from dataclasses import dataclass

from infra.clock import Clock
from infra.commitlog.chain import LogObject, chain, end_of
from infra.commitlog.objects import SNAPSHOTS, Listing, Lists
from infra.commitlog.paging.page_index import BLOCK
from infra.storage.object_store import READ_PART

_OPENED = 1  # requests: the listing of the snapshots
_FIRST_READ = 3  # requests: what would be the next commit, whether the one before stands, a block


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Requests to a bucket, and bytes of its objects."""

    requests: int  # when the database is restored as a whole
    bytes: int
    paged_requests: int | None  # with the first read of a row, when it is opened page by page; None if it cannot be
    paged_bytes: int | None

    def __str__(self) -> str:
        whole = f"{self.requests:,} requests, {self.bytes:,} bytes"
        if self.paged_requests is None:
            return whole
        return f"{whole}; page by page {self.paged_requests:,} requests, {self.paged_bytes:,} bytes"


def cold_start(found: list[LogObject], sidecars: list[LogObject]) -> ColdStart:
    """Count what a start would read of these objects. A block is counted as not compressed at all."""
    plan = chain(found, 0)
    levels = {item.level for item in found}
    listings = 1 + len(levels)
    newest = max((item for item in found if item.level == SNAPSHOTS), key=lambda item: item.max_txid, default=None)
    sidecar = next((item for item in sidecars if newest and item.max_txid == newest.max_txid), None)
    whole = listings + _reads(plan) + bool(plan), sum(item.size for item in plan)
    if not (newest and sidecar):
        return ColdStart(*whole, None, None)
    follows = chain(found, end_of([newest]))
    size = sidecar.size + sum(item.size for item in follows) + min(BLOCK, newest.size)
    return ColdStart(*whole, _OPENED + _reads([sidecar, *follows]) + _FIRST_READ, size)


def _reads(items: list[LogObject]) -> int:
    """How many requests it takes to read them: of a large object each is for a part."""
    return sum(max(-(-item.size // READ_PART), 1) for item in items)


def cold_start_of(store: Lists) -> ColdStart:
    """List what leads to the newest state of the log in a store, and count it. Raises StoreError."""
    listing = Listing(store, Clock())
    return cold_start(listing.towards_the_head(), listing.sidecars())
