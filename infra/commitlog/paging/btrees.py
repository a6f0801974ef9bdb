"""The b-trees of a database file: which of its pages many reads pass through.

Source: https://www.sqlite.org/fileformat2.html#b_tree_pages. Nothing here relies on it that the file is sound: what it
finds there is at worst of no use.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import apsw

from infra.commitlog.raw_file import RawFile
from infra.commitlog.schema import opened_image

Page = tuple[int, bytes]  # number and content

_FIRST = 1  # page, on which sqlite_schema begins
_FILE_HEADER = 100  # bytes, before what is on page 1 as on others
_INTERIOR = (2, 5)  # of an index, of a table
_LEAF = (10, 13)
_LEAF_ARRAY, _INTERIOR_ARRAY = 8, 12  # where the array of the cells' offsets begins
_LAST_CHILD = 8  # where an interior page has the number of its last child
_PAGE_SIZE = slice(16, 18)  # of the file's header
_MOST_LEVELS = 20  # SQLite's own limit
_ROOTS = "SELECT rootpage FROM sqlite_schema WHERE typeof(rootpage) = 'integer' AND rootpage > 0 ORDER BY rootpage"


def array_begin(number: int, page: bytes) -> int:
    """Return where on a page the array of its cells' offsets begins."""
    start = _start(number)
    return start + (_INTERIOR_ARRAY if page[start] in _INTERIOR else _LEAF_ARRAY)


def cell_offsets(number: int, page: bytes) -> tuple[int, ...]:
    """Return where the cells of a page are, in the order of their keys; none if it is no page of a b-tree."""
    start = _start(number)
    if page[start] not in _INTERIOR + _LEAF:
        return ()
    begin, many = array_begin(number, page), int.from_bytes(page[start + 3 : start + 5], "big")
    return struct.unpack_from(f">{many}H", page, begin) if begin + 2 * many <= len(page) else ()


def upper_pages(image: Path, page_size: int) -> Iterator[Page]:
    """Yield, each once, the pages of a database file that many reads pass through: all of sqlite_schema; of the other
    b-trees the roots, the way to the last leaf, where what is new is written, and the interior pages, level by level
    from the top.
    """
    with RawFile(image) as file:
        yield from _upper_pages(_Pages(file, page_size), _roots(image))


def newest_leaves(path: Path, vfs: str) -> Iterator[int]:
    """Yield the numbers of the last pages at the bottom of each b-tree, those that one interior page leads to: what is
    new is there. `vfs`: the one to open the file through. What reading a page raises comes from here.
    """
    for root in _roots(path, vfs):
        with RawFile(path, vfs) as file:  # not while the caller waits: what is replaced meanwhile would stay on disk
            file.seek(_PAGE_SIZE.start)
            page_size = int.from_bytes(file.read(2), "big")
            leaves = _Pages(file, 65536 if page_size == 1 else page_size).last_leaves(root)
        yield from leaves


def _upper_pages(pages: "_Pages", roots: list[int]) -> Iterator[Page]:
    schema = [_FIRST]
    for _ in range(_MOST_LEVELS):
        yield from pages.new(schema)
        schema = pages.below(schema)
    yield from pages.new(roots)
    for root in roots:
        yield from pages.new(pages.way_to_last_leaf(root))
    levels = [[root] for root in roots]
    for _ in range(_MOST_LEVELS):
        levels = [pages.below(level) for level in levels if pages.is_above_interior(level)]
        for level in levels:
            yield from pages.new(level)


class _Pages:
    """Of one file; a number that it has no page for is as good as none."""

    def __init__(self, file: RawFile, page_size: int) -> None:
        self._file = file
        self._page_size = page_size
        self._pages = file.size() // page_size
        self._yielded: set[int] = set()

    def new(self, numbers: list[int]) -> Iterator[Page]:
        for number in numbers:
            if number not in self._yielded and (page := self._read(number)):
                self._yielded.add(number)
                yield number, page

    def below(self, level: list[int]) -> list[int]:
        """The pages that those of one level lead to, each once."""
        return list(dict.fromkeys(child for number in level for child in self._children(number)))

    def is_above_interior(self, level: list[int]) -> bool:
        """All of a level are, or none: a b-tree is as deep everywhere."""
        return bool(level and (below := self._children(level[0])) and self._children(below[0]))

    def way_to_last_leaf(self, root: int) -> list[int]:
        way = [root]
        while len(way) < _MOST_LEVELS and (below := self._children(way[-1])):
            way.append(below[-1])
        return way

    def last_leaves(self, root: int) -> list[int]:
        way = self.way_to_last_leaf(root)
        return self._children(way[-2]) if len(way) > 1 else []

    def _children(self, number: int) -> list[int]:
        """In the order of their keys; none of a leaf."""
        page, start = self._read(number), _start(number)
        if not page or page[start] not in _INTERIOR:
            return []
        places = [*(offset for offset in cell_offsets(number, page)), start + _LAST_CHILD]
        return [int.from_bytes(page[place : place + 4], "big") for place in places]

    def _read(self, number: int) -> bytes:
        if not 1 <= number <= self._pages:
            return b""
        self._file.seek((number - 1) * self._page_size)
        return self._file.read(self._page_size)


def _roots(image: Path, vfs: str = "") -> list[int]:
    """Of all b-trees but sqlite_schema; none if SQLite cannot say."""
    try:
        with opened_image(image, vfs) as connection:
            return [int(root) for (root,) in connection.execute(_ROOTS)]
    except apsw.Error:
        return []


def _start(number: int) -> int:
    return _FILE_HEADER if number == _FIRST else 0
