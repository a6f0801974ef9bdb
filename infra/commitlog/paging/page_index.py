"""Where the pages of a snapshot lie in its object, and what they must be: in an object beside it, the sidecar.

A snapshot's pages are taken together in blocks of 64 KiB before compression: consecutive pages, without the lock page.
The sidecar of a snapshot holds, all integers big-endian:

    magic "LTXPAGES" | version u32, 1 | the snapshot's 100-byte header | its object's size u64 | its file checksum u64
    | blocks u32 | upper pages u32
    | for each block how many bytes it has in the object u32 | for each block the state after it u64
    | for each upper page its number u32 | for each group its size u32 | the groups | checksum u64

The state is the CRC-64/GO-ISO of the object with the pages uncompressed, up to the end of that block: the very one
that, after the last bytes, is the file checksum. So a block that follows the one before it and leads to its own state
is what the file checksum says, and no other block has to be read for that.

Upper pages are those that many reads pass through, and are in groups (see upper_pages.py). The last eight bytes are the
CRC-64/GO-ISO of all that is before them. A sidecar of another version is none that this release can use: whoever finds
one goes without it.
"""

import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

import lz4.block
from fastcrc.crc64 import go_iso

from core.errors import LogDamaged
from infra.commitlog import ltx
from infra.commitlog.chain import Position
from infra.commitlog.paging.upper_pages import GROUP, UpperPages

Page = tuple[int, bytes]  # number and content

BLOCK = 65536  # bytes of raw pages
_MAGIC = b"LTXPAGES"
_VERSION = 1
_HEAD = struct.Struct(f">{len(_MAGIC)}sI")
_FIELDS = struct.Struct(f">{ltx.HEADER_SIZE}sQQII")
_CHECKSUM = struct.Struct(">Q")
_PAGE = ltx.PAGE_HEAD
_U32, _U64 = "I", "Q"  # of arrays


class UnknownVersion(LogDamaged):
    """A sidecar that another release has made: not damaged, but of no use to this one."""


class PageIndex:
    """What a sidecar says of its snapshot or, without one, what the snapshot itself does."""

    def __init__(
        self,
        head: bytes,
        object_size: int,
        checksum: int,
        lengths: "array[int]",
        states: "array[int]",
        upper: UpperPages | None = None,
    ) -> None:
        """`head`: the snapshot's first 100 bytes. Raises LogDamaged when these do not fit each other."""
        self.header = ltx.decode_header(head)
        self.object_size = object_size  # bytes
        self.checksum = checksum  # of the snapshot's file
        self.pages_per_block = pages_per_block(self.header.page_size)
        self.blocks = len(lengths)
        self._head = head
        self._lock_page = ltx.lock_page(self.header.page_size)
        self._offsets = array(_U64, accumulate(lengths, initial=len(head)))  # where they begin, and the last one's end
        self._states = array(_U64, [go_iso(head)]) + states  # before each, and after the last one
        self._upper = upper or UpperPages(array(_U32), [], self.header.page_size)
        pages = self._place(self.header.size) + 1 if self.header.size else 0
        if not pages or not self.header.is_snapshot or -(-pages // self.pages_per_block) != self.blocks:
            raise LogDamaged(f"has {self.blocks} blocks for {pages} pages")
        heads = _PAGE.size * self.pages_per_block
        if min(lengths[:-1], default=heads) < heads or lengths[-1] < _PAGE.size:
            raise LogDamaged("has a block with fewer bytes than its pages take")
        if self._offsets[-1] > object_size:
            raise LogDamaged(f"has blocks up to {self._offsets[-1]:,} in an object of {object_size:,} bytes")

    @property
    def position(self) -> Position:
        """Where the log is in the state that the snapshot holds."""
        header = self.header
        return Position(header.max_txid, header.node_id, header.timestamp, header.log_id)

    def block_of(self, number: int) -> int:
        """Return the block, counted from 0, that has a page; its number is counted from 1."""
        return self._place(number) // self.pages_per_block

    def span(self, first: int, last: int) -> tuple[int, int]:
        """Return the offset in the object where a block begins, and the one where another, or the same, ends."""
        return self._offsets[first], self._offsets[last + 1]

    def pages(self, block: int, body: bytes) -> list[Page]:
        """Return the pages of a block, whose bytes these should be.

        Raises LogDamaged when they are not what the file checksum says. The message is a predicate.
        """
        size, result, checked, at = self.header.page_size, list[Page](), list[bytes](), 0
        try:
            for number in self._numbers(block):
                head = body[at : at + _PAGE.size]
                found, _, length = _PAGE.unpack(head)
                at += _PAGE.size + length
                page = lz4.block.decompress(body[at - length : at], uncompressed_size=size)
                if found != number or len(page) != size:
                    break
                result.append((number, page))
                checked += head, page
        except (struct.error, lz4.block.LZ4BlockError, OverflowError, MemoryError):
            at = -1
        if at != len(body) or go_iso(b"".join(checked), self._states[block]) != self._states[block + 1]:
            raise LogDamaged(f"has other pages in its block {block} than the checksum of its index says")
        return result

    def upper(self, number: int) -> bytes | None:
        """Return the content of an upper page, None if it is not here."""
        return self._upper.read(number)

    def check_is_of(self, snapshot: Callable[[], Iterable[bytes]]) -> None:
        """Compare it with all of a snapshot, whose bytes `snapshot` gives, twice. Raises LogDamaged when it does not
        say what that says.
        """
        read = PageIndex.read_through(snapshot())
        mine, found = ((one._head, one.checksum, one.object_size, one._offsets, one._states) for one in (self, read))
        if mine != found:
            raise LogDamaged("is of another snapshot than the one beside it")
        for number, page in ltx.Reader(snapshot()).pages():
            if self.upper(number) not in (None, page):
                raise LogDamaged(f"has another page {number} than the snapshot beside it")

    def encode(self) -> bytes:
        """Return what a sidecar holds. Two of the same snapshot may differ in their upper pages."""
        numbers, groups = self._upper.numbers, self._upper.groups
        fields = (self._head, self.object_size, self.checksum, self.blocks, len(numbers))
        lengths = (after - before for before, after in zip(self._offsets, self._offsets[1:], strict=False))
        body = b"".join(
            [
                _HEAD.pack(_MAGIC, _VERSION),
                _FIELDS.pack(*fields),
                _big_endian(array(_U32, lengths)),
                _big_endian(self._states[1:]),
                _big_endian(numbers),
                _big_endian(array(_U32, map(len, groups))),
                *groups,
            ]
        )
        return body + _CHECKSUM.pack(go_iso(body))

    @classmethod
    def decode(cls, data: bytes) -> "PageIndex":
        """Take a sidecar apart. Raises LogDamaged, and as such UnknownVersion, with a predicate for a message."""
        magic, version = _HEAD.unpack(data[: _HEAD.size].ljust(_HEAD.size, b"\0"))
        if magic != _MAGIC:
            raise LogDamaged(f"does not begin with {_MAGIC!r} but with {magic!r}")
        if version != _VERSION:
            raise UnknownVersion(f"has the version {version}, this release knows {_VERSION}")
        if len(data) < _HEAD.size + _FIELDS.size + _CHECKSUM.size:
            raise LogDamaged("is cut short")
        found, said = go_iso(memoryview(data)[: -_CHECKSUM.size]), _CHECKSUM.unpack(data[-_CHECKSUM.size :])[0]
        if found != said:
            raise LogDamaged(f"has the checksum {found:016x}, its last bytes say {said:016x}")
        fields = _FIELDS.unpack_from(data, _HEAD.size)
        head, object_size, checksum, blocks, upper = fields
        parts = _Parts(data, _HEAD.size + _FIELDS.size, len(data) - _CHECKSUM.size)
        lengths, states = parts.integers(_U32, blocks), parts.integers(_U64, blocks)
        numbers, sizes = parts.integers(_U32, upper), parts.integers(_U32, -(-upper // GROUP))
        groups = [parts.take(size) for size in sizes]
        parts.check_at_end()
        page_size = ltx.decode_header(head).page_size
        return cls(head, object_size, checksum, lengths, states, UpperPages(numbers, groups, page_size))

    @classmethod
    def read_through(cls, chunks: Iterable[bytes]) -> "PageIndex":
        """Read a whole snapshot, which arrives in chunks, and keep only its index; no upper pages.

        Raises LogDamaged, as ltx.Reader does, and when the object is no snapshot.
        """
        reader = ltx.Reader(chunks)
        blocks = BlockNotes(reader)
        for number, _ in reader.pages():
            blocks.note(number)
        return blocks.index(reader.checksum)

    def _place(self, number: int) -> int:
        """Of a page among all that have content, counted from 0."""
        return number - 1 - (number >= self._lock_page)

    def _numbers(self, block: int) -> Iterator[int]:
        first = block * self.pages_per_block + 1
        last = min(first + self.pages_per_block - 1, self._place(self.header.size) + 1)
        return (place + (place >= self._lock_page) for place in range(first, last + 1))


class BlockNotes:
    """Takes down where blocks end while a snapshot is read or written."""

    def __init__(self, file: ltx.Reader | ltx.Writer) -> None:
        """Raises LogDamaged for what is no snapshot: only that has all pages."""
        self._file = file
        header = ltx.decode_header(file.head)
        if not header.is_snapshot:
            raise LogDamaged(f"is no snapshot: it begins with TXID {header.min_txid}")
        self._last = header.size - (header.size == ltx.lock_page(header.page_size))
        self._pages_per_block = pages_per_block(header.page_size)
        self._pages = 0  # since the last block has ended
        self._end = file.offset
        self._lengths, self._states = array(_U32), array(_U64)

    def note(self, number: int) -> None:
        """Take notice of a page that was just read or written; they come in their order."""
        self._pages += 1
        if self._pages == self._pages_per_block or number == self._last:
            self._lengths.append(self._file.offset - self._end)
            self._states.append(self._file.crc)
            self._pages, self._end = 0, self._file.offset

    def index(self, checksum: int, upper: UpperPages | None = None) -> PageIndex:
        """Return the index, once the file has been read or written to its end. `checksum`: of the file."""
        return PageIndex(self._file.head, self._file.offset, checksum, self._lengths, self._states, upper)


class _Parts:
    """What follows each other in a sidecar."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data, self._at, self._end = data, at, end

    def take(self, size: int) -> bytes:
        self._at += size
        if self._at > self._end:
            raise LogDamaged("has not as much as it says")
        return self._data[self._at - size : self._at]

    def integers(self, code: str, many: int) -> "array[int]":
        found = array(code)
        found.frombytes(self.take(many * found.itemsize))
        return _swapped(found)

    def check_at_end(self) -> None:
        if self._at != self._end:
            raise LogDamaged("has more than it says")


def pages_per_block(page_size: int) -> int:
    """Say how many pages are taken together."""
    return max(1, BLOCK // page_size)


def _big_endian(numbers: "array[int]") -> bytes:
    return _swapped(numbers[:]).tobytes()


def _swapped(numbers: "array[int]") -> "array[int]":
    """From this machine's byte order to the format's, or back; in place."""
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers
