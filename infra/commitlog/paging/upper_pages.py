"""The pages of a snapshot that many reads pass through: with its index, nobody fetches them one by one."""

import zlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from core.errors import LogDamaged

GROUP = 16  # pages that are compressed together
_KEPT = 8  # groups, uncompressed


class UpperPages:
    """Some pages of a database, compressed in groups. Any thread may read."""

    def __init__(self, numbers: "array[int]", groups: Sequence[bytes], page_size: int) -> None:
        """`numbers`: of the pages, in the order in which they are in the groups, GROUP in each but the last."""
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
            place = self._places.get(number)
            if place is None:
                return None
            group = self._group(place // GROUP)
        begin = place % GROUP * self._page_size
        return group[begin : begin + self._page_size]

    def _group(self, group: int) -> bytes:
        if group in self._recent:
            self._recent.move_to_end(group)
            return self._recent[group]
        pages = min(GROUP, len(self.numbers) - group * GROUP)
        try:
            found = zlib.decompress(self.groups[group])
        except zlib.error:
            found = b""
        if len(found) != pages * self._page_size:
            raise LogDamaged(f"has upper pages that cannot be uncompressed, in group {group}")
        self._recent[group] = found
        if len(self._recent) > _KEPT:
            self._recent.popitem(last=False)
        return found


def compressed(pages: Sequence[tuple[int, bytes]], page_size: int) -> UpperPages:
    """Take pages together, in the order given."""
    groups = [pages[begin : begin + GROUP] for begin in range(0, len(pages), GROUP)]
    return UpperPages(
        array("I", [number for number, _ in pages]),
        [zlib.compress(b"".join([page for _, page in group]), 9) for group in groups],
        page_size,
    )
