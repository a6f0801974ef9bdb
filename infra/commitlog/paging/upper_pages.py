"""The pages of a snapshot that many reads pass through: with its index, nobody fetches them one by one.

They are stored in groups of 16, of which the last may have fewer. A group is compressed by zlib as a whole, and holds

    for each page, how much of it is an array of u16 and how large a cell is, both u16 | the pages, one after the other

A page of a b-tree has an array of offsets, and cells that are much alike, one below the other: in an interior one the
numbers of pages, which go up by a little, and keys, which begin alike. So each byte is stored as the difference, modulo
256, from the one two before it in the array, with the few bytes before it, and from the one so much before it as a cell
is large in the rest; zeros leave a page as it is. That makes it a fifth of what zlib alone does.
"""

import struct
import zlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from itertools import accumulate, islice, pairwise
from threading import Lock

from core.errors import LogDamaged
from infra.commitlog.paging.btrees import array_begin, cell_offsets

Page = tuple[int, bytes]  # number and content

GROUP = 16  # pages
_KEPT = 4  # groups, uncompressed
_SHAPE = struct.Struct(">HH")
_MOST_SHAPED = 0xFFFF


class UpperPages:
    """Some pages of a database. Any thread may read."""

    def __init__(self, numbers: "array[int]", groups: Sequence[bytes], page_size: int) -> None:
        """`numbers`: of the pages, in the order in which they are in the groups."""
        self.numbers = numbers
        self.groups = groups
        self._page_size = page_size
        self._places: dict[int, int] = {}
        self._recent: OrderedDict[int, bytes] = OrderedDict()
        self._lock = Lock()

    def read(self, number: int) -> bytes | None:
        """Return the content of a page, None if it is not one of them. Raises LogDamaged."""
        with self._lock:
            if not self._places:
                self._places = {number: place for place, number in enumerate(self.numbers)}
            if (place := self._places.get(number)) is None:
                return None
            group, place = divmod(place, GROUP)
            content = self._content(group)
        begin = min(GROUP, len(self.numbers) - group * GROUP) * _SHAPE.size + place * self._page_size
        return _summed(content[begin : begin + self._page_size], *_SHAPE.unpack_from(content, place * _SHAPE.size))

    def _content(self, group: int) -> bytes:
        if group in self._recent:
            self._recent.move_to_end(group)
            return self._recent[group]
        size = min(GROUP, len(self.numbers) - group * GROUP) * (_SHAPE.size + self._page_size)
        try:
            found = zlib.decompressobj().decompress(self.groups[group], size + 1)
        except zlib.error:
            found = b""
        if len(found) != size:
            raise LogDamaged(f"has upper pages that cannot be uncompressed, in group {group}")
        self._recent[group] = found
        if len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return found


def compressed(pages: Iterable[Page], page_size: int, budget: int) -> UpperPages:
    """Take pages, in the order given, as long as all of it is not more than so many bytes."""
    numbers, groups, source = array("I"), list[bytes](), iter(pages)
    while some := list(islice(source, GROUP)):
        group = _compressed(some)
        budget -= len(group) + numbers.itemsize * (len(some) + 1)  # what the index has of them besides
        if budget < 0:
            break
        numbers.extend(number for number, _ in some)
        groups.append(group)
    return UpperPages(numbers, groups, page_size)


def _compressed(pages: list[Page]) -> bytes:
    shapes = [_shape(number, page) for number, page in pages]
    contents = (_differences(page, *shape) for (_, page), shape in zip(pages, shapes, strict=True))
    return zlib.compress(b"".join([_SHAPE.pack(*shape) for shape in shapes] + list(contents)), 9)


def _shape(number: int, page: bytes) -> tuple[int, int]:
    """Return how long the array of a page is, with what is before it, and what most of its cells take, in bytes."""
    offsets = cell_offsets(number, page)
    sizes = Counter(abs(one - other) for one, other in pairwise(offsets))
    end = array_begin(number, page) + 2 * len(offsets)
    return (end, sizes.most_common(1)[0][0]) if sizes and end <= _MOST_SHAPED else (0, 0)


def _differences(page: bytes, end: int, cell: int) -> bytes:
    if not cell:
        return page
    return _minus(page[:end], 2) + _minus(page[end:], cell)


def _summed(content: bytes, end: int, cell: int) -> bytes:
    """Undo the above."""
    if not cell:
        return content
    return _plus(content[:end], 2) + _plus(content[end:], cell)


def _minus(data: bytes, distance: int) -> bytes:
    """All bytes at once, as those of two numbers whose highest bits are kept apart: none borrows of the next."""
    size = len(data)
    one, other = int.from_bytes(data, "big"), int.from_bytes((bytes(distance) + data)[:size], "big")
    high = int.from_bytes(b"\x80" * size, "big")
    return ((one | high) - (other & ~high) ^ (one ^ ~other) & high).to_bytes(size, "big")


def _plus(data: bytes, distance: int) -> bytes:
    result = bytearray(data)
    for first in range(min(distance, len(data))):
        result[first::distance] = bytes([total & 255 for total in accumulate(data[first::distance])])
    return bytes(result)
