"""LTX, version 3: the file format of Litestream 0.5, one or more transactions as whole pages.

Source: the README and the Go code of github.com/superfly/ltx. All integers are big-endian.

    header 100 bytes | pages, each: number u32, flags u16, size u32, LZ4 block | six zero bytes
    | page index: (number, offset, size) as unsigned varints, a zero byte, the index's size u64
    | post-apply checksum u64 (unused here) | file checksum u64

The file checksum is CRC-64/GO-ISO, with the highest bit set, over all of that with the pages uncompressed.

Four header fields that Litestream leaves to the writer carry what this log needs. The two WAL salts hold the
file checksum of the commit before `min_txid`. The node id of a single commit (level 0) is its commit id, a
random number; in a merged file it is the file checksum of the commit `max_txid`. The first eight of the reserved
bytes are the log's id, a random number that its first commit has drawn and every other object repeats. Zero means
unknown.
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import lz4.block
from fastcrc.crc64 import go_iso

from core.errors import LogDamaged

HEADER_SIZE = 100
CHECKSUM_SIZE = 8  # of the file checksum, its last bytes
_MAGIC = b"LTX1"
_NO_CHECKSUM = 1 << 1  # no rolling checksum of the whole database, as Litestream writes it
_CHECKSUM_FLAG = 1 << 63
_SIZE_FOLLOWS = 1 << 0
_WAL_OFFSET = 32  # must not be zero when the salts are used
_HEADER = struct.Struct(">4sIIIQQqQqqQQQ12x")
PAGE_HEAD = struct.Struct(">IHI")
_END_OF_PAGES = bytes(6)
_LOCK_BYTE = 0x40000000
_LARGEST_PAGE = 65536
_SMALLEST_TAIL = 25  # bytes: an empty page index, its size, two checksums
_SUMMED_AT_ONCE = 256 * 1024  # bytes of pages: a checksum of a page by itself costs eight times as much


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself before its pages; see above for the last three fields."""

    page_size: int  # bytes
    size: int  # of the database after these transactions, pages
    min_txid: int
    max_txid: int
    timestamp: int  # milliseconds since 1970
    predecessor: int = 0
    node_id: int = 0
    log_id: int = 0

    @property
    def is_snapshot(self) -> bool:
        return self.min_txid == 1


def lock_page(page_size: int) -> int:
    """Return the number of the page that SQLite keeps for file locks; it never has content."""
    return _LOCK_BYTE // page_size + 1


class _Checksum:
    """The CRC-64 of a file as far as it has been written or read, before its highest bit is set."""

    def __init__(self, head: bytes, page_size: int) -> None:
        self._value = go_iso(head)
        self._waiting: list[bytes] = []  # not in it yet
        self._most_waiting = 2 * max(_SUMMED_AT_ONCE // page_size, 1)

    def add(self, head: bytes, page: bytes) -> None:
        """Take in a page, uncompressed, and what is before it."""
        self._waiting += head, page
        if len(self._waiting) >= self._most_waiting:
            self.value()

    def value(self) -> int:
        """Return what it is now."""
        if self._waiting:
            self._value = go_iso(b"".join(self._waiting), self._value)
            self._waiting.clear()
        return self._value


class Writer:
    """Encodes a file piece by piece."""

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        """`write` is called with each piece; the file is the pieces one after the other."""
        self._write = write
        self._index = bytearray()
        self.head = _encode_header(header)
        self._checksum = _Checksum(self.head, header.page_size)
        self.offset = len(self.head)  # where the next piece begins
        write(self.head)

    @property
    def crc(self) -> int:
        """Of all that was written, before the highest bit is set."""
        return self._checksum.value()

    def add(self, number: int, page: bytes) -> None:
        """Append a page. They ascend, leave out the lock page, and are all of them in a snapshot."""
        block = lz4.block.compress(page, store_size=False)
        head = PAGE_HEAD.pack(number, _SIZE_FOLLOWS, len(block))
        size = len(head) + len(block)
        self._index += _varint(number) + _varint(self.offset) + _varint(size)
        self._checksum.add(head, page)
        self.offset += size
        self._write(head + block)

    def end(self) -> int:
        """Write what comes after the pages, and return the file checksum."""
        self._index.append(0)
        tail = _END_OF_PAGES + self._index + struct.pack(">QQ", len(self._index), 0)
        checksum = go_iso(tail, self.crc) | _CHECKSUM_FLAG
        self.offset += len(tail) + CHECKSUM_SIZE
        self._write(tail + struct.pack(">Q", checksum))
        return checksum


def encode(header: Header, pages: Iterable[tuple[int, bytes]]) -> tuple[bytearray, int]:
    """Return the whole file and its checksum; see Writer for the pages."""
    body = bytearray()
    writer = Writer(header, body.extend)
    for number, page in pages:
        writer.add(number, page)
    return body, writer.end()


def decode_header(data: bytes) -> Header:
    """Return what the first 100 bytes say. Raises LogDamaged when they are not the header of an LTX file."""
    if len(data) < HEADER_SIZE:
        raise LogDamaged(f"is only {len(data)} bytes long")
    fields = _HEADER.unpack(data[:HEADER_SIZE])
    magic, flags, page_size, size, low, high, timestamp, checksum, offset, wal_size, salts, node_id, log_id = fields
    if magic != _MAGIC:
        raise LogDamaged(f"does not begin with {_MAGIC!r} but with {magic!r}")
    if flags & ~_NO_CHECKSUM:
        raise LogDamaged(f"has unknown flags {flags:#x}")
    if not 512 <= page_size <= _LARGEST_PAGE or page_size & (page_size - 1):
        raise LogDamaged(f"has a page size of {page_size}")
    if not 1 <= low <= high:
        raise LogDamaged(f"has the TXID range {low}-{high}")
    tracks_database = flags == 0 and low > 1
    if offset < 0 or wal_size < 0 or tracks_database is (checksum == 0):
        raise LogDamaged("has an impossible header")
    ours = node_id and not wal_size  # Litestream leaves the node id out, and has real salts
    predecessor, log_id = (salts, log_id) if ours else (0, 0)
    return Header(page_size, size, low, high, timestamp, predecessor, node_id, log_id)


class Reader:
    """Decodes a file that arrives in chunks.

    Raises LogDamaged, at the latest when `pages` has run to its end: use no page before that unless it can be
    thrown away. The message is a predicate ("is cut short"), for the caller to put the object's name before.
    """

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer, self._offset = b"", 0
        self._begin = 0  # of the buffer in the file
        self.head = self._take(HEADER_SIZE)
        self.header = decode_header(self.head)
        self._checksum = _Checksum(self.head, self.header.page_size)
        self.checksum = 0  # known when `pages` has run to its end

    @property
    def crc(self) -> int:
        """Up to the page that was yielded last, before the highest bit is set."""
        return self._checksum.value()

    @property
    def offset(self) -> int:
        """Where the page ends that was yielded last; when `pages` has run to its end, how long the file is, bytes."""
        return self._begin + self._offset

    def pages(self) -> Iterator[tuple[int, bytes]]:
        """Yield page number and content, ascending, and check the file checksum after the last."""
        header, add = self.header, self._checksum.add
        lock, head_size, page_size = lock_page(header.page_size), PAGE_HEAD.size, header.page_size
        expected = 1
        while True:  # a database has a million of them, so no call is made for a page that need not be
            if self._offset + head_size > len(self._buffer):
                self._read_on(head_size)
            begin = self._offset + head_size
            head = self._buffer[self._offset : begin]
            number, flags, length = PAGE_HEAD.unpack(head)
            if not number and not flags:
                break  # _END_OF_PAGES
            if flags != _SIZE_FOLLOWS:
                raise LogDamaged(f"has page {number} in an encoding this release does not know (flags {flags:#x})")
            expected += expected == lock
            if not expected <= number <= header.size or number == lock or (number > expected and header.is_snapshot):
                raise LogDamaged(f"has page {number} where page {expected} of {header.size} is due")
            if length > 2 * _LARGEST_PAGE:
                raise LogDamaged(f"has {length} bytes for page {number}")
            if begin + length > len(self._buffer):
                self._read_on(head_size + length)
                begin = head_size
            self._offset = begin + length
            try:
                page: bytes = lz4.block.decompress(self._buffer[begin : self._offset], uncompressed_size=page_size)
            except lz4.block.LZ4BlockError:
                page = b""
            if len(page) != page_size:
                raise LogDamaged(f"has a page {number} that cannot be uncompressed")
            add(head, page)
            yield number, page
            expected = number + 1
        self._offset += len(_END_OF_PAGES)
        expected += expected == lock
        if header.is_snapshot and expected <= header.size:
            raise LogDamaged(f"ends before page {expected} of {header.size}")
        self._check_tail()

    def _check_tail(self) -> None:
        crc, size, last = go_iso(_END_OF_PAGES, self.crc), 0, bytearray(self._buffer[self._offset :])
        for chunk in chain([b""], self._chunks):  # there may be any number
            last += chunk
            counted = bytes(last[:-CHECKSUM_SIZE])
            crc, size = go_iso(counted, crc), size + len(counted)
            del last[:-CHECKSUM_SIZE]
        self._offset += size + len(last)
        if size + len(last) < _SMALLEST_TAIL:
            raise LogDamaged("is cut short")
        self.checksum = int.from_bytes(last, "big")
        found = crc | _CHECKSUM_FLAG
        if found != self.checksum:
            raise LogDamaged(f"has the checksum {found:016x}, its last bytes say {self.checksum:016x}")

    def _take(self, size: int) -> bytes:
        if self._offset + size > len(self._buffer):
            self._read_on(size)
        begin, self._offset = self._offset, self._offset + size
        return self._buffer[begin : self._offset]

    def _read_on(self, size: int) -> None:
        """Have so many bytes from the offset on."""
        pieces = [self._buffer[self._offset :]]
        missing = size - len(pieces[0])
        self._begin += self._offset
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise LogDamaged("is cut short")
            pieces.append(chunk)
            missing -= len(chunk)
        self._buffer, self._offset = b"".join(pieces), 0


def _encode_header(header: Header) -> bytes:
    return _HEADER.pack(
        _MAGIC,
        _NO_CHECKSUM,
        header.page_size,
        header.size,
        header.min_txid,
        header.max_txid,
        header.timestamp,
        0,
        _WAL_OFFSET if header.predecessor else 0,
        0,
        header.predecessor,
        header.node_id,
        header.log_id,
    )


def _varint(value: int) -> bytes:
    if value < 1 << 7:
        return bytes((value,))
    if value < 1 << 14:
        return bytes((value & 127 | 128, value >> 7))
    if value < 1 << 21:
        return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14))
    return bytes((value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127 | 128)) + _varint(value >> 21)
