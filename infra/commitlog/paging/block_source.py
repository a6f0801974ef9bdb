"""The blocks of a snapshot in the store: fetched, checked, and only then handed on."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from core.errors import LogDamaged
from infra.commitlog import ltx

# Byte offsets begin and end in the snapshot's object -> its bytes; raises StoreError, ObjectMissing
Fetch = Callable[[int, int], bytes]

_PARALLEL_ABOVE = 2 * 1024 * 1024  # bytes of the object
_RANGE = 1024 * 1024
_AT_ONCE = 8


class Index(Protocol):
    """What says where the blocks of a snapshot are, and what they must be; see PageIndex. Any thread may ask."""

    @property
    def header(self) -> ltx.Header: ...
    @property
    def blocks(self) -> int: ...
    @property
    def pages_per_block(self) -> int: ...
    def block_of(self, number: int) -> int: ...
    def span(self, first: int, last: int) -> tuple[int, int]: ...
    def pages(self, block: int, body: bytes) -> list[tuple[int, bytes]]: ...
    def upper(self, number: int) -> bytes | None: ...


class BlockSource:
    """Fetches blocks, several in one request or in parallel ones. Any thread may; raises what `Fetch` raises."""

    def __init__(self, index: Index, fetch: Fetch) -> None:
        self._index = index
        self._fetch = fetch
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def read(self, first: int, last: int, needed: int | None) -> Iterator[tuple[int, bytes]]:
        """Yield the raw pages of the blocks from `first` to `last`, both included.

        A damaged one is left out, but the one that is `needed` is fetched once more. Raises LogDamaged if it is damaged
        still.
        """
        begin, end = self._index.span(first, last)
        body = self._bytes_of(begin, end)
        for block in range(first, last + 1):
            start, end = self._index.span(block, block)
            try:
                yield block, self._raw(block, body[start - begin : end - begin])
            except LogDamaged:
                if block == needed:
                    yield block, self._raw(block, self._bytes_of(start, end))

    def _raw(self, block: int, body: bytes) -> bytes:
        return b"".join([page for _, page in self._index.pages(block, body)])

    def _bytes_of(self, begin: int, end: int) -> bytes:
        if end - begin <= _PARALLEL_ABOVE:
            return self._fetch(begin, end)
        with self._lock:
            self._pool = self._pool or ThreadPoolExecutor(_AT_ONCE)
        starts = range(begin, end, _RANGE)
        return b"".join(self._pool.map(lambda start: self._fetch(start, min(start + _RANGE, end)), starts))
