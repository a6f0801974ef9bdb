"""What a sparse database file has in it, and what is still only in the snapshot."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable

from infra.commitlog.ltx import lock_page
from infra.commitlog.paging.block_source import BlockSource, Fetch, Index
from infra.commitlog.paging.page_cache import PageCache

_MOST_AHEAD = 4 * 1024 * 1024  # bytes of raw pages
_MOST_UPPER = 4 * 1024 * 1024  # bytes of memory

# As `apsw.VFSFile`: bytes and offset -> so many bytes, or fewer at the end
ReadFile = Callable[[int, int], bytes]


class SnapshotPages:
    """The pages of one snapshot below a database file: those that were not written since come from here.

    Any thread may read; nobody else waits while one of them waits for the store.
    """

    def __init__(self, index: Index, fetch: Fetch, cache: PageCache) -> None:
        self.source = BlockSource(index, fetch)
        self.page_size = index.header.page_size
        # By page number: whether the file has it. A page that the database has been without never comes back
        self.in_file = bytearray(index.header.size + 1)
        self._lock_page = lock_page(self.page_size)
        if self._lock_page < len(self.in_file):
            self.in_file[self._lock_page] = 1
        self.index = index
        self._pages_per_block = index.pages_per_block
        self._block_size = index.pages_per_block * self.page_size
        self._cache = cache
        self._lock = threading.Lock()
        self._coming: dict[int, threading.Event] = {}  # by block, what somebody is fetching
        self._ahead = (-2, -2, 1)  # the blocks that were fetched last, first and last, and how many they were to be
        self._uppers: OrderedDict[int, bytes] = OrderedDict()  # by number, the least recently used first
        self._newest = (-1, b"")  # the block that was asked for last, and its pages

    def read(self, amount: int, offset: int, read_file: ReadFile) -> bytes:
        """Return so many bytes from an offset on, of the file or of the snapshot. Raises what `Fetch` raises, and
        LogDamaged.
        """
        size = self.page_size
        before, begin = divmod(offset, size)
        if begin + amount > size:
            return self._read_several(amount, offset, read_file)
        number = before + 1
        if number >= len(self.in_file) or self.in_file[number]:
            return read_file(amount, offset)
        return self._part_of(number, begin, begin + amount)

    def is_in_file(self, number: int) -> bool:
        """Ask whether a page is the file's own by now, or none of the snapshot's."""
        return not 1 <= number < len(self.in_file) or self.in_file[number] != 0

    def widened(self, data: bytes, offset: int, read_file: ReadFile) -> tuple[bytes, int]:
        """Return what to write, and where, so that pages that are not in the file are written whole."""
        size, end = self.page_size, offset + len(data)
        before, after = offset % size, -end % size
        if before and not self.is_in_file(offset // size + 1):
            data, offset = self.read(before, offset - before, read_file) + bytes(data), offset - before
        if after and not self.is_in_file(end // size + 1):
            data = bytes(data) + self.read(after, end, read_file)
        return data, offset

    def note_written(self, begin: int, end: int) -> None:
        """Take down that the file has these pages now, from byte offset `begin` to before `end`."""
        first, last = begin // self.page_size + 1, min((end - 1) // self.page_size + 1, len(self.in_file) - 1)
        if first <= last:
            self.in_file[first : last + 1] = b"\1" * (last + 1 - first)

    def note_truncated(self, size: int) -> None:
        """Take down that the file was cut off after so many bytes, with a whole page."""
        self.note_written(size, len(self.in_file) * self.page_size)

    def warm(self, blocks: Iterable[int]) -> None:
        """Bring blocks into the cache that are not there, several at once where they are beside each other. Raises what
        `Fetch` raises; a damaged block is left to whoever reads it.
        """
        wanted = set(blocks)
        for block in sorted(wanted):
            with self._lock:
                if not self._cache.slots:  # closed, or without room
                    return
                if block in self._cache or block in self._coming:
                    continue
                first, last = self._claim(block, 1, self._most_ahead(), wanted)
            self._fetch(first, last, needed=None)

    def close(self) -> None:
        """Forget everything; what is being fetched meanwhile goes nowhere."""
        with self._lock:
            self._cache.close()

    def _read_several(self, amount: int, offset: int, read_file: ReadFile) -> bytes:
        """As `read`, of more than one page."""
        size, end = self.page_size, offset + amount
        pieces = []
        while offset < end:
            number = offset // size + 1
            if self.is_in_file(number):
                stop = min(end, self._end_of_those_in_file(number, (end - 1) // size + 1))
                pieces.append(read_file(stop - offset, offset))
            else:
                stop = min(end, number * size)
                begin = (number - 1) * size
                pieces.append(self._part_of(number, offset - begin, stop - begin))
            offset = stop
        return b"".join(pieces)

    def _end_of_those_in_file(self, number: int, last: int) -> int:
        """Where, in bytes, the pages end that the file has, from this one to the last one at most."""
        found = self.in_file.find(0, number, last + 1)
        return (found - 1 if found >= 0 else last) * self.page_size

    def _part_of(self, number: int, begin: int, end: int) -> bytes:
        """Bytes of one page of the snapshot, from offset `begin` in it to before `end`."""
        # As `Index.block_of`; the lock page is in no block
        block, at = divmod(number - 1 - (number > self._lock_page), self._pages_per_block)
        at *= self.page_size
        begin, end = at + begin, at + end
        newest, content = self._newest
        if newest == block:
            return content[begin:end]
        with self._lock:
            found = self._cache.read(block, begin, end)
        if found is not None:
            return found
        upper = self._upper(number)
        return self._block(block)[begin:end] if upper is None else upper[begin - at : end - at]

    def _upper(self, number: int) -> bytes | None:
        """A page that the index has. It has them compressed, and SQLite forgets them while it reads many others."""
        with self._lock:
            if page := self._uppers.get(number):
                self._uppers.move_to_end(number)
                return page
        page = self.index.upper(number)
        if page is not None:
            with self._lock:
                self._uppers[number] = page
                if len(self._uppers) * self.page_size > _MOST_UPPER:
                    self._uppers.popitem(last=False)
        return page

    def _block(self, block: int) -> bytes:
        """All of a block that is not here, and into the cache with it and some of those that will be asked for next."""
        while True:
            with self._lock:
                if found := self._cache.read(block, 0, self._block_size):
                    return found  # somebody else has fetched it meanwhile
                if (coming := self._coming.get(block)) is None:
                    first, last = self._claim_ahead(block)
            if coming is None:
                content = self._fetch(first, last, block)
                self._newest = block, content
                return content
            coming.wait()

    def _fetch(self, first: int, last: int, needed: int | None) -> bytes:
        """Those that were claimed. Returns the one that is needed."""
        content = b""
        coming = set(range(first, last + 1))
        try:
            for block, raw in self.source.read(first, last, needed):
                with self._lock:
                    self._cache.put(block, raw.ljust(self._block_size, b"\0"))
                    self._coming.pop(block).set()
                    coming.remove(block)
                if block == needed:
                    content = raw
            return content
        finally:
            with self._lock:  # those that have not come, or are damaged: whoever waits for one asks for it
                for block in coming:
                    self._coming.pop(block).set()

    def _claim_ahead(self, block: int) -> tuple[int, int]:
        """One block, or twice as many as the last time when it is beside those that were fetched then."""
        first, last, many = self._ahead
        after, before = last < block <= last + many, first - many <= block < first
        many = min(2 * many, self._most_ahead()) if after or before else 1
        first, last = self._claim(block, -1 if before else 1, many)
        self._ahead = first, last, many
        return first, last

    def _claim(self, block: int, step: int, most: int, wanted: Container[int] | None = None) -> tuple[int, int]:
        """Say that one block is coming, and those beside it that nobody has yet. Returns the first and the last."""
        claimed = 0
        while (
            claimed < most
            and 0 <= block < self.index.blocks
            and (wanted is None or block in wanted)
            and block not in self._coming
            and block not in self._cache
        ):
            self._coming[block] = threading.Event()
            block += step
            claimed += 1
        ends = block - step * claimed, block - step
        return min(ends), max(ends)

    def _most_ahead(self) -> int:
        """How many blocks are fetched at once, at most."""
        return max(1, min(_MOST_AHEAD // self._block_size, self._cache.slots // 4))
